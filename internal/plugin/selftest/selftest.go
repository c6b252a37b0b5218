// Package selftest is what the installer asks the plugin to prove that the class activates and answers: an input that is
// no plugin input, and the report that comes back in place of a domain's name. No credential takes part in it.
package selftest

import (
	"encoding/json"
	"fmt"
)

// Input can never be a valid reference: a namespace's name has no question mark, and it has no colon.
const Input = "?self-test"

// Report tells which plugin answered, and as whom.
type Report struct {
	Version  string `json:"version"`
	Identity string `json:"identity"` // the account of the surrogate, such as NT AUTHORITY\NETWORK SERVICE
	Module   string `json:"module"`   // the path of the DLL
	PID      int    `json:"pid"`      // the surrogate
}

// Encode returns the report in the form that Parse reads.
func (r Report) Encode() string {
	b, err := json.Marshal(r)
	if err != nil {
		panic(err) // strings and a number always encode
	}
	return string(b)
}

// Parse reads what the class answered in place of the domain's name.
func Parse(domainName string) (Report, error) {
	var r Report
	if err := json.Unmarshal([]byte(domainName), &r); err != nil {
		return Report{}, fmt.Errorf("the class gave %.80q where a self-test report belongs: another program's class answered", domainName)
	}
	return r, nil
}
