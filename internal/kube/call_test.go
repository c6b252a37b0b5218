package kube_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/ccgrkc/ccgrkc/internal/kube"
	"github.com/ccgrkc/ccgrkc/internal/kube/kubetest"
)

func start(t *testing.T, handler http.HandlerFunc) *kube.Client {
	t.Helper()
	return kubetest.NewServer(t, handler).Client(t, "test/1")
}

func TestCallSendsBodyWithItsContentType(t *testing.T) {
	type request struct{ method, contentType, accept, token, agent, body string }
	var got request
	c := start(t, func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		get := r.Header.Get
		got = request{r.Method, get("Content-Type"), get("Accept"), get("Authorization"), r.UserAgent(), string(body)}
		fmt.Fprint(w, `{"a":"b"}`)
	})
	const jsonType = "application/json"
	for _, call := range []struct {
		method            string
		body              any
		wantType, wantRaw string
	}{
		{http.MethodGet, nil, "", ""},
		{http.MethodPost, map[string]int{"x": 1}, jsonType, `{"x":1}`},
		{
			http.MethodPatch,
			kube.JSONPatch{{Op: "add", Path: "/a/0", Value: "<b>"}, {Op: "remove", Path: "/c"}},
			"application/json-patch+json",
			`[{"op":"add","path":"/a/0","value":"\u003cb\u003e"},{"op":"remove","path":"/c"}]`,
		},
	} {
		var into map[string]string
		err := c.Call(t.Context(), call.method, c.URL(nil, "api"), call.body, &into)
		if err != nil || into["a"] != "b" {
			t.Errorf("%s: %v, %v", call.method, err, into)
		}
		want := request{call.method, call.wantType, jsonType, "Bearer token-1", "test/1", call.wantRaw}
		if got != want {
			t.Errorf("%+v\nwant %+v", got, want)
		}
	}
}

func TestCallReturnsErrorResponsesAsStatusError(t *testing.T) {
	const none = " without a message"
	for name, c := range map[string]struct {
		code int
		body string
		want kube.StatusError
		text string
	}{
		"Status": {
			http.StatusNotFound,
			`{"kind":"Status","code":404,"reason":"NotFound","message":"secrets \"x\" not found",` +
				`"details":{"name":"x","kind":"secrets"}}`, // of the requested object, or it is no verdict
			kube.StatusError{Code: 404, Reason: "NotFound", Message: `secrets "x" not found`},
			`API server: status 404: secrets "x" not found`,
		},
		"Status of another code": {
			http.StatusConflict,
			`{"code":200,"message":"changed"}`,
			kube.StatusError{Code: 409, Message: "changed"},
			"API server: status 409: changed",
		},
		"no Status": {http.StatusBadGateway, `<html>`, kube.StatusError{Code: 502}, "API server: status 502" + none},
		"empty":     {http.StatusConflict, ``, kube.StatusError{Code: 409}, "API server: status 409" + none},
		"redirect":  {http.StatusFound, ``, kube.StatusError{Code: 302}, "API server: status 302" + none},
	} {
		t.Run(name, func(t *testing.T) {
			client := start(t, func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Location", "/elsewhere")
				w.WriteHeader(c.code)
				fmt.Fprint(w, c.body)
			})
			at := client.URL(nil, "api", "v1", "namespaces", "gmsa", "secrets", "x")
			err := client.Call(t.Context(), http.MethodGet, at, nil, nil)
			var status *kube.StatusError
			if !errors.As(err, &status) {
				t.Fatalf("%v is not a StatusError", err)
			}
			if name == "Status" {
				c.want.Details.Name, c.want.Details.Kind = "x", "secrets"
			}
			if *status != c.want || err.Error() != c.text {
				t.Errorf("%+v, %q; want %+v, %q", *status, err, c.want, c.text)
			}
			wrapped := fmt.Errorf("wrapped: %w", err)
			if kube.Code(wrapped) != c.code || kube.IsNotFound(wrapped) != (c.code == http.StatusNotFound) {
				t.Errorf("Code %d, IsNotFound %t for status %d", kube.Code(wrapped), kube.IsNotFound(wrapped), c.code)
			}
		})
	}
}

func TestCallFailsWithoutAValidResponse(t *testing.T) {
	client := start(t, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "hello") })
	at := client.URL(nil, "x")
	var into struct{}
	err := client.Call(t.Context(), http.MethodGet, at, nil, &into)
	var syntax *json.SyntaxError
	if !errors.As(err, &syntax) || !strings.Contains(err.Error(), "GET "+at) || kube.Code(err) != 0 {
		t.Errorf("%v, code %d", err, kube.Code(err))
	}
	// Without into, the response is not decoded.
	if err := client.Call(t.Context(), http.MethodGet, at, nil, nil); err != nil {
		t.Error(err)
	}
	client = start(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", "10")
		fmt.Fprint(w, "{")
	})
	err = client.Call(t.Context(), http.MethodGet, client.URL(nil, "x"), nil, &into)
	if err == nil || !strings.HasPrefix(err.Error(), "API server: ") || kube.Code(err) != 0 {
		t.Errorf("incomplete response: %v", err)
	}
}

func TestCallSendsOnlyJSON(t *testing.T) {
	called := false
	client := start(t, func(http.ResponseWriter, *http.Request) { called = true })
	if err := client.Call(t.Context(), http.MethodPost, client.URL(nil, "x"), func() {}, nil); err == nil || called {
		t.Errorf("%v, called %t", err, called)
	}
}
