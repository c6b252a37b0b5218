// Command ccg does what ccg.exe does with its plugin: it reads a credential spec, activates the class PluginGUID in another
// process, and asks it for the credentials of PluginInput. With --directory it goes on to Active Directory, which it finds by
// the machine's DNS server: as that account it reads the gMSA's password, and gets a Kerberos ticket as the gMSA.
//
//	ccg [--show-password] [--directory [--renew-until FILE [--renew-every D]]] <credential-spec.json>
//	ccg [--input <plugin input>] [--class <GUID>] [--calls N] [--parallel P] [--every D] [--while FILE] [--activations] [<credential-spec.json>]
//
// The account's password is printed as a fingerprint, SHA-256 of its UTF-16LE bytes, unless --show-password is given; the
// gMSA's is never printed. On failure it prints {"error": ...}, with the hresult if it is the plugin's, or the event of
// ccg.exe and the cause if it is Active Directory's, and exits with 1.
package main

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"time"
	"unicode/utf16"

	"github.com/ccgrkc/ccgrkc/internal/com"
	"github.com/ccgrkc/ccgrkc/internal/credspec"
	"golang.org/x/sys/windows"
)

// pluginClass is this project's plugin, for when there is no credential spec.
const pluginClass = com.CLSID

func main() {
	showPassword := flag.Bool("show-password", false, "print the password too")
	input := flag.String("input", "", "plugin input, instead of the credential spec's")
	class := flag.String("class", pluginClass, "class to activate when there is no credential spec")
	calls := flag.Int("calls", 1, "number of calls; more than one prints counts and latencies instead of credentials")
	parallel := flag.Int("parallel", 1, "calls at the same time, each with an object of its own")
	while := flag.String("while", "", "with --calls: stop, though there are calls left, when this file is gone")
	every := flag.Duration("every", 0, "with --calls: time between the beginnings of two calls, as far as --parallel allows")
	activations := flag.Bool("activations", false, "a new activation for every call, not one for all of a worker's")
	inDirectory := flag.Bool("directory", false, "go on to Active Directory")
	renewUntil := flag.String("renew-until", "", "with --directory: get a ticket again and again until this file is gone")
	renewEvery := flag.Duration("renew-every", time.Second, "with --renew-until: time between two tickets")
	flag.Parse()

	spec, err := readSpec(flag.Args(), *class)
	if err != nil {
		fail(err)
	}
	config := spec.ActiveDirectoryConfig.HostAccountConfig
	flag.Visit(func(f *flag.Flag) {
		if f.Name == "input" {
			config.PluginInput = *input
		}
	})
	clsid, err := windows.GUIDFromString(config.PluginGUID)
	if err != nil {
		fail(fmt.Errorf("PluginGUID %q: %w", config.PluginGUID, err))
	}
	if *calls > 1 || *parallel > 1 {
		report := load(clsid, config.PluginInput, *calls, *parallel, *every, *while, *activations)
		print(report)
		if report.Succeeded != report.Calls {
			os.Exit(1)
		}
		return
	}

	begin := time.Now()
	if *inDirectory {
		g := &gMSA{spec: spec, clsid: clsid}
		defer g.forget()
		result, ticket, err := g.login(context.Background())
		if err != nil {
			failInDirectory(g, result, err)
		}
		answer := describe(result, *showPassword, time.Since(begin))
		result.Password.Wipe()
		answer.GMSA, answer.DomainController, answer.Security = spec.GMSAName(), g.session.Server(), string(g.session.Security())
		answer.Ticket = &ticketAnswer{ticket.Client, ticket.Service, ticket.KDC, ticket.EncryptionType, ticket.Start, ticket.End, ticket.Previous}
		print(answer)
		if *renewUntil != "" {
			g.renew(context.Background(), *renewUntil, *renewEvery)
		}
		return
	}
	result, err := fetch(clsid, config.PluginInput)
	if err != nil {
		fail(err)
	}
	defer result.Password.Wipe()
	print(describe(result, *showPassword, time.Since(begin)))
}

