/* dllhost.exe: the lab's stand-in for Windows' surrogate process.
 *
 *   dllhost.exe /PROCESSID:{AppID}
 *
 * It loads the in-process classes of an AppID and offers them to other processes, any number of clients at once, from the
 * multithreaded apartment, as Windows does. Wine's own offers a class to one client per process. What it does as
 * Windows does, because a plugin can see it:
 *
 * - A client gets the surrogate's class factory, never the DLL's, so only objects keep the DLL busy.
 * - When DllCanUnloadNow has said S_OK for a minute it takes no more clients, looks again, and exits.
 *   SURROGATE_IDLE_MS, taken from the activating client's environment, replaces the minute.
 * - CoSuspendClassObjects sends new activations to a new process; the old one exits when its objects are gone. It is a
 *   stub in Wine, so it is replaced in this process. An activation that was on its way here still ends well here.
 * - An object that the DLL hands out more than once, or only has one of, is marshaled safely.
 *
 * Wine keeps for ever the references of a client that died; then this process does not end by itself.
 */

#define COBJMACROS
#include <windows.h>
#include <objbase.h>
#include <stdlib.h>
#include <string.h>
#include <wchar.h>

#define MAX_CLASSES 8
#define POLL_MS 500
#define GRACE_MS 10000 /* between an activation's steps: 1 ms for a client, seconds on a busy machine */

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

static CRITICAL_SECTION lock; /* guards what follows */
static BOOL serving;
static ULONGLONG closed_at;

static const IID credentials = {0x6ECDA518, 0x2010, 0x4437, {0x8B, 0xC3, 0x46, 0xE7, 0x52, 0xB7, 0xB1, 0x72}};

/* ---- the objects that clients get */

/* A DLL may hand out one object to everybody. Wine 8 keeps one stub manager for an object, and loses the reference of a
 * client that comes in the moment when the last one goes: its call then fails with RPC_E_DISCONNECTED. So each creation
 * is marshaled as an object of its own, which passes everything on. */
struct passed {
    const struct passed_vtbl *vtbl;
    LONG refs;
    struct passed *inner; /* the DLL's, of the same interface */
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

/* Takes the reference to the DLL's object, on failure too. */
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

/* ---- the class factory that clients get */

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

/* The factories live as long as the process. */
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
    /* The DLL itself is asked, not COM: an upgrade may have registered another one since. */
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

/* ---- serving and not serving; the first two with the lock held */

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

/* No objects and no creation under way. Not with the lock held: the DLL may hold one of its own over a suspension. */
static BOOL unused(void)
{
    for (int i = 0; i < class_count; i++)
        if (classes[i].creating || classes[i].locks > 0 || classes[i].can_unload_now() != S_OK)
            return FALSE;
    return TRUE;
}

/* Revoked, and whoever read a factory before has made its object by now, or never will. */
static BOOL drained(void)
{
    BOOL all;

    EnterCriticalSection(&lock);
    all = !serving && GetTickCount64() - closed_at >= GRACE_MS;
    LeaveCriticalSection(&lock);
    return all;
}

/* ---- a stub that never goes */

/* When the last stub of an interface is released, Wine 8 unregisters the interface and waits for the calls on it to end,
 * in a thread of the pool that is to serve them. If that is the only one, it waits for ever: about once in 600 activations.
 * So an object that does nothing is marshaled once, and never released. */
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
    IStream *stream; /* the marshaled reference lives as long as this is not released */
    HRESULT hr = CreateStreamOnHGlobal(NULL, TRUE, &stream);

    if (SUCCEEDED(hr))
        hr = CoMarshalInterface(stream, iid, object, MSHCTX_LOCAL, NULL, MSHLFLAGS_TABLESTRONG);
    return hr;
}

/* The factories are kept too: a client that has read one when the class is revoked can then still use it. */
static HRESULT keep_interfaces(void)
{
    HRESULT hr = keep(&credentials, &idle);

    for (int i = 0; SUCCEEDED(hr) && i < class_count; i++)
        hr = keep(&IID_IClassFactory, (IUnknown *)&classes[i].factory);
    return hr;
}

/* ---- system functions replaced in this process */

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

/* Makes every caller in this process come to ours, the DLL's own calls included: a jump over the function's first bytes. */
static BOOL replace(void *function, void *with)
{
    BYTE jump[JUMP_SIZE] = {0xff, 0x25, 0, 0, 0, 0}; /* jmp [rip+0], and the address follows */

    memcpy(jump + 6, &with, sizeof(with));
    return write_over(function, jump, sizeof(jump));
}

/* A client asks rpcss where the class is, and then this process for the factory: IServiceProvider::QueryService of an
 * object that COM has for the apartment. Wine 8 answers E_FAIL there once the class is revoked, so a client that asked
 * rpcss just before would fail, where Windows sends it on to the next process. The factories here stay good, so ours
 * answers instead, revoked or not. COM shows its object once, when it marshals it at the first registration. */

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

static HRESULT WINAPI watch_marshaling(IStream *stream, REFIID iid, IUnknown *object, DWORD context, void *reserved, DWORD flags)
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
        return TRUE; /* a class without a DLL is none of the surrogate's */
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

/* Adds the classes whose AppID is the one on the command line. Windows passes the AppID, Wine 8 the class. */
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
        if (read_class_value(clsid, L"", L"AppID", value, sizeof(value)) && !_wcsicmp(value, appid) && !add_class(clsid))
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
