package kube_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ccgrkc/ccgrkc/internal/kube"
	"github.com/ccgrkc/ccgrkc/internal/kube/kubetest"
)

// The refusals of a kube-apiserver 1.36 for the requests that the product's pods make, and what looks like one.
func TestARefusalIsAVerdictOnlyIfItNamesTheObject(t *testing.T) {
	type object = map[string]any
	tokenRequest := object{"spec": object{"boundObjectRef": object{"kind": "Secret", "name": "web-creds"}}}
	get, post, del := http.MethodGet, http.MethodPost, http.MethodDelete
	secret := []string{"api", "v1", "namespaces", "gmsa", "secrets", "web-creds"}
	spec := []string{"apis", "windows.k8s.io", "v1", "gmsacredentialspecs", "web"}
	token := []string{"api", "v1", "namespaces", "gmsa", "serviceaccounts", "gmsa-secret-web", "token"}
	daemonSet := []string{"apis", "apps", "v1", "namespaces", "gmsa", "daemonsets", "web"}
	pods := []string{"api", "v1", "namespaces", "gmsa", "pods"}
	ofDaemonSet := `{"name":"web","group":"apps","kind":"daemonsets"}`
	status := func(details string) string { return `{"kind":"Status","message":"no","details":` + details + `}` }
	for name, c := range map[string]struct {
		method   string
		path     []string
		body     any
		code     int
		response string
		verdict  bool
	}{
		"a forbidden Secret": {get, secret, nil, 403, status(`{"name":"web-creds","kind":"secrets"}`), true},
		"a missing Secret":   {get, secret, nil, 404, status(`{"name":"web-creds","kind":"secrets"}`), true},
		"a rejected token":   {get, secret, nil, 401, `{"kind":"Status","reason":"Unauthorized"}`, true},
		"a forbidden GMSACredentialSpec": {
			get, spec, nil, 403,
			status(`{"name":"web","group":"windows.k8s.io","kind":"gmsacredentialspecs"}`), true,
		},
		"a missing GMSACredentialSpec": {
			get, spec, nil, 404,
			status(`{"name":"web","group":"windows.k8s.io","kind":"gmsacredentialspecs"}`), true,
		},
		"a forbidden token": {
			post, token, tokenRequest, 403, status(`{"name":"gmsa-secret-web","kind":"serviceaccounts"}`), true,
		},
		"a token of a missing ServiceAccount": {
			post, token, tokenRequest, 404, status(`{"name":"gmsa-secret-web","kind":"serviceaccounts"}`), true,
		},
		"a token bound to a missing Secret": {
			post, token, tokenRequest, 404, status(`{"name":"web-creds","kind":"secrets"}`), true,
		},
		"a token in a missing namespace": {
			post, token, tokenRequest, 404, status(`{"name":"gmsa","kind":"namespaces"}`), true,
		},
		"a forbidden DaemonSet": {del, daemonSet, nil, 403, status(ofDaemonSet), true},
		"a missing DaemonSet":   {del, daemonSet, nil, 404, status(ofDaemonSet), true},
		"a forbidden list":      {get, pods, nil, 403, status(`{"kind":"pods"}`), true},

		"another name":       {get, secret, nil, 404, status(`{"name":"shop-creds","kind":"secrets"}`), false},
		"another kind":       {get, secret, nil, 404, status(`{"name":"web-creds","kind":"configmaps"}`), false},
		"no name":            {get, secret, nil, 403, status(`{"kind":"secrets"}`), false},
		"no details":         {get, secret, nil, 403, `{"kind":"Status","message":"no"}`, false},
		"a list with a name": {get, pods, nil, 403, status(`{"name":"gmsa","kind":"pods"}`), false},
		"no Status": {
			get, secret, nil, 404, `{"kind":"Secret","details":{"name":"web-creds","kind":"secrets"}}`, false,
		},
		"another group": {
			del, daemonSet, nil, 404, status(`{"name":"web","group":"x","kind":"daemonsets"}`), false,
		},
		"another Secret of a token": {
			post, token, tokenRequest, 404, status(`{"name":"shop-creds","kind":"secrets"}`), false,
		},
		"a proxy's 401":  {get, secret, nil, 401, `<html>`, false},
		"a proxy's 403":  {get, secret, nil, 403, `<html>`, false},
		"a proxy's 404":  {get, secret, nil, 404, `<html>`, false},
		"an empty 404":   {get, secret, nil, 404, ``, false},
		"an unknown URL": {get, []string{"x"}, nil, 404, status(`{"name":"","kind":""}`), false},
	} {
		t.Run(name, func(t *testing.T) {
			client := start(t, func(w http.ResponseWriter, _ *http.Request) {
				w.WriteHeader(c.code)
				fmt.Fprint(w, c.response)
			})
			err := client.Call(t.Context(), c.method, client.URL(nil, c.path...), c.body, nil)
			want := 0
			if c.verdict {
				want = c.code
			}
			if err == nil || kube.Code(err) != want {
				t.Errorf("%v, code %d, want %d", err, kube.Code(err), want)
			}
		})
	}
}

