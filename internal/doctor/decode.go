package doctor

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/ccgrkc/ccgrkc/internal/plugin/cause"
)

// Meaning is what a number in a message means.
type Meaning struct {
	Code   string `json:"code"` // as it is looked up: 0xA0040001, or CCG event 6
	Name   string `json:"name"`
	Text   string `json:"text"`
	Remedy string `json:"remedy"`

	rank int // the most telling first
}

var (
	winapi  = regexp.MustCompile(`winapi error #(\d{1,10})`)
	hexCode = regexp.MustCompile(`\b0x[0-9A-Fa-f]{8}\b`)
	// The log's name and an event's number, as Windows' own tools print them or as people paste them.
	ccgEvent = regexp.MustCompile(`(?i)(?:Containers-CCG|\bccg\b)[^\n]{0,60}?\bevent(?: id)?[ :#]+(\d{1,2})\b`)
)

// Decode explains the numbers in the message of an event or of a container's state, the most telling first.
func Decode(message string) []Meaning {
	var found []Meaning
	add := func(m Meaning, ok bool) {
		if ok && !slices.ContainsFunc(found, func(f Meaning) bool { return f.Code == m.Code }) {
			found = append(found, m)
		}
	}
	for _, m := range winapi.FindAllStringSubmatch(message, -1) {
		if n, err := strconv.ParseUint(m[1], 10, 32); err == nil {
			add(Explain(uint32(n)))
		}
	}
	for _, m := range hexCode.FindAllString(message, -1) {
		if n, err := strconv.ParseUint(m[2:], 16, 32); err == nil {
			add(Explain(uint32(n)))
		}
	}
	for _, m := range ccgEvent.FindAllStringSubmatch(message, -1) {
		if n, err := strconv.Atoi(m[1]); err == nil {
			add(ExplainEvent(n))
		}
	}
	slices.SortStableFunc(found, func(a, b Meaning) int { return a.rank - b.rank })
	return found
}

const (
	rankPlugin = iota
	rankDomain
	rankEvent
	rankWindows
)

// facilityNT makes an HRESULT of an NTSTATUS ([MS-ERREF] 2.1, bit N).
const facilityNT = 0x10000000

// Explain explains an HRESULT, an NTSTATUS or an NTSTATUS that was made an HRESULT.
func Explain(n uint32) (Meaning, bool) {
	code := fmt.Sprintf("0x%08X", n)
	if c := cause.OfHResult(n); c != nil {
		return Meaning{Code: code, Name: c.Name, Text: "the plugin: " + c.Text, Remedy: c.Remedy, rank: rankPlugin}, true
	}
	for _, k := range known {
		if n == k.status || n == k.status|facilityNT || k.hresult != 0 && n == k.hresult {
			return Meaning{Code: code, Name: k.name, Text: k.text, Remedy: k.remedy, rank: k.rank}, true
		}
	}
	return Meaning{}, false
}

const (
	seeNode = "Look at the node from within: gmsactl doctor node <node>. CCG's own log says more: Get-WinEvent -LogName Microsoft-Windows-Containers-CCG/Admin -MaxEvents 20."
	seeAD   = "Follow the way to Active Directory: gmsactl verify <credential spec>."
)

