// Command bench measures the figures that the documentation claims. It prints each with a baseline from the same run: a
// plain net/http server with TLS 1.3, P-256 and client certificates that returns the same bytes. A figure that exceeds
// its bound does not change the exit code, because a busy machine is not a defect.
package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/ccgrkc/ccgrkc/internal/connlimit/connlimittest"
	"github.com/ccgrkc/ccgrkc/internal/credential"
	"github.com/ccgrkc/ccgrkc/internal/endpoint"
	"github.com/ccgrkc/ccgrkc/internal/mtls"
	"github.com/ccgrkc/ccgrkc/internal/plugin"
	"github.com/ccgrkc/ccgrkc/lab/env/controlplane"
	"github.com/ccgrkc/ccgrkc/lab/env/winnode"
	"github.com/ccgrkc/ccgrkc/lab/internal/child"
)

const (
	rounds        = 20
	callsPerRound = 50
)

var account = controlplane.Account{Namespace: "gmsa-system", Release: "web", Secret: "web-creds"}
var ref = credential.Reference{Namespace: account.Namespace, Secret: account.Secret}

func main() {
	connlimittest.Main()
	if len(os.Args) == 3 && os.Args[1] == "baseline" {
		baseline(os.Args[2])
		return
	}
	// The first signal stops the lab in order. The second one kills this process, and its children with it.
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, cancel)
	err := run(ctx)
	if ctx.Err() != nil {
		err = errors.New("interrupted")
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	dir, err := os.MkdirTemp("", "ccgrkc-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	fmt.Println("starting a control plane and a provider ...")
	cp, err := controlplane.Start(ctx, filepath.Join(dir, "control-plane"))
	if err != nil {
		return err
	}
	defer cp.Stop()
	token := filepath.Join(dir, "token")
	if err := errors.Join(
		cp.CreateNamespace(ctx, account.Namespace),
		cp.CreateAccount(ctx, account),
		cp.PutSecret(ctx, account, map[string][]byte{
			"domainName": []byte("corp.example.com"),
			"username":   []byte("web"),
			"password":   []byte("correct horse battery staple"),
		}),
		cp.WriteServiceAccountFiles(ctx, account, token, time.Hour),
	); err != nil {
		return err
	}

	root := filepath.Join(dir, "host")
	program, err := filepath.Abs(filepath.Join(winnode.Dist(), "gmsa-account-provider"))
	if err != nil {
		return err
	}
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	free.Close()
	metrics := free.Addr().String()
	startProvider := func() (*child.Process, error) {
		cmd := exec.Command(program, "run", "--namespace", account.Namespace, "--secret", account.Secret,
			"--host-path", root, "--log-level", "error", "--metrics-address", metrics, "--kube-api-server", cp.Server,
			"--kube-token-file", filepath.Join(token, "token"), "--kube-ca-file", filepath.Join(token, "ca.crt"))
		cmd.Stderr = os.Stderr
		return child.Start(cmd, syscall.SIGKILL)
	}

	var starts []time.Duration
	var provider *child.Process
	for range 11 {
		if provider != nil {
			stop(provider)
		}
		began := time.Now()
		if provider, err = startProvider(); err != nil {
			return err
		}
		if err := firstAnswer(ctx, root, began.Add(20*time.Second)); err != nil {
			stop(provider)
			return err
		}
		starts = append(starts, time.Since(began))
	}
	defer func() { stop(provider) }()

	m, err := mtls.Issue(ref, time.Now(), time.Hour)
	if err != nil {
		return err
	}
	baselineDir := filepath.Join(dir, "baseline")
	if err := os.MkdirAll(baselineDir, 0o700); err != nil {
		return err
	}
	body, err := credential.Encode(credential.Credential{
		DomainName: "corp.example.com",
		Username:   "web",
		Password:   credential.NewPassword([]byte("correct horse battery staple")),
	})
	if err != nil {
		return err
	}
	for name, data := range map[string][]byte{
		"ca.crt":  m.CA,
		"tls.crt": m.ServerCert,
		"tls.key": m.ServerKey,
		"body":    body,
	} {
		if err := os.WriteFile(filepath.Join(baselineDir, name), data, 0o600); err != nil {
			return err
		}
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	baselineCmd := exec.Command(self, "baseline", baselineDir)
	out, err := baselineCmd.StdoutPipe()
	if err != nil {
		return err
	}
	baselineServer, err := child.Start(baselineCmd, syscall.SIGKILL)
	if err != nil {
		return err
	}
	defer stop(baselineServer)
	var baselineAddress string
	if _, err := fmt.Fscanln(out, &baselineAddress); err != nil {
		return err
	}

	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(m.CA)
	pair, err := tls.X509KeyPair(m.ClientCert, m.ClientKey)
	if err != nil {
		return err
	}
	baselineCall := coldCall("https://"+baselineAddress+"/", &tls.Config{
		MinVersion:   tls.VersionTLS13,
		RootCAs:      pool,
		ServerName:   ref.CertificateName(),
		Certificates: []tls.Certificate{pair},
	})
	e, err := endpoint.Resolve(root, ref)
	if err != nil {
		return err
	}
	config, err := mtls.ClientConfig(ref, e.CA, e.ClientCert, e.ClientKey)
	if err != nil {
		return err
	}
	address := net.JoinHostPort("127.0.0.1", strconv.Itoa(int(e.Port)))
	providerCall := coldCall("https://"+address+"/v1/credentials", config)
	p := plugin.New(plugin.Config{Root: root})
	warmCall := func() error {
		c, err := p.Get(ctx, ref.String())
		c.Password.Wipe()
		return err
	}

	fmt.Printf("\n%-58s %12s %12s %8s %8s\n", "figure", "measured", "baseline", "ratio", "bound")
	for _, clients := range []int{1, 8} {
		// Rounds alternate, so that other load of the machine affects all measurements alike.
		times := map[string][]time.Duration{}
		for round := range rounds {
			for _, c := range []struct {
				name string
				call func() error
			}{{"baseline", baselineCall}, {"cold", providerCall}, {"warm", warmCall}} {
				t, err := measure(ctx, clients, c.call)
				if err != nil {
					return fmt.Errorf("%s: %w", c.name, err)
				}
				if round > 0 { // the first warms up
					times[c.name] = append(times[c.name], t...)
				}
			}
		}
		b := median(times["baseline"])
		ratio(fmt.Sprintf("first call of a plugin, %d client(s), p50", clients), median(times["cold"]), b, 1.10)
		ratio(fmt.Sprintf("further call of a plugin, %d client(s), p50", clients), median(times["warm"]), b, 0.30)
	}
	time.Sleep(5 * time.Second)
	value("provider, process start to first credentials, p50", ms(median(starts)), "300 ms")
	value("provider, idle after these calls, resident memory", fmt.Sprintf("%.1f MiB", rss(provider.PID())), "24 MiB")
	for _, b := range []struct{ name, path, bound string }{
		{"provider, linux/amd64", winnode.Dist() + "/gmsa-account-provider", "20 MB"},
		{"provider, windows/amd64", winnode.Dist() + "/gmsa-account-provider.exe", "20 MB"},
		{"ccg-plugin.dll", winnode.Dist() + "/ccg-plugin.dll", "6 MB"},
		{"gmsactl, linux/amd64", winnode.Dist() + "/gmsactl", "45 MB"},
		{"gmsa-webhook, linux/amd64", winnode.Dist() + "/linux-amd64/gmsa-webhook", "20 MB"},
	} {
		info, err := os.Stat(b.path)
		if err != nil {
			return err
		}
		value("size of "+b.name, fmt.Sprintf("%.1f MB", float64(info.Size())/1e6), b.bound)
	}
	// The plugin keeps connections, and this call opens one.
	coldPluginCall := func() error {
		c, err := plugin.New(plugin.Config{Root: root}).Get(ctx, ref.String())
		c.Password.Wipe()
		return err
	}
	if err := attack("provider", provider, coldPluginCall,
		connlimittest.Target{Address: address, Kind: connlimittest.ClientHello, Connections: hostileConnections},
		connlimittest.Target{Address: metrics, Kind: connlimittest.Header, Connections: hostileConnections},
	); err != nil {
		return err
	}
	if err := admission(ctx, dir); err != nil {
		return err
	}
	if err := operator(ctx, dir); err != nil {
		return err
	}
	if err := requests(ctx, dir); err != nil {
		return err
	}
	return verdicts(ctx, dir)
}

// baseline is the plain server of which every ratio is calculated.
func baseline(dir string) {
	body, err := os.ReadFile(filepath.Join(dir, "body"))
	check(err)
	ca, err := os.ReadFile(filepath.Join(dir, "ca.crt"))
	check(err)
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(ca)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	check(err)
	fmt.Println(l.Addr())
	srv := &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			_, _ = w.Write(body)
		}),
		TLSConfig: &tls.Config{
			MinVersion: tls.VersionTLS13,
			ClientCAs:  pool,
			ClientAuth: tls.RequireAndVerifyClientCert,
		},
	}
	check(srv.ServeTLS(l, filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key")))
}

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench baseline:", err)
		os.Exit(1)
	}
}

