package main

import (
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"
)

// Attack: strangers open connections, with a handshake or without, and keep them. An API server finds room all the while, on the
// connection that it has and on a new one.
func TestStrangersMakeRoomForWhoAsksNow(t *testing.T) {
	t.Parallel()
	c := &crowd{all: map[net.Conn]bool{}}
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok") }))
	server.Config.ConnState = c.connState
	server.EnableHTTP2 = true
	server.StartTLS()
	defer server.Close()
	address := server.Listener.Addr().String()

	newClient := func() *http.Client {
		transport := server.Client().Transport.(*http.Transport).Clone()
		t.Cleanup(transport.CloseIdleConnections)
		return &http.Client{Transport: transport, Timeout: 10 * time.Second}
	}
	apiServer := newClient()
	ask := func(client *http.Client) {
		t.Helper()
		resp, err := client.Get(server.URL)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if body, err := io.ReadAll(resp.Body); err != nil || string(body) != "ok" {
			t.Fatal(string(body), err)
		}
	}
	ask(apiServer)
	for i := range maxConnections + 100 {
		conn, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		if i%2 == 0 {
			// One that was closed meanwhile is what this is about.
			_ = tls.Client(conn, &tls.Config{InsecureSkipVerify: true}).Handshake()
		}
		if i%50 == 0 {
			ask(apiServer)
		}
	}
	ask(apiServer)
	ask(newClient())
	c.mu.Lock()
	defer c.mu.Unlock()
	if n := len(c.all); n > maxConnections {
		t.Errorf("%d connections are held, %d are the most", n, maxConnections)
	}
}
