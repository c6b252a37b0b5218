package kube

import (
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// start serves handler over TLS and returns a client of it. A real API server does not answer wrongly on demand.
func start(t *testing.T, handler http.HandlerFunc) *Client {
	t.Helper()
	s := httptest.NewTLSServer(handler)
	t.Cleanup(s.Close)
	dir := t.TempDir()
	server := Server{URL: s.URL, TokenFile: filepath.Join(dir, "token"), CAFile: filepath.Join(dir, "ca.crt")}
	for file, content := range map[string][]byte{
		server.TokenFile: []byte("a-token\n"),
		server.CAFile:    pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw}),
	} {
		if err := os.WriteFile(file, content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	c, err := NewClient(server, "test/1")
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestCallSendsWhatTheBodyIs(t *testing.T) {
	type seen struct{ method, contentType, accept, token, agent, body string }
	var got seen
	c := start(t, func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		got = seen{r.Method, r.Header.Get("Content-Type"), r.Header.Get("Accept"), r.Header.Get("Authorization"), r.UserAgent(), string(body)}
		fmt.Fprint(w, `{"a":"b"}`)
	})
	for _, call := range []struct {
		method string
		body   any
		want   seen
	}{
		{http.MethodGet, nil, seen{"GET", "", "application/json", "Bearer a-token", "test/1", ""}},
		{http.MethodPost, map[string]int{"x": 1}, seen{"POST", "application/json", "application/json", "Bearer a-token", "test/1", `{"x":1}`}},
		{http.MethodPatch, JSONPatch{{Op: "add", Path: "/a/0", Value: "<b>"}, {Op: "remove", Path: "/c"}},
			seen{"PATCH", "application/json-patch+json", "application/json", "Bearer a-token", "test/1", `[{"op":"add","path":"/a/0","value":"\u003cb\u003e"},{"op":"remove","path":"/c"}]`}},
	} {
		var into map[string]string
		if err := c.Call(t.Context(), call.method, c.URL(nil, "api"), call.body, &into); err != nil || into["a"] != "b" {
			t.Errorf("%s: %v, %v", call.method, err, into)
		}
		if got != call.want {
			t.Errorf("%+v\nwant %+v", got, call.want)
		}
	}
}

func TestCallTellsWhatTheAPIServerRefused(t *testing.T) {
	for name, c := range map[string]struct {
		code int
		body string
		want StatusError
		says string
	}{
		"Status": {http.StatusNotFound, `{"kind":"Status","code":404,"reason":"NotFound","message":"secrets \"x\" not found","details":{"name":"x","kind":"secrets"}}`,
			StatusError{Code: 404, Reason: "NotFound", Message: `secrets "x" not found`}, `API server: status 404: secrets "x" not found`},
		"Status of another code": {http.StatusConflict, `{"code":200,"message":"changed"}`, StatusError{Code: 409, Message: "changed"}, "API server: status 409: changed"},
		"no Status":              {http.StatusBadGateway, `<html>`, StatusError{Code: 502}, "API server: status 502, no reason given"},
		"empty":                  {http.StatusUnauthorized, ``, StatusError{Code: 401}, "API server: status 401, no reason given"},
		"redirect":               {http.StatusFound, ``, StatusError{Code: 302}, "API server: status 302, no reason given"},
	} {
		t.Run(name, func(t *testing.T) {
			client := start(t, func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Location", "/elsewhere")
				w.WriteHeader(c.code)
				fmt.Fprint(w, c.body)
			})
			err := client.Call(t.Context(), http.MethodGet, client.URL(nil, "x"), nil, nil)
			var refusal *StatusError
			if !errors.As(err, &refusal) {
				t.Fatalf("%v is no StatusError", err)
			}
			if name == "Status" {
				c.want.Details.Name, c.want.Details.Kind = "x", "secrets"
			}
			if *refusal != c.want || err.Error() != c.says {
				t.Errorf("%+v, %q; want %+v, %q", *refusal, err, c.want, c.says)
			}
			if wrapped := fmt.Errorf("asking: %w", err); Code(wrapped) != c.code || IsNotFound(wrapped) != (c.code == http.StatusNotFound) {
				t.Errorf("Code %d, IsNotFound %t of status %d", Code(wrapped), IsNotFound(wrapped), c.code)
			}
		})
	}
}

func TestCallTellsWhatIsNoAnswer(t *testing.T) {
	client := start(t, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "hello") })
	at := client.URL(nil, "x")
	var into struct{}
	err := client.Call(t.Context(), http.MethodGet, at, nil, &into)
	var syntax *json.SyntaxError
	if !errors.As(err, &syntax) || !strings.Contains(err.Error(), "GET "+at) || Code(err) != 0 {
		t.Errorf("%v, code %d", err, Code(err))
	}
	// Who wants no answer does not mind which it is.
	if err := client.Call(t.Context(), http.MethodGet, at, nil, nil); err != nil {
		t.Error(err)
	}
	client = start(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", "10")
		fmt.Fprint(w, "{")
	})
	if err := client.Call(t.Context(), http.MethodGet, client.URL(nil, "x"), nil, &into); err == nil || !strings.HasPrefix(err.Error(), "API server: ") || Code(err) != 0 {
		t.Errorf("half an answer: %v", err)
	}
}

func TestCallSendsNothingThatIsNotJSON(t *testing.T) {
	asked := false
	client := start(t, func(http.ResponseWriter, *http.Request) { asked = true })
	if err := client.Call(t.Context(), http.MethodPost, client.URL(nil, "x"), func() {}, nil); err == nil || asked {
		t.Errorf("%v, asked %t", err, asked)
	}
}
