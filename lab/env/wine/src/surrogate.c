/* dllhost.exe: the lab's replacement for Windows' surrogate process.
 *
 *   dllhost.exe /PROCESSID:{AppID}
 *
 * It loads the in-process classes of an AppID and provides them to any number of clients, from the multithreaded
 * apartment, like Windows. Wine's own surrogate serves one client per process. A plugin can observe this behavior of
 * Windows, so it is the same here:
 *
 * - A client gets the surrogate's class factory, never the DLL's, so only objects keep the DLL in use.
 * - When DllCanUnloadNow has returned S_OK for a minute, the surrogate stops accepting clients, checks again and exits.
 *   SURROGATE_IDLE_MS in the environment of the activating client replaces the minute.
 * - After CoSuspendClassObjects, new activations start a new process. The old one exits when its objects are released.
 *   The function is a stub in Wine, so this process replaces it. An activation in progress still succeeds.
 * - An object that the DLL returns more than once, such as a singleton, is marshaled safely.
 *
 * Wine never releases the references of a client that died, so this process then does not exit by itself.
 */

#define COBJMACROS
#include <windows.h>
#include <objbase.h>
#include <stdlib.h>
#include <string.h>
#include <wchar.h>

#define MAX_CLASSES 8
#define POLL_MS 500
#define GRACE_MS 10000 /* time between two steps of an activation: usually 1 ms, seconds on a busy machine */

struct served {
    IClassFactory factory;
    LONG locks, creating;

    CLSID clsid;
    HRESULT(WINAPI *get_class_object)(REFCLSID, REFIID, void **);
    HRESULT(WINAPI *can_unload_now)(void);

    DWORD cookie;
};

static struct served classes[MAX_CLASSES];
static int class_count;

static CRITICAL_SECTION lock; /* guards the next two variables */
static BOOL serving;
static ULONGLONG closed_at;

static const IID credentials = {0x6ECDA518, 0x2010, 0x4437, {0x8B, 0xC3, 0x46, 0xE7, 0x52, 0xB7, 0xB1, 0x72}};

/* ---- objects for clients */

/* A DLL can return the same object to all clients. Wine 8 has one stub manager per object. It loses the reference of a
 * client that connects while the last one disconnects, and that client's call fails with RPC_E_DISCONNECTED. So each
 * creation is marshaled as a new object, which forwards all calls. */
struct passed {
    const struct passed_vtbl *vtbl;
    LONG refs;
    struct passed *inner; /* the DLL's object, with the same interface */
};

struct passed_vtbl {
    HRESULT(WINAPI *query)(struct passed *, REFIID, void **);
    ULONG(WINAPI *addref)(struct passed *);
    ULONG(WINAPI *release)(struct passed *);
    HRESULT(WINAPI *get)(struct passed *, LPCWSTR, LPWSTR *, LPWSTR *, LPWSTR *);
};

static HRESULT WINAPI passed_query(struct passed *p, REFIID iid, void **object)
{
    BOOL known = IsEqualIID(iid, &IID_IUnknown) || IsEqualIID(iid, &credentials);

    *object = known ? p : NULL;
    if (known)
        InterlockedIncrement(&p->refs);
    return known ? S_OK : E_NOINTERFACE;
}

static ULONG WINAPI passed_addref(struct passed *p) { return InterlockedIncrement(&p->refs); }

static ULONG WINAPI passed_release(struct passed *p)
{
    LONG refs = InterlockedDecrement(&p->refs);

    if (!refs) {
        p->inner->vtbl->release(p->inner);
        free(p);
    }
    return refs;
}

static HRESULT WINAPI passed_get(struct passed *p, LPCWSTR input, LPWSTR *domain, LPWSTR *user, LPWSTR *password)
{
    return p->inner->vtbl->get(p->inner, input, domain, user, password);
}

static const struct passed_vtbl passed_vtbl = {passed_query, passed_addref, passed_release, passed_get};

/* Consumes the reference to the DLL's object, even on failure. */
static HRESULT pass_on(void *inner, void **object)
{
    struct passed *p = malloc(sizeof(*p));

    if (!p) {
        IUnknown_Release((IUnknown *)inner);
        return E_OUTOFMEMORY;
    }
    p->vtbl = &passed_vtbl;
    p->refs = 1;
    p->inner = inner;
    *object = p;
    return S_OK;
}

