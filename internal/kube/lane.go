package kube

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"os"
	"time"
)

const (
	// connectTimeout limits the connection and the TLS handshake. Without it, an attempt whose request has ended would
	// continue in the background, for as long as the server is silent.
	connectTimeout = 5 * time.Second
	idleTimeout    = 30 * time.Second
)

// lane is an HTTP client that one call uses at a time, so that its requests use the same connection: behind an address,
// there can be several API servers, of which one is starting. HTTP/1.1 guarantees that nobody else uses the connection.
type lane struct {
	http  *http.Client
	roots *x509.CertPool

	conn  net.Conn // of the last response
	ready net.Conn // the connection whose API server was ready before
}

// acquire returns a lane that trusts the current CA file.
func (c *Client) acquire() (*lane, error) {
	ca, err := os.ReadFile(c.server.CAFile)
	if err != nil {
		return nil, fmt.Errorf("API server's CA: %w", err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.roots == nil || !bytes.Equal(ca, c.ca) {
		roots := x509.NewCertPool()
		if !roots.AppendCertsFromPEM(ca) {
			return nil, fmt.Errorf("API server's CA: %s contains no certificate", c.server.CAFile)
		}
		for _, l := range c.lanes {
			l.http.CloseIdleConnections()
		}
		c.ca, c.roots, c.lanes = ca, roots, nil
	}
	if last := len(c.lanes) - 1; last >= 0 {
		l := c.lanes[last]
		c.lanes = c.lanes[:last]
		return l, nil
	}
	return &lane{
		roots: c.roots,
		http: &http.Client{
			// No proxy from the environment and no redirects: the token goes only to the API server. A transport with
			// its own TLS configuration uses HTTP/1.1.
			Transport: &http.Transport{
				TLSClientConfig:     &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: c.roots},
				TLSHandshakeTimeout: connectTimeout,
				MaxIdleConns:        1,
				IdleConnTimeout:     idleTimeout,
				DialContext:         c.dial,
			},
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
	}, nil
}

// release returns a lane for the next call.
func (c *Client) release(l *lane) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if l.roots == c.roots && len(c.lanes) < c.idle {
		c.lanes = append(c.lanes, l)
		return
	}
	l.http.CloseIdleConnections()
}

// request is one request. A call can send it repeatedly.
type request struct {
	method, url string
	body        []byte
	contentType string // of body
	anonymous   bool   // without a token
	limit       int    // of the response, in bytes

	// denies reports whether a successful response contains a refusal; nil: never.
	denies func(body []byte) bool
}

// answer is a complete response. The body can contain a Secret.
type answer struct {
	code   int
	header http.Header
	body   []byte
}

// exchange sends r on l, with the current token, and reads the response.
func (c *Client) exchange(ctx context.Context, l *lane, r *request) (*answer, error) {
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	l.conn = nil
	req, err := http.NewRequestWithContext(httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		GotConn: func(info httptrace.GotConnInfo) { l.conn = info.Conn },
		Got1xxResponse: func(code int, _ textproto.MIMEHeader) error {
			if code == http.StatusContinue || code == http.StatusEarlyHints {
				return nil // the final response follows
			}
			return fmt.Errorf("status %d is not a response to an API request", code)
		},
	}), r.method, r.url, bytes.NewReader(r.body))
	if err != nil {
		return nil, err
	}
	if !r.anonymous {
		token, err := os.ReadFile(c.server.TokenFile)
		if err != nil {
			return nil, fmt.Errorf("ServiceAccount token: %w", err)
		}
		req.Header.Set("Authorization", "Bearer "+string(bytes.TrimSpace(token)))
	}
	if r.contentType != "" {
		req.Header.Set("Content-Type", r.contentType)
	}
	req.Header.Set("Accept", "application/json")
	req.Header.Set("User-Agent", c.agent)
	resp, err := l.http.Do(req)
	if err != nil {
		return nil, fmt.Errorf("API server: %w", err)
	}
	defer resp.Body.Close()
	if resp.StatusCode < http.StatusOK {
		// The body of 101 Switching Protocols is the connection, whose reads ignore the context.
		return nil, fmt.Errorf("API server: status %d is not a response to an API request", resp.StatusCode)
	}
	// net/http ends a read when the context does. This does not rely on it.
	stop := context.AfterFunc(ctx, func() { _ = resp.Body.Close() })
	defer stop()
	body, err := readAndWipeCopies(resp.Body, r.limit)
	if err != nil {
		return nil, fmt.Errorf("API server: %w", err)
	}
	return &answer{resp.StatusCode, resp.Header, body}, nil
}

// readAndWipeCopies is io.ReadAll with a limit. It wipes the smaller buffers when it replaces them.
func readAndWipeCopies(r io.Reader, limit int) ([]byte, error) {
	b := make([]byte, 0, min(16<<10, limit+1))
	for {
		n, err := r.Read(b[len(b):cap(b)])
		b = b[:len(b)+n]
		switch {
		case len(b) > limit:
			clear(b)
			return nil, fmt.Errorf("the response is longer than %d bytes", limit)
		case err == io.EOF:
			return b, nil
		case err != nil:
			clear(b)
			return nil, err
		case len(b) == cap(b):
			grown := make([]byte, len(b), min(2*cap(b), limit+1))
			copy(grown, b)
			clear(b)
			b = grown
		}
	}
}
