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

// Health is the response to a health check. Only clients that can also read the credentials receive it.
type Health struct {
	Version string `json:"version"`
	// Instance identifies the provider: during a rolling update, two providers of an account run on a node.
	Instance string `json:"instance,omitempty"`
	// CacheAgeSeconds is the age of the cached credentials; nil if there are none.
	CacheAgeSeconds *float64 `json:"cacheAgeSeconds,omitempty"`
	// Problem is the code of the last fetch from the API server, empty if it succeeded. Detail contains the remedy.
	Problem credential.ProblemCode `json:"problem,omitempty"`
	Detail  string                 `json:"detail,omitempty"`
}

// Check connects through the published files, as the plugin does, and returns the provider's health. With refresh, the
// provider first reads the Secret, unless its cached credentials are at most 5 seconds old.
func Check(ctx context.Context, root string, ref credential.Reference, refresh bool) (*Health, error) {
	e, err := endpoint.Resolve(root, ref)
	if err != nil {
		return nil, err
	}
	return health(ctx, ref, e, refresh)
}

// health requests the health of the provider that e leads to.
func health(ctx context.Context, ref credential.Reference, e *endpoint.Endpoint, refresh bool) (*Health, error) {
	defer e.Wipe()
	config, err := mtls.ClientConfig(ref, e.CA, e.ClientCert, e.ClientKey)
	if err != nil {
		return nil, err
	}
	client := &http.Client{
		Transport: &http.Transport{TLSClientConfig: config, DisableKeepAlives: true},
		Timeout:   10 * time.Second,
	}
	url := "https://" + net.JoinHostPort("127.0.0.1", strconv.Itoa(int(e.Port))) + "/v1/health"
	if refresh {
		url += "?" + refreshQuery
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, fmt.Errorf("account %s: the provider in the endpoint files does not respond: %w", ref, err)
	}
	defer resp.Body.Close()
	var h Health
	if err := json.NewDecoder(io.LimitReader(resp.Body, 4<<10)).Decode(&h); err != nil ||
		resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("account %s: the provider returned status %d for its health check", ref, resp.StatusCode)
	}
	return &h, nil
}

// ErrInUse is the error of Cleanup if a provider of the account is running.
var ErrInUse = errors.New("a provider of this account is still running")

// Cleanup removes the generations that killed providers of ref left on the host, and returns their number. If the
// provider of a generation responds, Cleanup keeps it and returns ErrInUse. It takes a few seconds: if another provider
// stopped and removed the files, the running one publishes again, and cannot be found until then.
func Cleanup(ctx context.Context, root string, ref credential.Reference) (removed int, _ error) {
	removed, err := removeDead(ctx, root, ref)
	if err != nil {
		return removed, err
	}
	select {
	case <-ctx.Done():
		return removed, ctx.Err()
	case <-time.After(2*watchInterval + time.Second): // it checks every watchInterval, for at most watchInterval
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
		if _, err := health(ctx, ref, e, false); err == nil {
			alive++
		} else {
			dead = append(dead, e.Generation)
		}
	}
	if ctx.Err() != nil {
		return 0, ctx.Err() // a missing response has no meaning then
	}
	if err := endpoint.Remove(root, ref, dead); err != nil {
		return 0, err
	}
	if alive > 0 {
		return len(dead), fmt.Errorf("account %s: %w; stop it first (helm uninstall, or kubectl delete pod)",
			ref, ErrInUse)
	}
	return len(dead), nil
}