/* ---- class factory for clients */

static struct served *of_factory(IClassFactory *f) { return CONTAINING_RECORD(f, struct served, factory); }

static HRESULT WINAPI factory_query(IClassFactory *f, REFIID iid, void **object)
{
    *object = NULL;
    if (!IsEqualIID(iid, &IID_IUnknown) && !IsEqualIID(iid, &IID_IClassFactory))
        return E_NOINTERFACE;
    *object = f;
    IClassFactory_AddRef(f);
    return S_OK;
}

/* The factories exist as long as the process. */
static ULONG WINAPI factory_addref(IClassFactory *f) { return f ? 2 : 0; }

static ULONG WINAPI factory_release(IClassFactory *f) { return f ? 1 : 0; }

static HRESULT WINAPI factory_create(IClassFactory *f, IUnknown *outer, REFIID iid, void **object)
{
    struct served *s = of_factory(f);
    IClassFactory *inner;
    HRESULT hr;

    *object = NULL;
    if (outer)
        return CLASS_E_NOAGGREGATION;
    if (!IsEqualIID(iid, &IID_IUnknown) && !IsEqualIID(iid, &credentials))
        return E_NOINTERFACE;
    /* From the DLL, not from COM: an upgrade can have registered another DLL. */
    InterlockedIncrement(&s->creating);
    hr = s->get_class_object(&s->clsid, &IID_IClassFactory, (void **)&inner);
    if (SUCCEEDED(hr)) {
        void *made;

        hr = IClassFactory_CreateInstance(inner, NULL, &credentials, &made);
        IClassFactory_Release(inner);
        if (SUCCEEDED(hr))
            hr = pass_on(made, object);
    }
    InterlockedDecrement(&s->creating);
    return hr;
}

static HRESULT WINAPI factory_lock(IClassFactory *f, BOOL on)
{
    if (on)
        InterlockedIncrement(&of_factory(f)->locks);
    else
        InterlockedDecrement(&of_factory(f)->locks);
    return S_OK;
}

static IClassFactoryVtbl factory_vtbl = {factory_query, factory_addref, factory_release, factory_create, factory_lock};

/* ---- start and end of serving; the first two functions require the lock */

static HRESULT register_classes(void)
{
    for (int i = 0; i < class_count; i++) {
        HRESULT hr = CoRegisterClassObject(&classes[i].clsid, (IUnknown *)&classes[i].factory, CLSCTX_LOCAL_SERVER,
                                           REGCLS_MULTIPLEUSE, &classes[i].cookie);
        if (FAILED(hr))
            return hr;
    }
    serving = TRUE;
    return S_OK;
}

static void revoke_classes(void)
{
    if (!serving)
        return;
    for (int i = 0; i < class_count; i++)
        CoRevokeClassObject(classes[i].cookie);
    serving = FALSE;
    closed_at = GetTickCount64();
}

static HRESULT WINAPI suspend_class_objects(void)
{
    EnterCriticalSection(&lock);
    revoke_classes();
    LeaveCriticalSection(&lock);
    return S_OK;
}

static HRESULT WINAPI resume_class_objects(void)
{
    HRESULT hr = S_OK;

    EnterCriticalSection(&lock);
    if (!serving)
        hr = register_classes();
    LeaveCriticalSection(&lock);
    return hr;
}

/* No objects and no creation in progress. Call without the lock: the DLL can hold its own lock during a suspension. */
static BOOL unused(void)
{
    for (int i = 0; i < class_count; i++)
        if (classes[i].creating || classes[i].locks > 0 || classes[i].can_unload_now() != S_OK)
            return FALSE;
    return TRUE;
}

/* The classes are revoked, and clients that got a factory before have had time to create their objects. */
static BOOL drained(void)
{
    BOOL all;

    EnterCriticalSection(&lock);
    all = !serving && GetTickCount64() - closed_at >= GRACE_MS;
    LeaveCriticalSection(&lock);
    return all;
}

/* ---- a stub that is never released */

