#include <windows.h>

// Pins the module while it is being loaded, before the Go runtime has a thread in it: a host that loads the DLL and frees
// it without a call would unmap the code under those threads. The exports pin too, and refuse to work if they cannot.
__attribute__((constructor)) static void pin(void)
{
    HMODULE module;
    GetModuleHandleExW(GET_MODULE_HANDLE_EX_FLAG_PIN | GET_MODULE_HANDLE_EX_FLAG_FROM_ADDRESS, (LPCWSTR)pin, &module);
}
