package main

import (
	"encoding/json"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"testing"
	"time"

	"github.com/ccgrkc/ccgrkc/internal/connlimit/connlimittest"
	"github.com/ccgrkc/ccgrkc/internal/credential"
	"github.com/ccgrkc/ccgrkc/internal/endpoint"
	"github.com/ccgrkc/ccgrkc/internal/kube/kubetest"
	"github.com/ccgrkc/ccgrkc/internal/plugin"
)

// With BE_GMSA_ACCOUNT_PROVIDER the test binary runs the program.
func TestMain(m *testing.M) {
	connlimittest.Main()
	if os.Getenv("BE_GMSA_ACCOUNT_PROVIDER") != "" {
		main()
		return
	}
	os.Exit(m.Run())
}

// Attack: 15,000 connections to each port, which their clients hold, from many addresses. Meanwhile calls of the plugin
// succeed, and metrics can be read.
func TestHeldConnectionsBlockNobodyAndNeedLittleMemory(t *testing.T) {
	if os.Getenv("CCGRKC_LAB") != "1" {
		t.Skip("load test: runs in make test")
	}
	ref := credential.Reference{Namespace: "gmsa-system", Secret: "web-creds"}
	secret, err := json.Marshal(map[string]any{"kind": "Secret", "data": map[string][]byte{
		"domainName": []byte("corp.example.com"),
		"username":   []byte("web"),
		"password":   []byte("correct horse battery staple"),
	}})
	if err != nil {
		t.Fatal(err)
	}
	api := kubetest.NewServer(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(secret) })
	access := api.Access(t, t.TempDir())
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	metrics, root := l.Addr().String(), t.TempDir()
	program := exec.Command(os.Args[0], "run", "--namespace", ref.Namespace, "--secret", ref.Secret, "--host-path", root,
		"--metrics-address", metrics, "--kube-api-server", access.URL, "--kube-token-file", access.TokenFile,
		"--kube-ca-file", access.CAFile)
	program.Env = append(os.Environ(), "BE_GMSA_ACCOUNT_PROVIDER=1")
	program.Stderr = os.Stderr
	runtime.LockOSThread() // Pdeathsig depends on the thread
	program.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := program.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = program.Process.Signal(syscall.SIGTERM)
		if err := program.Wait(); err != nil {
			t.Error(err)
		}
	}()

	call := func() time.Duration {
		t.Helper()
		began := time.Now()
		p := plugin.New(plugin.Config{Root: root}) // a new one has no open connection
		c, err := p.Get(t.Context(), ref.String())
		c.Password.Wipe()
		if err != nil {
			t.Fatalf("a call of the plugin failed after %s: %v", time.Since(began), err)
		}
		return time.Since(began)
	}
	call() // waits until the provider has started
	scrape := func() time.Duration {
		t.Helper()
		began := time.Now()
		client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 20 * time.Second}
		resp, err := client.Get("http://" + metrics + "/metrics")
		if err == nil {
			_, err = io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
		}
		if err != nil {
			t.Errorf("the metrics could not be read after %s: %v", time.Since(began), err)
		}
		return time.Since(began)
	}
	e, err := endpoint.Resolve(root, ref)
	if err != nil {
		t.Fatal(err)
	}
	port := (&net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: int(e.Port)}).String()
	attack := connlimittest.Attack{Program: os.Args[0], Targets: []connlimittest.Target{
		{Address: port, Kind: connlimittest.ClientHello, Connections: 15000},
		{Address: metrics, Kind: connlimittest.Header, Connections: 15000},
	}}
	if err := attack.Start(); err != nil {
		t.Fatal(err)
	}
	defer attack.Stop()
	var slowest, slowestScrape time.Duration
	calls := 0
	for after := 0; after < 50; calls++ {
		if attack.Opened() {
			after++
		}
		slowest = max(slowest, call())
		slowestScrape = max(slowestScrape, scrape())
	}
	most, err := connlimittest.Memory(program.Process.Pid, "VmHWM")
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d calls of the plugin, slowest %s; slowest scrape %s; %d KiB resident at most", calls, slowest,
		slowestScrape, most>>10)
	if most > connlimittest.MaxMemory {
		t.Errorf("%d KiB resident at most, want %d", most>>10, connlimittest.MaxMemory>>10)
	}
}
