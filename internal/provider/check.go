package provider

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"time"

	"github.com/ccgrkc/ccgrkc/internal/credential"
	"github.com/ccgrkc/ccgrkc/internal/endpoint"
	"github.com/ccgrkc/ccgrkc/internal/mtls"
)

// Health is what a provider tells of itself to who may also ask it for the credential.
type Health struct {
	Version string `json:"version"`
	// Instance tells which provider this is: in a rolling update two of an account run on a node.
	Instance string `json:"instance,omitempty"`
	// CopyAgeSeconds is the age of the copy of the Secret; nil: there is none.
	CopyAgeSeconds *float64 `json:"copyAgeSeconds,omitempty"`
	// Problem is the outcome of the last fetch from the API server, empty if it was good. Detail says what to do.
	Problem credential.ProblemCode `json:"problem,omitempty"`
	Detail  string                 `json:"detail,omitempty"`
}

// Check connects through the published files, as the plugin does, and returns what the provider says. With fresh the
// provider first asks the API server for the Secret, unless it has just done so.
func Check(ctx context.Context, root string, ref credential.Reference, fresh bool) (*Health, error) {
	e, err := endpoint.Resolve(root, ref)
	if err != nil {
		return nil, err
	}
	return ask(ctx, ref, e, fresh)
}

// ask gets the health of whoever serves e.
func ask(ctx context.Context, ref credential.Reference, e *endpoint.Endpoint, fresh bool) (*Health, error) {
	defer e.Wipe()
	config, err := mtls.ClientConfig(ref, e.CA, e.ClientCert, e.ClientKey)
	if err != nil {
		return nil, err
	}
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: config, DisableKeepAlives: true}, Timeout: 10 * time.Second}
	url := "https://" + net.JoinHostPort("127.0.0.1", strconv.Itoa(int(e.Port))) + "/v1/health"
	if fresh {
		url += "?" + askNow
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, fmt.Errorf("account %s: the provider that the files name does not answer: %w", ref, err)
	}
	defer resp.Body.Close()
	var h Health
	if err := json.NewDecoder(io.LimitReader(resp.Body, 4<<10)).Decode(&h); err != nil || resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("account %s: the provider answered its health check with status %d", ref, resp.StatusCode)
	}
	return &h, nil
}

// ErrInUse is Cleanup's answer when a provider still serves the account.
var ErrInUse = errors.New("a provider still serves it")

// Cleanup removes what killed providers of ref left on the host, and returns how many generations that were. A generation
// whose provider answers stays, and makes the error ErrInUse. It takes a few seconds: a provider whose files another one
// removed, by ending, publishes them again, and until then nothing tells of it.
func Cleanup(ctx context.Context, root string, ref credential.Reference) (removed int, _ error) {
	removed, err := removeDead(ctx, root, ref)
	if err != nil {
		return removed, err
	}
	select {
	case <-ctx.Done():
		return removed, ctx.Err()
	case <-time.After(2*watchEvery + time.Second): // it looks once in watchEvery, for at most watchEvery
	}
	more, err := removeDead(ctx, root, ref)
	return removed + more, err
}

func removeDead(ctx context.Context, root string, ref credential.Reference) (removed int, _ error) {
	whole, dead, err := endpoint.Generations(root, ref)
	if err != nil {
		return 0, err
	}
	alive := 0
	for _, e := range whole {
		if _, err := ask(ctx, ref, e, false); err == nil {
			alive++
		} else {
			dead = append(dead, e.Generation)
		}
	}
	if ctx.Err() != nil {
		return 0, ctx.Err() // then no answer means nothing
	}
	if err := endpoint.Remove(root, ref, dead); err != nil {
		return 0, err
	}
	if alive > 0 {
		return len(dead), fmt.Errorf("account %s: %w; stop it first (helm uninstall, or kubectl delete of its pod)", ref, ErrInUse)
	}
	return len(dead), nil
}