// secretOf calls Get for a Secret.
func secretOf(ctx context.Context, c *kube.Client) error {
	_, _, err := c.Get(ctx, c.URL(nil, "api", "v1", "namespaces", "gmsa", "secrets", "web-creds"), 1<<20)
	return err
}

func respond(code int) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		if code/100 == 2 {
			fmt.Fprint(w, "{}")
			return
		}
		kubetest.Status(w, code, "", "", "refused")
	}
}

// Attack: an API server that starts refuses everything until its RBAC caches are filled.
func TestARefusalOfAStartingAPIServerIsNotAVerdict(t *testing.T) {
	for _, refusal := range []int{401, 403, 404} {
		api := kubetest.NewServer(t, respond(refusal))
		client := api.Client(t, "test")
		for _, code := range []int{500, 503} {
			api.Readyz(respond(code))
			err := secretOf(t.Context(), client)
			if err == nil || kube.Code(err) != 0 || !strings.Contains(err.Error(), fmt.Sprint("status ", refusal)) {
				t.Errorf("status %d with /readyz %d: %v", refusal, code, err)
			}
		}
		api.Readyz(respond(200))
		if err := secretOf(t.Context(), client); kube.Code(err) != refusal {
			t.Errorf("status %d of a ready API server: %v", refusal, err)
		}
		api.Readyz(func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) })
		if err := secretOf(t.Context(), client); err == nil || kube.Code(err) != 0 {
			t.Errorf("status %d, and then the connection ends: %v", refusal, err)
		}
	}
}

// The API server becomes ready between its refusal and the response to /readyz.
func TestARefusalBeforeTheAPIServerWasReadyIsNotAVerdict(t *testing.T) {
	ready := false // the requests are sequential
	api := kubetest.NewServer(t, func(w http.ResponseWriter, r *http.Request) {
		if !ready {
			respond(403)(w, r)
			return
		}
		respond(200)(w, r)
	})
	api.Readyz(func(w http.ResponseWriter, _ *http.Request) { ready = true })
	if err := secretOf(t.Context(), api.NewClient(t, "test")); err != nil {
		t.Error(err)
	}
}

// A ready API server that refuses repeatedly costs one more request each time.
func TestAVerdictOfAKnownConnectionCostsOneMoreRequest(t *testing.T) {
	api := kubetest.NewServer(t, respond(404))
	client := api.NewClient(t, "test")
	for range 5 {
		if err := secretOf(t.Context(), client); kube.Code(err) != 404 {
			t.Fatal(err)
		}
	}
	if got, asked := len(api.Requests("GET")), api.ReadyzRequests(); got != 6 || asked != 6 {
		t.Errorf("%d requests and %d for /readyz, want 6 and 6", got, asked)
	}
}

// Two API servers share an address. One is starting, and keeps no connection or all. Its refusals are never confirmed
// by the other one.
func TestAnotherAPIServerConfirmsNoRefusal(t *testing.T) {
	for _, keep := range []bool{true, false} {
		starting := kubetest.NewServer(t, func(w http.ResponseWriter, r *http.Request) {
			if !keep {
				w.Header().Set("Connection", "close")
			}
			respond(403)(w, r)
		})
		starting.Readyz(respond(500))
		ready := kubetest.NewServer(t, respond(200))
		client := ready.NewClient(t, "test")
		client.KeepIdle(4)
		var dials atomic.Int64
		client.DialWith(func(ctx context.Context, network, _ string) (net.Conn, error) {
			to := ready
			if dials.Add(1)%2 == 0 {
				to = starting
			}
			return (&net.Dialer{}).DialContext(ctx, network, to.Listener.Addr().String())
		})
		var calls sync.WaitGroup
		for range 8 {
			calls.Go(func() {
				for range 50 {
					ctx, cancel := context.WithTimeout(t.Context(), time.Second)
					if err := secretOf(ctx, client); kube.Code(err) != 0 {
						t.Errorf("keep-alive %t: %v", keep, err)
					}
					cancel()
				}
			})
		}
		calls.Wait()
		if len(starting.Requests("GET")) == 0 {
			t.Error("the starting API server got no request")
		}
	}
}

