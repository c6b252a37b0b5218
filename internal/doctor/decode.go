package doctor

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/ccgrkc/ccgrkc/internal/plugin/cause"
)

// Meaning explains a number in a message.
type Meaning struct {
	Code   string `json:"code"` // such as 0xA0040001 or CCG event 6
	Name   string `json:"name"`
	Text   string `json:"text"`
	Remedy string `json:"remedy"`

	rank int // the most specific first
}

var (
	winapi  = regexp.MustCompile(`winapi error #(\d{1,10})`)
	hexCode = regexp.MustCompile(`\b0x[0-9A-Fa-f]{8}\b`)
	// The name of the log and the number of an event, as Windows tools print them or users paste them.
	ccgEvent = regexp.MustCompile(`(?i)(?:Containers-CCG|\bccg\b)[^\n]{0,60}?\bevent(?: id)?[ :#]+(\d{1,2})\b`)
)

// Decode explains the numbers in the message of an event or of a container's state, the most specific first.
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

// facilityNT converts an NTSTATUS to an HRESULT ([MS-ERREF] 2.1, bit N).
const facilityNT = 0x10000000

// Explain explains an HRESULT, an NTSTATUS or an NTSTATUS that was converted to an HRESULT.
func Explain(n uint32) (Meaning, bool) {
	code := fmt.Sprintf("0x%08X", n)
	if c := cause.OfHResult(n); c != nil {
		return Meaning{Code: code, Name: c.Name, Text: "the plugin: " + c.Text, Remedy: c.Remedy, rank: rankPlugin},
			true
	}
	for _, k := range known {
		if n == k.status || n == k.status|facilityNT || k.hresult != 0 && n == k.hresult {
			return Meaning{Code: code, Name: k.name, Text: k.text, Remedy: k.remedy, rank: k.rank}, true
		}
	}
	return Meaning{}, false
}

const (
	checkNode = "Check the node: gmsactl doctor node <node>. For details, read CCG's log: " +
		"Get-WinEvent -LogName Microsoft-Windows-Containers-CCG/Admin -MaxEvents 20."
	checkAD = "Check the credential path: gmsactl verify <credential spec>."
)