/* When the last stub of an interface is released, Wine 8 unregisters the interface and waits for its calls to end, in a
 * thread of the pool that must serve them. If it is the only thread, this is a deadlock: about once in 600 activations.
 * So an object that does nothing is marshaled once and never released. */
static HRESULT WINAPI idle_query(IUnknown *self, REFIID iid, void **object)
{
    BOOL known = IsEqualIID(iid, &IID_IUnknown) || IsEqualIID(iid, &credentials);

    *object = known ? self : NULL;
    return known ? S_OK : E_NOINTERFACE;
}

static ULONG WINAPI idle_count(IUnknown *self) { return self ? 1 : 0; }

static IUnknownVtbl idle_vtbl = {idle_query, idle_count, idle_count};
static IUnknown idle = {&idle_vtbl};

static HRESULT keep(const IID *iid, IUnknown *object)
{
    IStream *stream; /* never released, so the marshaled reference remains */
    HRESULT hr = CreateStreamOnHGlobal(NULL, TRUE, &stream);

    if (SUCCEEDED(hr))
        hr = CoMarshalInterface(stream, iid, object, MSHCTX_LOCAL, NULL, MSHLFLAGS_TABLESTRONG);
    return hr;
}

/* The factories are kept too, so that a client that has one can use it after the class is revoked. */
static HRESULT keep_interfaces(void)
{
    HRESULT hr = keep(&credentials, &idle);

    for (int i = 0; SUCCEEDED(hr) && i < class_count; i++)
        hr = keep(&IID_IClassFactory, (IUnknown *)&classes[i].factory);
    return hr;
}

/* ---- replaced system functions of this process */

#define JUMP_SIZE 14

static BOOL write_over(void *at, const void *with, SIZE_T size)
{
    DWORD before;

    if (!at || !VirtualProtect(at, size, PAGE_EXECUTE_READWRITE, &before))
        return FALSE;
    memcpy(at, with, size);
    VirtualProtect(at, size, before, &before);
    return FlushInstructionCache(GetCurrentProcess(), at, size);
}

static void *combase(const char *name)
{
    HMODULE module = LoadLibraryW(L"combase.dll");

    return module ? (void *)GetProcAddress(module, name) : NULL;
}

/* Overwrites the start of a function with a jump, so that all callers in this process, including the DLL, call ours. */
static BOOL replace(void *function, void *with)
{
    BYTE jump[JUMP_SIZE] = {0xff, 0x25, 0, 0, 0, 0}; /* jmp [rip+0], followed by the address */

    memcpy(jump + 6, &with, sizeof(with));
    return write_over(function, jump, sizeof(jump));
}

/* A client gets the process of a class from rpcss, and then the factory from this process, by calling
 * IServiceProvider::QueryService on COM's object for the apartment. After the class is revoked, Wine 8 returns E_FAIL
 * there. A client that called rpcss just before would fail; Windows redirects it to the next process. Our factories
 * remain valid, so our function returns them after the revocation. COM exposes its object once, when it marshals it
 * at the first registration. */

static HRESULT WINAPI provide(IUnknown *self, REFGUID clsid, REFIID iid, void **object)
{
    (void)self;
    *object = NULL;
    for (int i = 0; i < class_count; i++)
        if (IsEqualGUID(clsid, &classes[i].clsid))
            return factory_query(&classes[i].factory, iid, object);
    return E_FAIL;
}

static const IID service_provider = {0x6D5140C1, 0x7436, 0x11CE, {0x80, 0x34, 0x00, 0xAA, 0x00, 0x60, 0x09, 0xFA}};
static BYTE marshal_interface[JUMP_SIZE]; /* CoMarshalInterface's first bytes */
static BOOL provides;

static HRESULT WINAPI watch_marshaling(IStream *stream, REFIID iid, IUnknown *object, DWORD context, void *reserved,
                                       DWORD flags)
{
    void *mine = (void *)provide;

    write_over(combase("CoMarshalInterface"), marshal_interface, JUMP_SIZE);
    if (IsEqualIID(iid, &service_provider))
        provides = write_over((void **)object->lpVtbl + 3, &mine, sizeof(mine));
    return CoMarshalInterface(stream, iid, object, context, reserved, flags);
}

