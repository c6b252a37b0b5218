// Package cause is the table of all causes that the plugin reports: the HRESULT for ccg.exe, the event in the
// Application log, the meaning and the remedy. The DLL's message table and docs/errors.md are generated from it. It
// contains only data, so that other programs can explain an HRESULT without linking the plugin.
package cause

import "fmt"

// Severity is the severity of an event, as in the two highest bits of a message identifier ([MS-ERREF] 2.1).
type Severity uint32

const (
	Informational Severity = 1
	Warning       Severity = 2
	Error         Severity = 3
)

func (s Severity) String() string {
	switch s {
	case Informational:
		return "Informational"
	case Warning:
		return "Warning"
	case Error:
		return "Error"
	}
	return fmt.Sprintf("Severity(%d)", uint32(s))
}

// Cause is one entry of the table.
type Cause struct {
	Name     string // stable; for a problem of the provider, its problem code
	HResult  uint32 // 0 if the entry is not a failure
	Event    uint16 // identifier in the Application log, source CCGRKC
	Severity Severity
	Text     string // what happened: one sentence
	Remedy   string // what to do; empty if the entry is not a failure
	Retry    bool   // whether it can disappear within the budget of one call
}

// HRESULTs of COM, used with their standard meaning.
const (
	eUnexpected  = 0x8000FFFF
	ePointer     = 0x80004003
	eOutOfMemory = 0x8007000E
	eInvalidArg  = 0x80070057
)

// own is the base of the plugin's own HRESULTs: failure, customer bit, FACILITY_ITF ([MS-ERREF] 2.1). The customer bit
// separates them from Microsoft's. The low word identifies the cause and is never reused.
const own = 0xA0040000