// known lists the codes that Windows returns for faults of a gMSA. Values: [MS-ERREF] 2.3.1 (NTSTATUS), 2.2 and 2.1.1
// (HRESULT; for a Win32 code, 0x8007 and the code).
var known = []struct {
	status, hresult    uint32
	name, text, remedy string
	rank               int
}{
	{0xC00000A7, 0x80070544, "STATUS_BAD_VALIDATION_CLASS",
		"Windows could not set up the gMSA's credentials for the container: CCG got no credentials from the plugin, " +
			"or Active " +
			"Directory did not accept them",
		checkNode, rankWindows},
	{0xC0020017, 0x800706BA, "RPC_NT_SERVER_UNAVAILABLE",
		"CCG or the surrogate was unavailable: the plugin is not registered, or the surrogate stopped during the call",
		checkNode, rankWindows},
	{0x80040154, 0x80040154, "REGDB_E_CLASSNOTREG", "the plugin's class is not registered on the node",
		"Check that the installer runs on the node: gmsactl doctor node <node>.", rankEvent},
	{0x80080005, 0x80080005, "CO_E_SERVER_EXEC_FAILURE",
		"the surrogate, the process that loads the plugin, did not start",
		checkNode, rankEvent},
	{0xC0000022, 0x80070005, "STATUS_ACCESS_DENIED",
		"access denied: the caller cannot activate the plugin, or the account cannot read the gMSA's password", checkAD,
		rankEvent},
	{0xC0000064, 0x80070525, "STATUS_NO_SUCH_USER", "the domain has no such account", checkAD, rankDomain},
	{0xC000006A, 0x80070056, "STATUS_WRONG_PASSWORD", "the account's password is wrong", checkAD, rankDomain},
	{0xC000006D, 0x8007052E, "STATUS_LOGON_FAILURE", "user name or password is wrong", checkAD, rankDomain},
	{0xC000006E, 0x8007052F, "STATUS_ACCOUNT_RESTRICTION", "a restriction prevents the account from logging on",
		checkAD, rankDomain},
	{0xC0000071, 0x80070532, "STATUS_PASSWORD_EXPIRED", "the account's password has expired", checkAD, rankDomain},
	{0xC0000072, 0x80070533, "STATUS_ACCOUNT_DISABLED", "the account is disabled", checkAD, rankDomain},
	{0xC0000193, 0x80070701, "STATUS_ACCOUNT_EXPIRED", "the account has expired", checkAD, rankDomain},
	{0xC0000224, 0x80070773, "STATUS_PASSWORD_MUST_CHANGE", "the account must change its password first", checkAD,
		rankDomain},
	{0xC0000234, 0x80070775, "STATUS_ACCOUNT_LOCKED_OUT", "the account is locked out", checkAD, rankDomain},
	{0xC000005E, 0x8007051F, "STATUS_NO_LOGON_SERVERS", "the node cannot reach a domain controller", checkNode,
		rankDomain},
	{0xC00000DF, 0x8007054B, "STATUS_NO_SUCH_DOMAIN", "the domain does not exist, or the node cannot reach it",
		checkNode, rankDomain},
	{0xC0000133, 0x80070576, "STATUS_TIME_DIFFERENCE_AT_DC",
		"the clocks of node and domain controller differ by more than 5 minutes",
		"Synchronize the node's clock: w32tm /resync.", rankDomain},
	{0xC000018B, 0x800706FB, "STATUS_NO_TRUST_SAM_ACCOUNT", "the domain has no account for this computer",
		"Use a credential spec with HostAccountConfig. It requires no computer account.", rankDomain},
	{0x8007203A, 0x8007203A, "ERROR_DS_SERVER_DOWN", "the node cannot reach an LDAP server of the domain", checkNode,
		rankDomain},
	{0x80072030, 0x80072030, "ERROR_DS_NO_SUCH_OBJECT",
		"the object does not exist in the domain; usually the gMSA is missing",
		checkAD, rankDomain},
	{0x80072098, 0x80072098, "ERROR_DS_INSUFF_ACCESS_RIGHTS", "the account does not have permission to read the object",
		checkAD, rankDomain},
	{0x80070774, 0x80070774, "ERROR_DOMAIN_CONTROLLER_NOT_FOUND", "the node finds no domain controller", checkNode,
		rankDomain},
}

// ccgEvents are the events of the log Microsoft-Windows-Containers-CCG/Admin.
var ccgEvents = map[int]struct{ text, remedy string }{
	1: {"CCG instantiated the plug-in", ""},
	2: {"CCG retrieved the gMSA's credentials", ""},
	3: {"CCG could not parse the credential spec", "Check it: gmsactl credspec check <credential spec>."},
	4: {"CCG could not instantiate the plug-in",
		"The plugin is not registered or does not start. Check the node: gmsactl doctor node <node>."},
	6: {"the plug-in returned an error; the event contains its code",
		"Check the Application log for events from source CCGRKC. docs/errors.md lists the codes."},
	7: {"CCG calls the plug-in again because the gMSA's password expired",
		"If event 2 follows, do nothing. A pod requires the provider for as long as it runs."},
	8: {"Active Directory rejected the account or the gMSA", checkAD},
	9: {"CCG could not parse the plug-in's GUID",
		"Write PluginGUID with braces. Check it: gmsactl credspec check <credential spec>."},
}

// ExplainEvent explains an event of CCG's log.
func ExplainEvent(id int) (Meaning, bool) {
	e, ok := ccgEvents[id]
	return Meaning{Code: fmt.Sprintf("CCG event %d", id), Name: "ccg-event", Text: e.text, Remedy: e.remedy,
		rank: rankEvent}, ok
}

// replacePlaceholders replaces names in angle brackets with known values.
func replacePlaceholders(remedy string, names map[string]string) string {
	for name, value := range names {
		if value != "" {
			remedy = strings.ReplaceAll(remedy, "<"+name+">", value)
		}
	}
	return remedy
}
