// Package eventlog writes the plugin's events to the Application log. The installer registers the event source. The
// texts are in the DLL's message table, which is generated from package cause.
package eventlog

// Source is the name of the event source: HKLM\SYSTEM\CurrentControlSet\Services\EventLog\Application\CCGRKC.
const Source = "CCGRKC"
