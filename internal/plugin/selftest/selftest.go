// Package selftest defines the self-test between installer and plugin: a special input, and a report that the plugin
// returns instead of a domain name. It involves no credentials.
package selftest

import (
	"encoding/json"
	"fmt"
)

// Input is never a valid plugin input: it has a question mark and no colon.
const Input = "?self-test"

// Report identifies the plugin that responded, and its account.
type Report struct {
	Version  string `json:"version"`
	Identity string `json:"identity"` // the account of the surrogate, such as NT AUTHORITY\NETWORK SERVICE
	Module   string `json:"module"`   // the path of the DLL
	PID      int    `json:"pid"`      // of the surrogate
}

// Encode returns the form that Parse decodes.
func (r Report) Encode() string {
	b, err := json.Marshal(r)
	if err != nil {
		panic(err) // strings and a number always encode
	}
	return string(b)
}

// Parse decodes the domain name of a self-test response.
func Parse(domainName string) (Report, error) {
	var r Report
	if err := json.Unmarshal([]byte(domainName), &r); err != nil {
		return Report{}, fmt.Errorf("the class returned %.80q instead of a self-test report: it belongs to another "+
			"program",
			domainName)
	}
	return r, nil
}