// coldCall is a call with a new connection.
func coldCall(url string, config *tls.Config) func() error {
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: config, DisableKeepAlives: true}}
	return func() error {
		resp, err := client.Get(url)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if _, err := io.Copy(io.Discard, resp.Body); err != nil {
			return err
		}
		if resp.StatusCode != http.StatusOK {
			return errors.New(resp.Status)
		}
		return nil
	}
}

func measure(ctx context.Context, clients int, call func() error) ([]time.Duration, error) {
	times := make([][]time.Duration, clients)
	errs := make([]error, clients)
	var wg sync.WaitGroup
	for i := range clients {
		wg.Go(func() {
			for range callsPerRound / clients {
				began := time.Now()
				if errs[i] = errors.Join(ctx.Err(), call()); errs[i] != nil {
					return
				}
				times[i] = append(times[i], time.Since(began))
			}
		})
	}
	wg.Wait()
	return slices.Concat(times...), errors.Join(errs...)
}

func firstAnswer(ctx context.Context, root string, deadline time.Time) error {
	for {
		p := plugin.New(plugin.Config{Root: root, Budget: time.Second})
		c, err := p.Get(ctx, ref.String())
		c.Password.Wipe()
		if err == nil || ctx.Err() != nil || time.Now().After(deadline) {
			return err
		}
	}
}

func stop(p *child.Process) {
	_ = p.Signal(syscall.SIGINT) // fails only if the process has exited
	<-p.Done
}

func rss(pid int) float64 {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) == 3 && f[0] == "VmRSS:" {
			kib, _ := strconv.ParseFloat(f[1], 64)
			return kib / 1024
		}
	}
	return 0
}

func median(d []time.Duration) time.Duration {
	slices.Sort(d)
	return d[len(d)/2]
}

func ratio(name string, measured, baseline time.Duration, bound float64) {
	r := float64(measured) / float64(baseline)
	verdict := ""
	if r > bound {
		verdict = "  EXCEEDED"
	}
	fmt.Printf("%-58s %12s %12s %8.2f %8.2f%s\n", name, ms(measured), ms(baseline), r, bound, verdict)
}

func value(name, measured, bound string) {
	fmt.Printf("%-58s %12s %12s %8s %8s\n", name, measured, "", "", bound)
}

func ms(d time.Duration) string { return fmt.Sprintf("%.2f ms", float64(d.Microseconds())/1000) }
