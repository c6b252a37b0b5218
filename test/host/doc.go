// Package host contains only tests of the built programs on a Windows host, with its COM, registry and file system. They
// install and uninstall the plugin and must run as SYSTEM; see docs/testing-on-windows.md. The lab runs them under Wine,
// except those whose names end with OnWindowsOnly.
package host
