// Package installer puts the CCG plugin's DLL on a Windows host, registers it with COM and with Container Credential
// Guard, keeps it registered, proves that it activates, and takes it away without a trace.
//
// Every change is an entry of one flat list of steps (install_windows.go, uninstall_windows.go), each of which may be
// repeated and may be cut short: whatever step a process was killed at, the next run of install or uninstall repairs.
// The package writes registry values and files and nothing else: it runs no other program, and it is not a general
// installer of COM classes.
package installer
