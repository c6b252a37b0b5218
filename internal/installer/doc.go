// Package installer copies the CCG plugin's DLL to a Windows host, registers it with COM and with Container Credential
// Guard, repairs the registration, verifies it with a self-test, and uninstalls it completely.
//
// Install and uninstall are flat lists of steps (install_windows.go, uninstall_windows.go). Each step can be repeated
// and interrupted: if a process is killed at any step, the next install or uninstall repairs the host. The package only
// writes registry values and files. It runs no other program, and it is not a general installer of COM classes.
package installer
