/* A C program that frees the plugin's DLL more often than it loads it. Wine hides the crash of a Go runtime whose code
 * is unmapped (exit code 0), so the program checks the list of modules.
 *
 *   freelibrary.exe <dll> load     calls no export before freeing
 *   freelibrary.exe <dll> unload   calls DllCanUnloadNow
 *   freelibrary.exe <dll> class    calls DllGetClassObject; creates, counts and releases an object
 *
 * On success the exit code is 0 and the last line is "mapped". On failure it is 1 and a line begins with "FAIL".
 * Build: x86_64-w64-mingw32-gcc -O2 -s -o freelibrary.exe freelibrary.c */
#include <windows.h>
#include <unknwn.h>
#include <tlhelp32.h>
#include <stdio.h>
#include <string.h>

#define CHECK(ok, what) do { if (!(ok)) { printf("FAIL %s\n", what); return 1; } } while (0)

static const GUID clsid = {0xE4781092, 0xF116, 0x4B79, {0xB5, 0x5E, 0x28, 0xEB, 0x6A, 0x22, 0x4E, 0x26}};
static const GUID other = {0xE4781092, 0xF116, 0x4B79, {0xB5, 0x5E, 0x28, 0xEB, 0x6A, 0x22, 0x4E, 0x27}};
static const GUID factory = {0x00000001, 0, 0, {0xC0, 0, 0, 0, 0, 0, 0, 0x46}};
static const GUID unknown = {0x00000000, 0, 0, {0xC0, 0, 0, 0, 0, 0, 0, 0x46}};
static const GUID credentials = {0x6ECDA518, 0x2010, 0x4437, {0x8B, 0xC3, 0x46, 0xE7, 0x52, 0xB7, 0xB1, 0x72}};

typedef HRESULT(WINAPI *get_class_object)(const GUID *, const GUID *, void **);
typedef HRESULT(WINAPI *can_unload_now)(void);

/* The only method of ICcgDomainAuthCredentials follows the three of IUnknown. */
typedef HRESULT(WINAPI *get_password_credentials)(IUnknown *, const WCHAR *, WCHAR **, WCHAR **, WCHAR **);

static int mapped(HMODULE module)
{
    MODULEENTRY32W entry = {.dwSize = sizeof entry};
    HANDLE list = CreateToolhelp32Snapshot(TH32CS_SNAPMODULE, GetCurrentProcessId());
    int found = 0;
    for (BOOL more = Module32FirstW(list, &entry); more; more = Module32NextW(list, &entry))
        found |= entry.hModule == module;
    CloseHandle(list);
    return found;
}

static int use_class(get_class_object get, can_unload_now can_unload)
{
    IClassFactory *f;
    IUnknown *object, *same;
    void *none = &none;
    WCHAR *d = L"", *u = L"", *p = L"";
    get_password_credentials call;

    CHECK(get(&other, &factory, &none) == CLASS_E_CLASSNOTAVAILABLE && !none, "another class is not offered");
    CHECK(get(&clsid, &credentials, &none) == E_NOINTERFACE && !none, "the factory has no other interface");
    CHECK(get(&clsid, &factory, NULL) == E_POINTER, "a null pointer is rejected");
    CHECK(can_unload() == S_OK, "nothing is in use before the first reference");
    CHECK(get(&clsid, &factory, (void **)&f) == S_OK, "DllGetClassObject");
    CHECK(can_unload() == S_FALSE, "the factory is in use");
    none = &none;
    CHECK(f->lpVtbl->CreateInstance(f, (IUnknown *)f, &unknown, &none) == CLASS_E_NOAGGREGATION && !none,
          "no aggregation");
    CHECK(f->lpVtbl->CreateInstance(f, NULL, &credentials, (void **)&object) == S_OK, "CreateInstance");
    CHECK(f->lpVtbl->LockServer(f, TRUE) == S_OK, "LockServer");
    CHECK(f->lpVtbl->Release(f) == 0, "the factory's references are counted");
    CHECK(object->lpVtbl->QueryInterface(object, &unknown, (void **)&same) == S_OK && same == object, "one identity");
    CHECK(same->lpVtbl->Release(same) == 1, "the object's references are counted");

    call = ((get_password_credentials *)object->lpVtbl)[3];
    CHECK(call(object, L"no colon", &d, &u, &p) == E_INVALIDARG && !d && !u && !p,
          "bad input: E_INVALIDARG, null strings");
    d = u = L"";
    CHECK(call(object, L"?self-test", &d, &u, NULL) == E_POINTER && !d && !u, "a null out pointer is rejected");
    CHECK(call(object, NULL, &d, &u, &p) == E_POINTER && !d && !u && !p, "a null input is rejected");
    CHECK(call(object, L"?self-test", &d, &u, &p) == S_OK && *d == '{' && !*u && !*p, "the self-test answers");
    printf("%ls\n", d);
    CoTaskMemFree(d);
    CoTaskMemFree(u);
    CoTaskMemFree(p);

    CHECK(can_unload() == S_FALSE, "the object is in use");
    CHECK(object->lpVtbl->Release(object) == 0, "the object's references are counted");
    CHECK(can_unload() == S_FALSE, "the lock holds");
    CHECK(f->lpVtbl->LockServer(f, FALSE) == S_OK, "LockServer");
    CHECK(can_unload() == S_OK, "nothing is in use after the last release");
    return 0;
}

int main(int argc, char **argv)
{
    setvbuf(stdout, NULL, _IONBF, 0);
    CHECK(argc == 3, "usage: freelibrary.exe <dll> load|unload|class");
    HMODULE module = LoadLibraryA(argv[1]);
    CHECK(module, "LoadLibrary");
    if (!strcmp(argv[2], "load")) {
        for (int i = 0; i < 3; i++)
            FreeLibrary(module);
        CHECK(mapped(module), "the module was unmapped without a call");
    }
    get_class_object get = (get_class_object)(void *)GetProcAddress(module, "DllGetClassObject");
    can_unload_now can_unload = (can_unload_now)(void *)GetProcAddress(module, "DllCanUnloadNow");
    CHECK(get && can_unload, "the two exports");
    CHECK(!GetProcAddress(module, "DllRegisterServer"), "registration is the installer's");
    if (!strcmp(argv[2], "unload"))
        CHECK(can_unload() == S_OK, "nothing is in use");
    if (!strcmp(argv[2], "class") && use_class(get, can_unload))
        return 1;
    for (int i = 0; i < 3; i++)
        FreeLibrary(module);
    Sleep(200); /* time for the runtime's threads to run unmapped code */
    CHECK(mapped(module), "the module was unmapped");
    CHECK(can_unload() == S_OK, "it still answers");
    puts("mapped");
    return 0;
}