var (
	// Loaded is the only entry that is not a failure.
	Loaded = &Cause{
		Name: "loaded", Event: 1, Severity: Informational,
		Text: "The CCGRKC plugin was loaded.",
	}

	InvalidInput = &Cause{
		Name: "invalid-input", HResult: eInvalidArg, Event: 10, Severity: Error,
		Text: "The plugin input does not have the form <namespace>:<secret>.",
		Remedy: "Correct credspec.ActiveDirectoryConfig.HostAccountConfig.PluginInput in the GMSACredentialSpec " +
			"(kubectl edit gmsacredentialspec <name>). It consists of the namespace of the Account Provider's " +
			"release, a colon and the name of the Secret, for example gmsa-system:web-creds.",
	}
	OutOfMemory = &Cause{
		Name: "out-of-memory", HResult: eOutOfMemory, Event: 11, Severity: Error,
		Text:   "Windows had no memory for the response to ccg.exe.",
		Remedy: "Free memory on this node.",
	}
	Unexpected = &Cause{
		Name: "unexpected", HResult: eUnexpected, Event: 12, Severity: Error,
		Text:   "The call failed because of an internal error of the plugin.",
		Remedy: "This is a bug. Report it with this event and the version of the plugin.",
	}
	NullPointer = &Cause{
		Name: "null-pointer", HResult: ePointer, Event: 13, Severity: Error,
		Text:   "The caller passed a null pointer to the plugin.",
		Remedy: "ccg.exe never does that. Find the program that calls the plugin. Only ccg.exe should call it.",
	}

	EndpointAbsent = &Cause{
		Name: "endpoint-absent", HResult: own | 1, Event: 21, Severity: Error, Retry: true,
		Text: "No Account Provider has published an endpoint for this account on this node.",
		Remedy: "Check that its pod runs on this node (kubectl get pods -n <namespace> -o wide), that the chart's " +
			"nodeSelector selects the node, and that the plugin input specifies the release's Secret.",
	}
	EndpointDamaged = &Cause{
		Name: "endpoint-damaged", HResult: own | 2, Event: 22, Severity: Error, Retry: true,
		Text: "The endpoint that the Account Provider published on this node is incomplete or cannot be used.",
		Remedy: "Restart the Account Provider's pod on this node (kubectl delete pod -n <namespace> <pod>). It " +
			"publishes a new endpoint. If the error returns, check for a full disk or for a program that deletes " +
			"files.",
	}
	EndpointUntrusted = &Cause{
		Name: "endpoint-untrusted", HResult: own | 3, Event: 23, Severity: Error,
		Text: "An endpoint file, or a directory above it, is a link or is owned by a regular user.",
		Remedy: "The event lists the path and its owner, who is not an administrator. Find out who created it, " +
			"delete it, and restart the Account Provider's pod on this node (kubectl delete pod -n <namespace> " +
			"<pod>).",
	}
	EndpointUnreadable = &Cause{
		Name: "endpoint-unreadable", HResult: own | 4, Event: 24, Severity: Error,
		// Windows also returns "access denied" while a file is being deleted.
		Retry: true,
		Text:  "The plugin identity has no permission to read the endpoint.",
		Remedy: "Set the same plugin identity in the values of the plugin installer and of the Account Provider, " +
			"then restart the Account Provider's pod on this node.",
	}
	ProviderUnreachable = &Cause{
		Name: "provider-unreachable", HResult: own | 5, Event: 25, Severity: Error, Retry: true,
		Text: "The Account Provider does not respond on the port of its endpoint.",
		Remedy: "Check that its pod on this node is ready, and check its log (kubectl get pods -n <namespace> -o " +
			"wide; kubectl logs -n <namespace> <pod>).",
	}
	ProviderForeign = &Cause{
		Name: "provider-foreign", HResult: own | 6, Event: 26, Severity: Error, Retry: true,
		Text: "The server on the endpoint's port is not this account's Account Provider, or it rejects the " +
			"endpoint's client certificate. The plugin sent no request.",
		Remedy: "Restart the Account Provider's pod on this node (kubectl delete pod -n <namespace> <pod>). If you " +
			"use custom certificates, check that the same CA issued the server and the client certificate, that both " +
			"are valid now, and that both contain this account's name. If another program uses the port, find it " +
			"(netstat -abno).",
	}
	SecretNotFound = &Cause{
		Name: "secret-not-found", HResult: own | 7, Event: 27, Severity: Error,
		Text: "The Secret with the impersonation account's credentials does not exist.",
		Remedy: "Create it: kubectl create secret generic -n <namespace> <secret> " +
			"--from-literal=domainName=corp.example.com --from-literal=username=<account> " +
			"--from-file=password=<file>.",
	}
	SecretInvalid = &Cause{
		Name: "secret-invalid", HResult: own | 8, Event: 28, Severity: Error,
		Text:   "The Secret does not contain valid credentials.",
		Remedy: "Correct the key that the event specifies: kubectl edit secret -n <namespace> <secret>.",
	}
	Forbidden = &Cause{
		Name: "forbidden", HResult: own | 9, Event: 29, Severity: Error,
		Text: "The Account Provider has no permission to read the Secret.",
		Remedy: "Restore the release's Role and RoleBinding (helm upgrade). Then check: kubectl auth can-i get " +
			"secret/<secret> -n <namespace> --as=system:serviceaccount:<namespace>:<serviceaccount>.",
	}
	Unavailable = &Cause{
		Name: "unavailable", HResult: own | 10, Event: 30, Severity: Error, Retry: true,
		Text: "The Account Provider cannot reach the Kubernetes API server and has no cached credentials.",
		Remedy: "Restore this node's connection to the API server. The Account Provider's log contains the error " +
			"(kubectl logs -n <namespace> <pod>).",
	}
	ResponseInvalid = &Cause{
		Name: "response-invalid", HResult: own | 11, Event: 31, Severity: Error,
		Text: "The plugin received an invalid response from the Account Provider.",
		Remedy: "Upgrade the charts rancher-gmsa-plugin-installer and rancher-gmsa-account-provider to the same " +
			"version.",
	}
)

// All lists the table in the order of the events' identifiers.
var All = []*Cause{
	Loaded,
	InvalidInput, OutOfMemory, Unexpected, NullPointer,
	EndpointAbsent, EndpointDamaged, EndpointUntrusted, EndpointUnreadable, ProviderUnreachable, ProviderForeign,
	SecretNotFound, SecretInvalid, Forbidden, Unavailable, ResponseInvalid,
}

// MessageID is the identifier in the message table and for ReportEvent: the severity in the two highest bits, facility
// 0. Event Viewer shows the low word, which is Event.
func (c *Cause) MessageID() uint32 { return uint32(c.Severity)<<30 | uint32(c.Event) }

// OfHResult returns the cause with this HRESULT, or nil.
func OfHResult(hr uint32) *Cause {
	for _, c := range All {
		if c.HResult == hr && hr != 0 {
			return c
		}
	}
	return nil
}
