// Package cause is the one table of what the plugin can report: the HRESULT that ccg.exe gets, the event that is written
// to the Application log, what it means and what to do. The DLL's message table and docs/errors.md are made from it. It
// is data only, so that whoever meets an HRESULT of the plugin can explain it without linking the plugin.
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
	Name     string // stable; where a problem code of the provider is the cause, the same word
	HResult  uint32 // 0 for the entries that are no failure
	Event    uint16 // identifier in the Application log, source CCGRKC
	Severity Severity
	Text     string // what happened: one sentence
	Remedy   string // what to do; empty for the entries that are no failure
	Retry    bool   // whether it can pass by itself within the budget of one call
}

// The HRESULTs of COM that the plugin uses in their own sense.
const (
	eUnexpected  = 0x8000FFFF
	ePointer     = 0x80004003
	eOutOfMemory = 0x8007000E
	eInvalidArg  = 0x80070057
)

// own is the base of the plugin's own HRESULTs: failure, customer bit, FACILITY_ITF ([MS-ERREF] 2.1). The customer bit
// keeps them apart from all that Microsoft defines; the low word is the plugin's and is never given to another cause.
const own = 0xA0040000

var (
	// Loaded is the one entry that is no failure.
	Loaded = &Cause{
		Name: "loaded", Event: 1, Severity: Informational,
		Text: "The CCGRKC plugin was loaded and serves ccg.exe.",
	}

	InvalidInput = &Cause{
		Name: "invalid-input", HResult: eInvalidArg, Event: 10, Severity: Error,
		Text: "The plugin input is not of the form <namespace>:<secret>.",
		Remedy: "Correct credspec.ActiveDirectoryConfig.HostAccountConfig.PluginInput of the GMSACredentialSpec " +
			"(kubectl edit gmsacredentialspec <name>): the namespace of the Account Provider's release, a colon, the name of the " +
			"Secret, for example gmsa-system:web-creds.",
	}
	OutOfMemory = &Cause{
		Name: "out-of-memory", HResult: eOutOfMemory, Event: 11, Severity: Error,
		Text:   "Windows had no memory for the answer to ccg.exe.",
		Remedy: "Free memory on this node.",
	}
	Unexpected = &Cause{
		Name: "unexpected", HResult: eUnexpected, Event: 12, Severity: Error,
		Text:   "The plugin met an error of its own and refused the call.",
		Remedy: "This is a defect. Report it with this event and the version of the plugin.",
	}
	NullPointer = &Cause{
		Name: "null-pointer", HResult: ePointer, Event: 13, Severity: Error,
		Text:   "The caller passed a null pointer to the plugin.",
		Remedy: "ccg.exe never does that. Find the program that calls the plugin; only ccg.exe should.",
	}

	EndpointAbsent = &Cause{
		Name: "endpoint-absent", HResult: own | 1, Event: 21, Severity: Error, Retry: true,
		Text: "No Account Provider has published an endpoint for this account on this node.",
		Remedy: "See whether its pod runs on this node (kubectl get pods -n <namespace> -o wide), whether the chart's nodeSelector " +
			"covers the node, and whether the plugin input names the release's Secret.",
	}
	EndpointDamaged = &Cause{
		Name: "endpoint-damaged", HResult: own | 2, Event: 22, Severity: Error, Retry: true,
		Text: "The endpoint that the Account Provider published on this node is incomplete or cannot be used.",
		Remedy: "Restart the Account Provider's pod on this node (kubectl delete pod -n <namespace> <pod>); it publishes a new " +
			"endpoint. If it comes back, look for a full disk or a program that deletes files.",
	}
	EndpointUntrusted = &Cause{
		Name: "endpoint-untrusted", HResult: own | 3, Event: 23, Severity: Error,
		Text: "The endpoint's files or a directory above them are a link or belong to an ordinary user.",
		Remedy: "Somebody other than an administrator made what the event names. Find out who, remove it, and restart the Account " +
			"Provider's pod on this node (kubectl delete pod -n <namespace> <pod>).",
	}
	EndpointUnreadable = &Cause{
		Name: "endpoint-unreadable", HResult: own | 4, Event: 24, Severity: Error,
		// A file that is being deleted also answers with "access denied".
		Retry: true,
		Text:  "The identity that the plugin runs as may not read the endpoint.",
		Remedy: "Give the plugin installer and the Account Provider the same plugin identity (charts' values), then restart the " +
			"Account Provider's pod on this node.",
	}
	ProviderUnreachable = &Cause{
		Name: "provider-unreachable", HResult: own | 5, Event: 25, Severity: Error, Retry: true,
		Text: "The Account Provider does not answer on the port of its endpoint.",
		Remedy: "See whether its pod on this node is ready and what it logs (kubectl get pods -n <namespace> -o wide; kubectl logs " +
			"-n <namespace> <pod>).",
	}
	ProviderForeign = &Cause{
		Name: "provider-foreign", HResult: own | 6, Event: 26, Severity: Error, Retry: true,
		Text: "The server on the endpoint's port is not this account's Account Provider, or refuses the endpoint's client certificate. " +
			"It was sent nothing.",
		Remedy: "Restart the Account Provider's pod on this node (kubectl delete pod -n <namespace> <pod>). With certificates of " +
			"your own, see that both come from the same CA, are in date, and carry this account's name. If another program holds the " +
			"port, find it (netstat -abno).",
	}
	SecretNotFound = &Cause{
		Name: "secret-not-found", HResult: own | 7, Event: 27, Severity: Error,
		Text: "The Secret with the impersonation account's credentials does not exist.",
		Remedy: "Create it: kubectl create secret generic -n <namespace> <secret> --from-literal=domainName=corp.example.com " +
			"--from-literal=username=<account> --from-file=password=<file>.",
	}
	SecretInvalid = &Cause{
		Name: "secret-invalid", HResult: own | 8, Event: 28, Severity: Error,
		Text:   "The contents of the Secret are not usable as credentials.",
		Remedy: "Correct the key that the event names: kubectl edit secret -n <namespace> <secret>.",
	}
	Forbidden = &Cause{
		Name: "forbidden", HResult: own | 9, Event: 29, Severity: Error,
		Text: "The Kubernetes API server does not let the Account Provider read the Secret.",
		Remedy: "Restore the release's Role and RoleBinding (helm upgrade) and check with kubectl auth can-i get secret/<secret> " +
			"-n <namespace> --as=system:serviceaccount:<namespace>:<serviceaccount>.",
	}
	Unavailable = &Cause{
		Name: "unavailable", HResult: own | 10, Event: 30, Severity: Error, Retry: true,
		Text: "The Account Provider cannot reach the Kubernetes API server and has no recent copy of the Secret.",
		Remedy: "Restore this node's connection to the API server; the Account Provider's log says what it met (kubectl logs -n " +
			"<namespace> <pod>).",
	}
	ResponseInvalid = &Cause{
		Name: "response-invalid", HResult: own | 11, Event: 31, Severity: Error,
		Text:   "The Account Provider gave an answer that this version of the plugin does not understand.",
		Remedy: "Bring both charts, rancher-gmsa-plugin-installer and rancher-gmsa-account-provider, to the same version.",
	}
)

// All lists the table in the order of the events' identifiers.
var All = []*Cause{
	Loaded,
	InvalidInput, OutOfMemory, Unexpected, NullPointer,
	EndpointAbsent, EndpointDamaged, EndpointUntrusted, EndpointUnreadable, ProviderUnreachable, ProviderForeign,
	SecretNotFound, SecretInvalid, Forbidden, Unavailable, ResponseInvalid,
}

// MessageID is the identifier in the message table, and the one that ReportEvent takes: the severity in the two highest
// bits, facility 0. Event Viewer shows the low word, which is Event.
func (c *Cause) MessageID() uint32 { return uint32(c.Severity)<<30 | uint32(c.Event) }

// OfHResult returns the cause of a failure with this HRESULT, or nil if the plugin has none.
func OfHResult(hr uint32) *Cause {
	for _, c := range All {
		if c.HResult == hr && hr != 0 {
			return c
		}
	}
	return nil
}