// known are the codes that Windows gives where a gMSA is the reason. Values: [MS-ERREF] 2.3.1 (NTSTATUS), 2.2 and 2.1.1 (HRESULT, of
// a Win32 code 0x8007 and the code).
var known = []struct {
	status, hresult    uint32
	name, text, remedy string
	rank               int
}{
	{0xC00000A7, 0x80070544, "STATUS_BAD_VALIDATION_CLASS", "Windows could not set up the gMSA's credentials for the container: CCG got no credentials from the plugin, or Active Directory did not take them",
		seeNode, rankWindows},
	{0xC0020017, 0x800706BA, "RPC_NT_SERVER_UNAVAILABLE", "CCG, or the process that the plugin runs in, could not be reached: the plugin is not registered, or its process ended during the call",
		seeNode, rankWindows},
	{0x80040154, 0x80040154, "REGDB_E_CLASSNOTREG", "the plugin's class is not registered on the node",
		"See that the installer runs there: gmsactl doctor node <node>.", rankEvent},
	{0x80080005, 0x80080005, "CO_E_SERVER_EXEC_FAILURE", "the process that the plugin runs in did not start", seeNode, rankEvent},
	{0xC0000022, 0x80070005, "STATUS_ACCESS_DENIED", "access denied: the caller may not activate the plugin, or the account may not read the gMSA's password",
		seeAD, rankEvent},
	{0xC0000064, 0x80070525, "STATUS_NO_SUCH_USER", "the domain has no such account", seeAD, rankDomain},
	{0xC000006A, 0x80070056, "STATUS_WRONG_PASSWORD", "the account's password is wrong", seeAD, rankDomain},
	{0xC000006D, 0x8007052E, "STATUS_LOGON_FAILURE", "user name or password is wrong", seeAD, rankDomain},
	{0xC000006E, 0x8007052F, "STATUS_ACCOUNT_RESTRICTION", "a restriction keeps the account from logging on", seeAD, rankDomain},
	{0xC0000071, 0x80070532, "STATUS_PASSWORD_EXPIRED", "the account's password has expired", seeAD, rankDomain},
	{0xC0000072, 0x80070533, "STATUS_ACCOUNT_DISABLED", "the account is disabled", seeAD, rankDomain},
	{0xC0000193, 0x80070701, "STATUS_ACCOUNT_EXPIRED", "the account has expired", seeAD, rankDomain},
	{0xC0000224, 0x80070773, "STATUS_PASSWORD_MUST_CHANGE", "the account must change its password first", seeAD, rankDomain},
	{0xC0000234, 0x80070775, "STATUS_ACCOUNT_LOCKED_OUT", "the account is locked out", seeAD, rankDomain},
	{0xC000005E, 0x8007051F, "STATUS_NO_LOGON_SERVERS", "the node reaches no domain controller", seeNode, rankDomain},
	{0xC00000DF, 0x8007054B, "STATUS_NO_SUCH_DOMAIN", "the domain does not exist, or the node does not reach it", seeNode, rankDomain},
	{0xC0000133, 0x80070576, "STATUS_TIME_DIFFERENCE_AT_DC", "the clocks of node and domain controller differ by more than 5 minutes", "Set the node's clock by NTP: w32tm /resync.", rankDomain},
	{0xC000018B, 0x800706FB, "STATUS_NO_TRUST_SAM_ACCOUNT", "the domain has no account for this computer", "Use a credential spec with HostAccountConfig: it needs no computer account.", rankDomain},
	{0x8007203A, 0x8007203A, "ERROR_DS_SERVER_DOWN", "the node reaches no LDAP server of the domain", seeNode, rankDomain},
	{0x80072030, 0x80072030, "ERROR_DS_NO_SUCH_OBJECT", "the domain has no such object: the gMSA, most likely", seeAD, rankDomain},
	{0x80072098, 0x80072098, "ERROR_DS_INSUFF_ACCESS_RIGHTS", "the account may not read what it asked for", seeAD, rankDomain},
	{0x80070774, 0x80070774, "ERROR_DOMAIN_CONTROLLER_NOT_FOUND", "the node finds no domain controller", seeNode, rankDomain},
}

// ccgEvents are the events of the log Microsoft-Windows-Containers-CCG/Admin.
var ccgEvents = map[int]struct{ text, remedy string }{
	1: {"CCG instantiated the plug-in", ""},
	2: {"CCG fetched the gMSA's credentials", ""},
	3: {"CCG could not parse the credential spec", "Check it: gmsactl credspec check <credential spec>."},
	4: {"CCG could not instantiate the plug-in", "The plugin is not registered, or does not start: gmsactl doctor node <node>."},
	6: {"the plug-in returned an error, whose code is in the event", "The Application log, source CCGRKC, says why; docs/errors.md has the codes."},
	7: {"CCG asks the plug-in again because the gMSA's password expired", "Nothing, if event 2 follows. Providers are needed for the whole life of a pod."},
	8: {"Active Directory refused the account or the gMSA", seeAD},
	9: {"CCG could not parse the plug-in's GUID", "PluginGUID needs braces: gmsactl credspec check <credential spec>."},
}

// ExplainEvent explains an event of CCG's log.
func ExplainEvent(id int) (Meaning, bool) {
	e, ok := ccgEvents[id]
	return Meaning{Code: fmt.Sprintf("CCG event %d", id), Name: "ccg-event", Text: e.text, Remedy: e.remedy, rank: rankEvent}, ok
}

// fill puts what is known in place of the names in angle brackets of a remedy.
func fill(remedy string, names map[string]string) string {
	for name, value := range names {
		if value != "" {
			remedy = strings.ReplaceAll(remedy, "<"+name+">", value)
		}
	}
	return remedy
}
