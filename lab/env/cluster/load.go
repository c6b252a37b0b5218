package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
)

// LoadReport is the result of a Load.
type LoadReport struct {
	Calls, Succeeded int
	HResults         map[string]int
	Errors           map[string]int
	ElapsedMs, MaxMs float64
}

// Load makes the emulator on the node call the plugin 20 times per second until end is called. end returns an error if
// a call failed or if the emulator exited early.
func (n *Node) Load(ctx context.Context, input string) (end func() (LoadReport, error), _ error) {
	const file = `C:\lab\load-goes-on`
	if err := os.WriteFile(n.Stage.Node.Path(file), nil, 0o600); err != nil {
		return nil, err
	}
	type result struct {
		out []byte
		err error
	}
	done := make(chan result, 1)
	go func() {
		out, err := n.Stage.CCG(ctx, "--input", input, "--calls", "100000", "--parallel", "4", "--every", "50ms",
			"--while", file)
		done <- result{out, err}
	}()
	return func() (r LoadReport, err error) {
		select {
		case early := <-done:
			return r, fmt.Errorf("the emulator on %s exited early: %w\n%s", n.Name, early.err, early.out)
		default:
		}
		if err := os.Remove(n.Stage.Node.Path(file)); err != nil {
			return r, err
		}
		ended := <-done
		if err := json.Unmarshal(ended.out, &r); err != nil {
			return r, errors.Join(fmt.Errorf("the emulator on %s printed %q", n.Name, ended.out), err, ended.err)
		}
		if r.Calls == 0 || r.Succeeded != r.Calls {
			return r, fmt.Errorf("%s: %d of %d calls succeeded: %v %v",
				n.Name, r.Succeeded, r.Calls, r.HResults, r.Errors)
		}
		return r, nil
	}, nil
}