// readSpec reads a credential spec, and is strict about HostAccountConfig. Without one, the spec names a class.
func readSpec(args []string, class string) (credspec.Spec, error) {
	if len(args) == 0 {
		host := &credspec.HostAccountConfig{PortableCcgVersion: credspec.CcgVersion, PluginGUID: class}
		return credspec.Spec{ActiveDirectoryConfig: credspec.ActiveDirectoryConfig{HostAccountConfig: host}}, nil
	}
	if len(args) > 1 {
		return credspec.Spec{}, fmt.Errorf("more than one credential spec: %q; flags go before it", args)
	}
	content, err := os.ReadFile(args[0])
	if err != nil {
		return credspec.Spec{}, err
	}
	// The runtime hands over plain JSON, which ccg.exe takes as it is written.
	var spec credspec.Spec
	if err := json.Unmarshal(content, &spec); err != nil {
		return credspec.Spec{}, fmt.Errorf("the credential spec is not JSON: %w", err)
	}
	switch host := spec.ActiveDirectoryConfig.HostAccountConfig; {
	case host == nil:
		return credspec.Spec{}, errors.New("the credential spec has no ActiveDirectoryConfig.HostAccountConfig: it is one for domain-joined hosts, which need no plugin")
	case host.PortableCcgVersion != credspec.CcgVersion:
		return credspec.Spec{}, fmt.Errorf("HostAccountConfig.PortableCcgVersion is %q; write %q", host.PortableCcgVersion, credspec.CcgVersion)
	case len(host.PluginGUID) != 38 || host.PluginGUID[0] != '{' || host.PluginGUID[37] != '}':
		return credspec.Spec{}, fmt.Errorf("HostAccountConfig.PluginGUID is %q; write the class id with braces", host.PluginGUID)
	}
	return spec, nil
}

func fetch(clsid windows.GUID, input string) (com.Result, error) {
	object, err := com.Activate(clsid)
	if err != nil {
		return com.Result{}, err
	}
	defer object.Release()
	return object.GetPasswordCredentials(input)
}

type credentials struct {
	Domain              string   `json:"domain"`
	Username            string   `json:"username"`
	PasswordFingerprint string   `json:"passwordFingerprint"`
	PasswordUnits       int      `json:"passwordUnits"` // UTF-16 code units
	ElapsedMs           float64  `json:"elapsedMs"`
	Password            *string  `json:"password,omitempty"`
	PasswordUTF16       []uint16 `json:"passwordUTF16,omitempty"` // what JSON's strings cannot hold: unpaired surrogates

	// With --directory.
	GMSA             string        `json:"gmsa,omitempty"`
	DomainController string        `json:"domainController,omitempty"`
	Security         string        `json:"security,omitempty"`
	Ticket           *ticketAnswer `json:"ticket,omitempty"`
}

type ticketAnswer struct {
	Client         string    `json:"client"`
	Service        string    `json:"service"`
	KDC            string    `json:"kdc"`
	EncryptionType string    `json:"encryptionType"`
	Start          time.Time `json:"start"`
	End            time.Time `json:"end"`
	Previous       bool      `json:"previous"` // it was the previous password that was accepted
}

func describe(r com.Result, showPassword bool, elapsed time.Duration) credentials {
	units := r.Password.Reveal()
	c := credentials{
		Domain:              r.DomainName,
		Username:            r.Username,
		PasswordFingerprint: fingerprint(units),
		PasswordUnits:       len(units),
		ElapsedMs:           milliseconds(elapsed),
	}
	if showPassword {
		password := string(utf16.Decode(units))
		c.Password, c.PasswordUTF16 = &password, units
	}
	return c
}

func fingerprint(units []uint16) string {
	bytes := make([]byte, 0, 2*len(units))
	for _, u := range units {
		bytes = binary.LittleEndian.AppendUint16(bytes, u)
	}
	sum := sha256.Sum256(bytes)
	clear(bytes)
	return hex.EncodeToString(sum[:])
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// fail prints the HRESULT, if COM or the plugin gave one, and ends the program.
func fail(err error) {
	answer := map[string]string{"error": err.Error()}
	if code, ok := hresult(err); ok {
		answer["hresult"] = code
	}
	print(answer)
	os.Exit(1)
}

// failInDirectory ends the program because of what the plugin or Active Directory answered.
func failInDirectory(g *gMSA, account com.Result, err error) {
	if _, plugin := hresult(err); plugin {
		fail(err)
	}
	print(map[string]any{"event": 8, "error": g.refusal(err), "cause": causeName(err), "domain": account.DomainName, "username": account.Username})
	os.Exit(1)
}

func hresult(err error) (string, bool) {
	var h com.HRESULT
	if !errors.As(err, &h) {
		return "", false
	}
	return fmt.Sprintf("0x%08X", uint32(h)), true
}

func print(v any) {
	e := json.NewEncoder(os.Stdout)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		fmt.Fprintln(os.Stderr, "ccg:", err)
		os.Exit(1)
	}
}
