// Package eventlog writes the plugin's events to the Application log of Windows. The source is registered by the
// installer; the texts are in the DLL's message table, made from package cause.
package eventlog

// Source is the name of the event source: HKLM\SYSTEM\CurrentControlSet\Services\EventLog\Application\CCGRKC.
const Source = "CCGRKC"
