// Command ccg is the emulator of ccg.exe. It reads a credential spec, activates the class PluginGUID in another
// process, and calls it with PluginInput. With --directory it then continues with Active Directory, which it finds
// through the machine's DNS server: it reads the managed password as the impersonation account and gets a Kerberos
// ticket as the gMSA.
//
//	ccg [--show-password] [--directory [--renew-until FILE [--renew-every D]]] <credential-spec.json>
//	ccg [--input <plugin input>] [--class <GUID>] [--calls N] [--parallel P] [--every D] [--while FILE] [--activations]
//	    [<credential-spec.json>]
//
// Without --show-password it prints only a fingerprint of the account's password: the SHA-256 of its UTF-16LE bytes. It
// never prints the managed password. If it fails, it prints {"error": ...} and exits with 1. A failure of the plugin
// has the field hresult. A failure of Active Directory has the fields event (of ccg.exe) and cause.
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

func main() {
	showPassword := flag.Bool("show-password", false, "also print the password")
	input := flag.String("input", "", "plugin input, overrides the credential spec")
	class := flag.String("class", com.CLSID, "class to activate without a credential spec")
	calls := flag.Int("calls", 1, "number of calls; more than one prints counts and latencies instead of credentials")
	parallel := flag.Int("parallel", 1, "number of simultaneous calls, each with its own object")
	while := flag.String("while", "", "with --calls: stop early when this file is deleted")
	every := flag.Duration("every", 0, "with --calls: time between the starts of two calls, if --parallel allows it")
	activations := flag.Bool("activations", false, "activate an object for every call, not one per worker")
	inDirectory := flag.Bool("directory", false, "continue with Active Directory")
	renewUntil := flag.String("renew-until", "", "with --directory: get further tickets until this file is deleted")
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
		answer.GMSA = spec.GMSAName()
		answer.DomainController = g.session.Server()
		answer.Security = string(g.session.Security())
		answer.Ticket = &ticketAnswer{
			Client:         ticket.Client,
			Service:        ticket.Service,
			KDC:            ticket.KDC,
			EncryptionType: ticket.EncryptionType,
			Start:          ticket.Start,
			End:            ticket.End,
			Previous:       ticket.Previous,
		}
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

// readSpec reads a credential spec and is strict about HostAccountConfig. Without a file, the spec has only the class.
func readSpec(args []string, class string) (credspec.Spec, error) {
	if len(args) == 0 {
		host := &credspec.HostAccountConfig{PortableCcgVersion: credspec.CcgVersion, PluginGUID: class}
		return credspec.Spec{ActiveDirectoryConfig: credspec.ActiveDirectoryConfig{HostAccountConfig: host}}, nil
	}
	if len(args) > 1 {
		return credspec.Spec{}, fmt.Errorf("more than one credential spec: %q; put flags before the file", args)
	}
	content, err := os.ReadFile(args[0])
	if err != nil {
		return credspec.Spec{}, err
	}
	// Not credspec.Read: the container runtime passes the JSON to ccg.exe without a check.
	var spec credspec.Spec
	if err := json.Unmarshal(content, &spec); err != nil {
		return credspec.Spec{}, fmt.Errorf("the credential spec is not JSON: %w", err)
	}
	switch host := spec.ActiveDirectoryConfig.HostAccountConfig; {
	case host == nil:
		return credspec.Spec{}, errors.New("the credential spec has no ActiveDirectoryConfig.HostAccountConfig: " +
			"it is for domain-joined hosts, which need no plugin")
	case host.PortableCcgVersion != credspec.CcgVersion:
		return credspec.Spec{}, fmt.Errorf("HostAccountConfig.PortableCcgVersion is %q; set it to %q",
			host.PortableCcgVersion, credspec.CcgVersion)
	case len(host.PluginGUID) != 38 || host.PluginGUID[0] != '{' || host.PluginGUID[37] != '}':
		return credspec.Spec{}, fmt.Errorf("HostAccountConfig.PluginGUID is %q; set it to the class in braces",
			host.PluginGUID)
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
	PasswordUTF16       []uint16 `json:"passwordUTF16,omitempty"` // JSON strings cannot hold unpaired surrogates

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
	Previous       bool      `json:"previous"` // the KDC accepted the previous managed password
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

// fail prints the error, with the HRESULT if COM or the plugin returned one, and exits.
func fail(err error) {
	answer := map[string]string{"error": err.Error()}
	if code, ok := hresult(err); ok {
		answer["hresult"] = code
	}
	print(answer)
	os.Exit(1)
}

// failInDirectory prints an error of the plugin or of Active Directory and exits.
func failInDirectory(g *gMSA, account com.Result, err error) {
	if _, plugin := hresult(err); plugin {
		fail(err)
	}
	print(map[string]any{
		"event":    8,
		"error":    g.failure(err),
		"cause":    causeName(err),
		"domain":   account.DomainName,
		"username": account.Username,
	})
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