// Where /readyz is forbidden, only time tells a verdict from a start.
func TestTheSameRefusalForTwoSecondsIsAVerdictWithoutReadyz(t *testing.T) {
	for name, c := range map[string]struct {
		response func(began time.Time) http.HandlerFunc
		want     int // code; 0: success, -1: another error
		from, to time.Duration
	}{
		"the same refusal": {
			func(time.Time) http.HandlerFunc { return respond(403) },
			403, 2 * time.Second, kube.ConfirmTimeout,
		},
		"success after a second": {
			func(began time.Time) http.HandlerFunc {
				if time.Since(began) < time.Second {
					return respond(403)
				}
				return respond(200)
			},
			0, time.Second, 2 * time.Second,
		},
		"changing refusals": {
			func(began time.Time) http.HandlerFunc { return respond(403 + int(time.Since(began)/time.Second)%2) },
			-1, kube.ConfirmTimeout, kube.ConfirmTimeout,
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				began := time.Now()
				api := kubetest.NewMemoryServer(t, func(w http.ResponseWriter, r *http.Request) {
					c.response(began)(w, r)
				})
				api.Readyz(respond(401))
				err := secretOf(t.Context(), api.NewClient(t, "test"))
				took := time.Since(began)
				code := kube.Code(err)
				if err != nil && code == 0 {
					code = -1
				}
				if code != c.want || took < c.from || took > c.to {
					t.Errorf("%v after %s", err, took)
				}
			})
		})
	}
}

// A proxy that closes every connection can send /readyz to any API server, so only time tells.
func TestWithoutKeepAliveTheSameRefusalForTwoSecondsIsAVerdict(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		closing := func(code int) http.HandlerFunc {
			return func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Connection", "close")
				respond(code)(w, r)
			}
		}
		api := kubetest.NewMemoryServer(t, closing(403))
		api.Readyz(closing(200))
		began := time.Now()
		err := secretOf(t.Context(), api.NewClient(t, "test"))
		took, n := time.Since(began), len(api.Requests("GET"))
		if kube.Code(err) != 403 || took < 2*time.Second || took > kube.ConfirmTimeout || n > 10 {
			t.Errorf("%v after %s and %d requests", err, took, n)
		}
	})
}

// /readyz is asked without a token first, because the token can be the reason of the refusal.
func TestReadyzGetsATokenOnlyIfAnonymousRequestsAreRefused(t *testing.T) {
	api := kubetest.NewServer(t, respond(403))
	client := api.Client(t, "test")
	var tokens []string
	anonymous := 200
	api.Readyz(func(w http.ResponseWriter, r *http.Request) {
		token := r.Header.Get("Authorization")
		tokens = append(tokens, token)
		if token == "" {
			respond(anonymous)(w, r)
		}
	})
	if err := secretOf(t.Context(), client); kube.Code(err) != 403 || strings.Join(tokens, "") != "" {
		t.Errorf("%v, tokens %q", err, tokens)
	}
	anonymous, tokens = 401, nil
	began := time.Now()
	if err := secretOf(t.Context(), client); kube.Code(err) != 403 || time.Since(began) > 2*time.Second {
		t.Errorf("%v after %s", err, time.Since(began))
	}
	if want := []string{"", "Bearer token-1"}; strings.Join(tokens, ",") != strings.Join(want, ",") {
		t.Errorf("tokens %q, want %q", tokens, want)
	}
}

func TestANegativeAccessReviewNeedsAReadyAPIServer(t *testing.T) {
	var allowed atomic.Bool
	api := kubetest.NewServer(t, func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		fmt.Fprintf(w, `{"spec":%s,"status":{"allowed":%t,"evaluationError":"because"}}`, body, allowed.Load())
	})
	client := api.Client(t, "test")
	review := map[string]string{"a": "b"}

	api.Readyz(respond(500))
	if ok, _, err := client.Allowed(t.Context(), review); err == nil || kube.Code(err) != 0 || ok {
		t.Errorf("of a starting API server: %t, %v", ok, err)
	}
	api.Readyz(respond(200))
	if ok, reason, err := client.Allowed(t.Context(), review); err != nil || ok || reason != "because" {
		t.Errorf("of a ready API server: %t, %q, %v", ok, reason, err)
	}
	allowed.Store(true)
	asked := api.ReadyzRequests()
	if ok, _, err := client.Allowed(t.Context(), review); err != nil || !ok || api.ReadyzRequests() != asked {
		t.Errorf("allowed: %t, %v, %d requests for /readyz", ok, err, api.ReadyzRequests()-asked)
	}
}

// An API server without the CustomResourceDefinition responds with text.
func TestAMissingResourceIsNotAVerdict(t *testing.T) {
	api := kubetest.NewServer(t, func(w http.ResponseWriter, r *http.Request) { http.NotFound(w, r) })
	client := api.Client(t, "test")
	at := client.URL(nil, "apis", "windows.k8s.io", "v1", "gmsacredentialspecs", "web")
	for code, want := range map[int]bool{200: true, 500: false} {
		api.Readyz(respond(code))
		err := client.Call(t.Context(), http.MethodGet, at, nil, nil)
		if errors.Is(err, kube.ErrNoResource) != want || err == nil || kube.Code(err) != 0 {
			t.Errorf("/readyz has status %d: %v", code, err)
		}
	}
}
