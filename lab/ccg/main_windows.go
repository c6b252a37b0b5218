// Command ccg does what ccg.exe does with its plugin: it reads a credential spec, activates the class PluginGUID in another
// process, and asks it for the credentials of PluginInput. It then prints them instead of going to Active Directory.
//
//	ccg [--show-password] <credential-spec.json>
//	ccg [--input <plugin input>] [--class <GUID>] [--calls N] [--parallel P] [--every D] [--while FILE] [--activations] [<credential-spec.json>]
//
// The password is printed as a fingerprint, SHA-256 of its UTF-16LE bytes, unless --show-password is given. On failure it
// prints {"hresult": ..., "error": ...} and exits with 1.
package main

import (
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
	"github.com/ccgrkc/ccgrkc/lab/internal/credspec"
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
	flag.Parse()

	config, err := readConfig(flag.Args(), *class)
	if err != nil {
		fail(err)
	}
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
	result, err := fetch(clsid, config.PluginInput)
	if err != nil {
		fail(err)
	}
	defer result.Password.Wipe()
	print(describe(result, *showPassword, time.Since(begin)))
}

func readConfig(args []string, class string) (credspec.HostAccountConfig, error) {
	if len(args) == 0 {
		return credspec.HostAccountConfig{PortableCcgVersion: "1", PluginGUID: class}, nil
	}
	if len(args) > 1 {
		return credspec.HostAccountConfig{}, fmt.Errorf("more than one credential spec: %q; flags go before it", args)
	}
	content, err := os.ReadFile(args[0])
	if err != nil {
		return credspec.HostAccountConfig{}, err
	}
	return credspec.Parse(content)
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