static BOOL replace_functions(void)
{
    void *marshal = combase("CoMarshalInterface");

    if (!marshal)
        return FALSE;
    memcpy(marshal_interface, marshal, JUMP_SIZE);
    return replace(combase("CoSuspendClassObjects"), (void *)suspend_class_objects) &&
           replace(combase("CoResumeClassObjects"), (void *)resume_class_objects) &&
           replace(marshal, (void *)watch_marshaling);
}

/* ---- start */

static BOOL read_class_value(const WCHAR *clsid, const WCHAR *subkey, const WCHAR *value, WCHAR *out, DWORD size)
{
    WCHAR key[128];

    swprintf(key, 128, L"SOFTWARE\\Classes\\CLSID\\%ls%ls", clsid, subkey);
    return !RegGetValueW(HKEY_LOCAL_MACHINE, key, value, RRF_RT_REG_SZ, NULL, out, &size);
}

static BOOL add_class(const WCHAR *name)
{
    struct served *s = &classes[class_count];
    WCHAR path[MAX_PATH];
    HMODULE dll;

    if (class_count == MAX_CLASSES || FAILED(CLSIDFromString(name, &s->clsid)))
        return FALSE;
    if (!read_class_value(name, L"\\InprocServer32", NULL, path, sizeof(path)))
        return TRUE; /* the surrogate ignores a class without a DLL */
    dll = LoadLibraryExW(path, NULL, LOAD_WITH_ALTERED_SEARCH_PATH);
    if (!dll)
        return FALSE;
    s->get_class_object = (void *)GetProcAddress(dll, "DllGetClassObject");
    s->can_unload_now = (void *)GetProcAddress(dll, "DllCanUnloadNow");
    if (!s->get_class_object || !s->can_unload_now)
        return FALSE;
    s->factory.lpVtbl = &factory_vtbl;
    class_count++;
    return TRUE;
}

/* Adds the classes of the AppID on the command line. Windows passes the AppID, Wine 8 the class. */
static BOOL add_classes(const WCHAR *id)
{
    WCHAR appid[64], clsid[64], value[64];
    DWORD length;
    HKEY key;

    if (!read_class_value(id, L"", L"AppID", appid, sizeof(appid)))
        wcsncpy(appid, id, 63)[63] = 0;
    if (RegOpenKeyExW(HKEY_LOCAL_MACHINE, L"SOFTWARE\\Classes\\CLSID", 0, KEY_ENUMERATE_SUB_KEYS, &key))
        return FALSE;
    for (DWORD i = 0; length = 64, !RegEnumKeyExW(key, i, clsid, &length, NULL, NULL, NULL, NULL); i++)
        if (read_class_value(clsid, L"", L"AppID", value, sizeof(value)) && !_wcsicmp(value, appid) &&
            !add_class(clsid))
            return FALSE;
    RegCloseKey(key);
    return class_count > 0;
}

int wmain(int argc, WCHAR **argv)
{
    static const WCHAR option[] = L"/PROCESSID:";
    WCHAR text[16], *id = NULL;
    ULONGLONG used_at;
    DWORD idle_ms = 60000;
    HRESULT hr;

    for (int i = 1; i < argc; i++)
        if (!_wcsnicmp(argv[i], option, wcslen(option)))
            id = argv[i] + wcslen(option);
    if (!id)
        return 2;
    if (GetEnvironmentVariableW(L"SURROGATE_IDLE_MS", text, 16))
        idle_ms = wcstoul(text, NULL, 10);
    if (FAILED(CoInitializeEx(NULL, COINIT_MULTITHREADED)))
        return 3;
    InitializeCriticalSection(&lock);
    if (!add_classes(id))
        return 5;
    if (FAILED(keep_interfaces()))
        return 7;
    if (!replace_functions())
        return 4;
    EnterCriticalSection(&lock);
    hr = register_classes();
    LeaveCriticalSection(&lock);
    if (FAILED(hr) || !provides)
        return 6;

    used_at = GetTickCount64();
    do {
        Sleep(idle_ms < POLL_MS ? idle_ms : POLL_MS);
        if (!unused())
            used_at = GetTickCount64();
        if (GetTickCount64() - used_at >= idle_ms)
            suspend_class_objects();
    } while (!drained() || !unused());
    ExitProcess(0);
}
