package kubelet

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"time"

	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	utilexec "k8s.io/utils/exec"
)

// server is the node's port for logs and exec. It has a self-signed certificate, which the lab's API server accepts
// because it runs without --kubelet-certificate-authority. It requires no client certificate.
type server struct {
	node     *Node
	listener net.Listener
	http     *http.Server
}

func newServer(n *Node) (*server, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1),
		Subject:      pkix.Name{CommonName: n.o.Name},
		IPAddresses:  []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore:    time.Now().Add(-time.Minute),
		NotAfter:     time.Now().AddDate(1, 0, 0),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return nil, err
	}
	// HTTP/1.1 only, because exec hijacks the connection.
	certificate := tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
	listener, err := tls.Listen("tcp", loopback+":0", &tls.Config{Certificates: []tls.Certificate{certificate}})
	if err != nil {
		return nil, err
	}
	s := &server{node: n, listener: listener}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /containerLogs/{namespace}/{pod}/{container}", s.logs)
	mux.HandleFunc("/exec/{namespace}/{pod}/{container}", s.exec)
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "ok") })
	s.http = &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	go func() { _ = s.http.Serve(listener) }()
	return s, nil
}

func (s *server) address() string { return s.listener.Addr().String() }

func (s *server) close() { _ = s.http.Close() }

func (s *server) logs(w http.ResponseWriter, r *http.Request) {
	c, err := s.node.container(r.PathValue("namespace"), r.PathValue("pod"), r.PathValue("container"))
	if err != nil {
		http.Error(w, err.Error(), http.StatusNotFound)
		return
	}
	query := r.URL.Query()
	c.pod.mu.Lock()
	run, started := c.status.RestartCount, c.status.ContainerID != ""
	c.pod.mu.Unlock()
	if query.Get("previous") == "true" {
		run--
	}
	f, err := os.Open(c.logFile(run))
	if err != nil {
		if !started {
			err = fmt.Errorf("container %q in pod %q is waiting to start", c.spec.Name, c.pod.name)
		} else {
			err = fmt.Errorf("container %q in pod %q has no log of this run", c.spec.Name, c.pod.name)
		}
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	defer f.Close()
	if lines, err := strconv.Atoi(query.Get("tailLines")); err == nil {
		if err := seekTail(f, lines); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
	}
	out := io.Writer(w)
	if limit, err := strconv.ParseInt(query.Get("limitBytes"), 10, 64); err == nil {
		_, _ = io.CopyN(w, f, limit)
		return
	}
	ended := func() bool { return true }
	if query.Get("follow") == "true" {
		ended = func() bool {
			c.pod.mu.Lock()
			defer c.pod.mu.Unlock()
			return c.status.RestartCount != run || c.current == nil
		}
		out = flushing{w}
	}
	_ = follow(r.Context(), f, out, ended) // fails if the client closed the connection
}

// flushing flushes after each write.
type flushing struct{ http.ResponseWriter }

func (f flushing) Write(b []byte) (int, error) {
	n, err := f.ResponseWriter.Write(b)
	f.ResponseWriter.(http.Flusher).Flush()
	return n, err
}

// follow copies a growing file until ended returns true.
func follow(ctx context.Context, f io.Reader, w io.Writer, ended func() bool) error {
	for {
		over := ended() // before the copy, so that the copy includes the last write
		if _, err := io.Copy(w, f); err != nil {
			return err
		}
		if over {
			return nil
		}
		if !sleep(ctx, 20*time.Millisecond) {
			return ctx.Err()
		}
	}
}

// seekTail seeks to the start of the last lines.
func seekTail(f *os.File, lines int) error {
	content, err := io.ReadAll(f)
	if err != nil {
		return err
	}
	at := len(content)
	for i := len(content) - 1; i >= 0 && lines >= 0; i-- {
		if content[i] == '\n' && i != len(content)-1 {
			lines--
			if lines == 0 {
				break
			}
		}
		if lines > 0 {
			at = i
		}
	}
	_, err = f.Seek(int64(at), io.SeekStart)
	return err
}

func (s *server) exec(w http.ResponseWriter, r *http.Request) {
	options, err := remotecommand.NewOptions(r)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	c, err := s.node.container(r.PathValue("namespace"), r.PathValue("pod"), r.PathValue("container"))
	if err != nil {
		http.Error(w, err.Error(), http.StatusNotFound)
		return
	}
	if c.currentRun() == nil {
		http.Error(w, fmt.Sprintf("container not found (%q)", c.spec.Name), http.StatusInternalServerError)
		return
	}
	command := r.URL.Query()["command"]
	remotecommand.ServeExec(w, r, executor{c}, c.pod.name, string(c.pod.uid), c.spec.Name, command, options,
		time.Hour, remotecommand.DefaultStreamCreationTimeout, remotecommand.SupportedStreamingProtocols)
}

type executor struct{ *container }

// ExecInContainer runs a program in the container. It ignores tty, because the lab has no terminals.
func (e executor) ExecInContainer(ctx context.Context, _, _, _ string, argv []string, in io.Reader,
	out, errOut io.WriteCloser, _ bool, _ <-chan remotecommand.TerminalSize, _ time.Duration) error {
	r := e.currentRun()
	if r == nil {
		return fmt.Errorf("container %s ended", e.spec.Name)
	}
	if len(argv) == 0 {
		return errors.New("no command")
	}
	var sent int64
	err := execOnce(ctx, r, argv, in, out, errOut, &sent)
	if err != nil && sent == 0 && in == nil && ctx.Err() == nil {
		err = execOnce(ctx, r, argv, in, out, errOut, &sent) // see running.output
	}
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return utilexec.CodeExitError{Err: err, Code: int(exitCode(exit))}
	}
	return err
}

func execOnce(ctx context.Context, r *running, argv []string, in io.Reader, out, errOut io.Writer, sent *int64) error {
	// The program ends when the client closes the connection.
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	cmd := r.command(ctx, argv)
	if in != nil {
		stdin, toStdin, err := os.Pipe()
		if err != nil {
			return err
		}
		defer stdin.Close()
		cmd.Stdin = stdin
		go func() {
			defer toStdin.Close()
			_, _ = io.Copy(toStdin, in) // until either side closes
		}()
	}
	done := make(chan struct{})
	ended := func() bool {
		select {
		case <-done:
			return true
		default:
			return false
		}
	}
	// Files, not pipes, as in running.output.
	var copies []chan struct{}
	for _, stream := range []struct {
		to  io.Writer
		set func(f *os.File)
	}{{out, func(f *os.File) { cmd.Stdout = f }}, {errOut, func(f *os.File) { cmd.Stderr = f }}} {
		if stream.to == nil {
			continue
		}
		f, err := os.CreateTemp("", "lab-kubelet-*.exec")
		if err != nil {
			return err
		}
		defer os.Remove(f.Name())
		defer f.Close()
		stream.set(f)
		reader, err := os.Open(f.Name())
		if err != nil {
			return err
		}
		copied := make(chan struct{})
		copies = append(copies, copied)
		go func() {
			defer close(copied)
			defer reader.Close()
			if follow(ctx, reader, stream.to, ended) != nil {
				cancel()
			}
		}()
	}
	err := cmd.Run()
	close(done)
	for _, copied := range copies {
		<-copied
	}
	for _, f := range []any{cmd.Stdout, cmd.Stderr} {
		if file, ok := f.(*os.File); ok {
			if info, statErr := file.Stat(); statErr == nil {
				*sent += info.Size()
			}
		}
	}
	return err
}
