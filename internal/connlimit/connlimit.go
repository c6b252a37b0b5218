// Package connlimit is the HTTP server of every listener of this product. It bounds what clients can make a process
// hold: the number of connections, the bytes of a header, the bytes in the kernel's buffers, and the time of each step.
// Above the number of connections, a client address with many connections loses its own first.
package connlimit

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"os"
	"runtime/debug"
	"time"
)

// Limits bound what the clients of one listener can use. The fields without "optional" are required.
type Limits struct {
	// Connections is the maximum number of open connections. One with TLS needs about 36 KiB, and one without 19 KiB.
	Connections int
	// Unauthenticated, optional, is for a listener that requires client certificates: the maximum number of connections
	// that are older than two seconds and whose client has not presented a valid one. All of them are closed before any
	// other connection. A client has presented its certificate when its first request's header is complete.
	Unauthenticated int
	// HeaderBytes is the maximum size of a request's header. net/http adds 4 KiB.
	HeaderBytes int
	// Bodies is the maximum number of bytes that all request bodies have together. Of one body, at most 64 KiB count:
	// the handler limits how many larger ones it reads at the same time. 0 is for a handler that reads no bodies.
	Bodies int

	Header  time.Duration // from the first byte to the end of a header; also for a TLS handshake
	Request time.Duration // from the end of the header to the end of the response
	Idle    time.Duration // between two requests
}

const (
	// handshakeTime is how long a client can take for the TLS handshake and its first header while there are too many
	// unauthenticated clients. It takes milliseconds, but an API server opens hundreds of connections at once. The time
	// for which a connection waits for this process does not count.
	handshakeTime = 2 * time.Second
	// maxCounted is how many bytes of one body count for Limits.Bodies.
	maxCounted = 64 << 10
	// bufferBytes is the size of a connection's receive buffer and of its send buffer, as for setsockopt(2). Linux
	// doubles it. The kernel's memory counts for the container's limit, and by default grows up to 6 MiB for each
	// connection.
	bufferBytes = 16 << 10
	// relistenPause is the pause before a listener is replaced.
	relistenPause = 500 * time.Millisecond
	// repeatLog is the minimum time between two log entries about the same fault.
	repeatLog = time.Minute
	// memoryLimit is Go's soft memory limit in bytes. Each chart limits the container to 128 MiB.
	memoryLimit = 64 << 20
)

// Config configures a server. Handler, Limits and Log are required.
type Config struct {
	Handler  http.Handler
	TLS      *tls.Config // nil for plain HTTP
	Limits   Limits
	Rejected func()       // called for each connection that is closed because there are too many
	Log      *slog.Logger // with an attribute that identifies the listener
}

// Server serves HTTP/1.1 on one address.
type Server struct {
	http    *http.Server
	limiter *limiter
	log     *slog.Logger
}

// New returns a server that does not listen yet.
func New(c Config) *Server {
	l := newLimiter(c)
	// HTTP/2 would have several requests per connection, and more code that processes data of unauthenticated clients.
	protocols := &http.Protocols{}
	protocols.SetHTTP1(true)
	return &Server{
		http: &http.Server{
			Handler:           l.limitBodies(c.Handler),
			TLSConfig:         c.TLS,
			Protocols:         protocols,
			MaxHeaderBytes:    c.Limits.HeaderBytes,
			ReadHeaderTimeout: c.Limits.Header,
			IdleTimeout:       c.Limits.Idle,
			ConnState:         l.connState,
			ConnContext:       connContext,
			// Debug level: every client can cause these errors.
			ErrorLog: slog.NewLogLogger(c.Log.Handler(), slog.LevelDebug),
		},
		limiter: l,
		log:     c.Log,
	}
}

// Serve accepts connections until Shutdown or Close, and then returns http.ErrServerClosed. It returns any other error
// when l can't accept connections any more. This does not affect open connections.
func (s *Server) Serve(l net.Listener) error {
	counted := listener{l, s.limiter}
	if s.http.TLSConfig != nil {
		return s.http.ServeTLS(counted, "", "")
	}
	return s.http.Serve(counted)
}

// Keep serves until ctx is done, or until Shutdown or Close. If the listener fails, Keep replaces it with the result of
// listen, and tries again until this succeeds. l is the first listener; if it is nil, Keep calls listen first.
func (s *Server) Keep(ctx context.Context, l net.Listener, listen func() (net.Listener, error)) {
	defer context.AfterFunc(ctx, s.Close)()
	var logged time.Time
	for ctx.Err() == nil {
		var err error
		if l == nil {
			if l, err = listen(); err == nil {
				s.log.Info("listening", "address", l.Addr().String())
			}
		}
		if err == nil {
			if err = s.Serve(l); errors.Is(err, http.ErrServerClosed) {
				return
			}
			l = nil
		}
		if time.Since(logged) >= repeatLog {
			s.log.Error("not listening; trying again", "error", err, "interval", relistenPause)
			logged = time.Now()
		}
		select {
		case <-ctx.Done():
		case <-time.After(relistenPause):
		}
	}
}

// Shutdown stops listening, and waits until all requests are answered or ctx is done.
func (s *Server) Shutdown(ctx context.Context) error { return s.http.Shutdown(ctx) }

// Close stops listening and closes all connections. It does not wait for clients.
func (s *Server) Close() {
	// http.Server.Close would wait for up to 5 seconds for each TLS client that does not read.
	s.limiter.closeAll()
	_ = s.http.Close()
}

// LimitMemory sets Go's soft memory limit, unless the environment variable GOMEMLIMIT does. Without it, the garbage of
// connections that clients open and lose takes as much memory again as the open ones.
func LimitMemory() {
	if os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(memoryLimit)
	}
}
