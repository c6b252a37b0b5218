/* probe.dll: a class {11111111-...} with the plugin's interface, for the tests of the surrogate. The plugin input is
 * the command: "pid", "echo:<text>", "suspend" or "fail". It returns the process id as domain, the input as user and
 * the text as password. */
#define COBJMACROS
#define INITGUID
#include <windows.h>
#include <objbase.h>
#include <stdio.h>
#include <wchar.h>

DEFINE_GUID(CLSID_Probe, 0x11111111, 0x2222, 0x3333, 0x44, 0x44, 0x55, 0x55, 0x55, 0x55, 0x55, 0x55);
DEFINE_GUID(IID_Credentials, 0x6ECDA518, 0x2010, 0x4437, 0x8B, 0xC3, 0x46, 0xE7, 0x52, 0xB7, 0xB1, 0x72);

typedef struct object object;
typedef struct {
    HRESULT(WINAPI *query)(object *, REFIID, void **);
    ULONG(WINAPI *addref)(object *);
    ULONG(WINAPI *release)(object *);
    HRESULT(WINAPI *get)(object *, const WCHAR *, WCHAR **, WCHAR **, WCHAR **);
} object_vtbl;
struct object {
    object_vtbl *vtbl;
};

static LONG objects; /* references to the one object; factories do not count */

static HRESULT WINAPI query(object *o, REFIID iid, void **out)
{
    *out = NULL;
    if (!IsEqualIID(iid, &IID_IUnknown) && !IsEqualIID(iid, &IID_Credentials))
        return E_NOINTERFACE;
    *out = o;
    InterlockedIncrement(&objects);
    return S_OK;
}
static ULONG WINAPI addref(object *o) { return (void)o, InterlockedIncrement(&objects); }
static ULONG WINAPI release(object *o) { return (void)o, InterlockedDecrement(&objects); }

static WCHAR *duplicate(const WCHAR *s)
{
    WCHAR *copy = CoTaskMemAlloc((wcslen(s) + 1) * sizeof(WCHAR));
    return wcscpy(copy, s);
}

static HRESULT WINAPI get(object *o, const WCHAR *input, WCHAR **domain, WCHAR **user, WCHAR **password)
{
    WCHAR pid[16];

    (void)o;
    *domain = *user = *password = NULL;
    if (!wcscmp(input, L"fail"))
        return 0x80041234;
    if (!wcscmp(input, L"suspend")) {
        HMODULE ole32 = GetModuleHandleW(L"ole32.dll");
        HRESULT(WINAPI *suspend)(void) = (void *)GetProcAddress(ole32, "CoSuspendClassObjects");
        HRESULT hr = suspend();
        if (FAILED(hr))
            return hr;
    }
    swprintf(pid, 16, L"%lu", GetCurrentProcessId());
    *domain = duplicate(pid);
    *user = duplicate(input);
    *password = duplicate(wcsncmp(input, L"echo:", 5) ? input : input + 5);
    return S_OK;
}

static object_vtbl vtbl = {query, addref, release, get};
static object the_object = {&vtbl};

static HRESULT WINAPI factory_query(IClassFactory *f, REFIID iid, void **out)
{
    *out = IsEqualIID(iid, &IID_IUnknown) || IsEqualIID(iid, &IID_IClassFactory) ? f : NULL;
    return *out ? S_OK : E_NOINTERFACE;
}
static ULONG WINAPI factory_ref(IClassFactory *f) { return (void)f, 2; }
static HRESULT WINAPI factory_create(IClassFactory *f, IUnknown *outer, REFIID iid, void **out)
{
    (void)f;
    *out = NULL;
    return outer ? CLASS_E_NOAGGREGATION : query(&the_object, iid, out);
}
static HRESULT WINAPI factory_lock(IClassFactory *f, BOOL on) { return (void)f, (void)on, S_OK; }
static IClassFactoryVtbl factory_vtbl = {factory_query, factory_ref, factory_ref, factory_create, factory_lock};
static IClassFactory factory = {&factory_vtbl};

__declspec(dllexport) HRESULT WINAPI DllGetClassObject(REFCLSID clsid, REFIID iid, void **out)
{
    *out = NULL;
    return IsEqualGUID(clsid, &CLSID_Probe) ? factory_query(&factory, iid, out) : CLASS_E_CLASSNOTAVAILABLE;
}
__declspec(dllexport) HRESULT WINAPI DllCanUnloadNow(void) { return objects ? S_FALSE : S_OK; }
