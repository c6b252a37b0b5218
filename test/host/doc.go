// Package host has no code, only tests: of the built programs on a whole Windows host, with COM, the registry and the
// file system as they are. They install the plugin and take it away again, and run as SYSTEM;
// docs/testing-on-windows.md says how. Tests whose names end with OnWindowsOnly show what Wine does not have, the
// others run in the lab too.
package host
