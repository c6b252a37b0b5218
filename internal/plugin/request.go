package plugin

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/ccgrkc/ccgrkc/internal/credential"
	"github.com/ccgrkc/ccgrkc/internal/endpoint"
	"github.com/ccgrkc/ccgrkc/internal/mtls"
	"github.com/ccgrkc/ccgrkc/internal/plugin/cause"
	"github.com/ccgrkc/ccgrkc/internal/version"
)

// This file implements the part of HTTP/1.1 (RFC 9112) that one GET with a short response needs. All bytes are then in
// one buffer that is wiped afterwards, the limits are strict, and the DLL is half a megabyte smaller than with
// net/http.
const (
	maxHead = 8 << 10 // bytes of status line and header, including the empty line
	maxBody = credential.MaxWireLength
)

// dial connects to the endpoint. Both sides verify each other before the request is sent.
func dial(ctx context.Context, ref credential.Reference, e *endpoint.Endpoint) (*tls.Conn, *Failure) {
	config, err := mtls.ClientConfig(ref, e.CA, e.ClientCert, e.ClientKey)
	if err != nil {
		return nil, fail(cause.EndpointDamaged, "generation %s: %v", e.Generation, err)
	}
	// Providers listen only on loopback. The endpoint files cannot specify another address.
	address := net.JoinHostPort("127.0.0.1", strconv.Itoa(int(e.Port)))
	raw, err := (&net.Dialer{}).DialContext(ctx, "tcp4", address)
	if err != nil {
		return nil, fail(cause.ProviderUnreachable, "%v", err)
	}
	conn := tls.Client(raw, config)
	if err := conn.HandshakeContext(ctx); err != nil {
		raw.Close()
		if isTimeout(err) {
			return nil, fail(cause.ProviderUnreachable, "%s accepted the connection but did not respond", address)
		}
		return nil, fail(cause.ProviderForeign, "%s: %v", address, err)
	}
	return conn, nil
}

// request requests the credentials and reads the response. It closes the connection unless it is reusable.
func request(ctx context.Context, conn *tls.Conn, ref credential.Reference) (
	c credential.Credential, reusable bool, failure *Failure) {
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer func() {
		// If ctx has ended, AfterFunc sets the deadline, so the connection is not reusable.
		if reusable = stop() && reusable; !reusable {
			conn.Close()
		}
	}()
	head := "GET /v1/credentials HTTP/1.1\r\nHost: " + ref.CertificateName() + "\r\n" +
		"User-Agent: ccg-plugin/" + strings.ReplaceAll(version.String(), " ", "-") + "\r\n" +
		"Accept: application/json, " + credential.ProblemMediaType + "\r\n\r\n"
	if _, err := io.WriteString(conn, head); err != nil {
		return c, false, connectionFailure(conn, 0, err)
	}
	buffer := make([]byte, maxHead+maxBody)
	defer clear(buffer)
	return readResponse(conn, buffer)
}

// readResponse reads one response from conn into buffer, whose size is the maximum. The connection is reusable after a
// complete response without "Connection: close".
func readResponse(conn io.Reader, buffer []byte) (c credential.Credential, reusable bool, failure *Failure) {
	n, end := 0, -1 // bytes read; end of the head, including the empty line
	for end < 0 {
		if n >= maxHead {
			return c, false, fail(cause.ResponseInvalid, "the response's header is longer than %d bytes", maxHead)
		}
		read, err := conn.Read(buffer[n:])
		n += read
		if i := bytes.Index(buffer[:min(n, maxHead)], []byte("\r\n\r\n")); i >= 0 {
			end = i + 4
		} else if err != nil {
			return c, false, connectionFailure(conn, n, err)
		}
	}
	status, length, reusable, err := parseHead(buffer[:end-4])
	if err != nil {
		return c, false, fail(cause.ResponseInvalid, "%v", err)
	}
	for n < end+length {
		read, err := conn.Read(buffer[n:])
		n += read
		if err != nil && n < end+length {
			return c, false, connectionFailure(conn, n, err)
		}
	}
	if n > end+length {
		return c, false, fail(cause.ResponseInvalid, "there is data after the end of the response")
	}
	body := buffer[end:n]
	if status == 200 {
		c, err := credential.DecodeCredential(body)
		if err != nil {
			return credential.Credential{}, false, fail(cause.ResponseInvalid, "%v", err)
		}
		return c, reusable, nil
	}
	problem, err := credential.DecodeProblem(body)
	if err != nil {
		return c, false, fail(cause.ResponseInvalid, "status %d: %v", status, err)
	}
	return c, reusable, fail(problemCauses[problem.Code], "%s", problem.Detail)
}

// problemCauses has an entry for each of credential.ProblemCodes. DecodeProblem accepts no others.
var problemCauses = map[credential.ProblemCode]*cause.Cause{
	credential.ProblemSecretNotFound: cause.SecretNotFound,
	credential.ProblemSecretInvalid:  cause.SecretInvalid,
	credential.ProblemForbidden:      cause.Forbidden,
	credential.ProblemUnavailable:    cause.Unavailable,
}

// parseHead parses a status line and a header without the empty line after it. It is stricter than RFC 9112 requires:
// it accepts no framing other than one Content-Length.
func parseHead(head []byte) (status, length int, reusable bool, err error) {
	lines := strings.Split(string(head), "\r\n")
	code, ok := strings.CutPrefix(lines[0], "HTTP/1.1 ")
	code, _, _ = strings.Cut(code, " ")
	status, isNumber := decimal(code)
	if !ok || !isNumber || len(code) != 3 || status < 200 {
		return 0, 0, false, errors.New("the response does not start with the status line of a final HTTP/1.1 response")
	}
	length, reusable = -1, true
	for _, line := range lines[1:] {
		name, value, ok := strings.Cut(line, ":")
		if !ok || name == "" || strings.ContainsAny(name, " \t") {
			return 0, 0, false, errors.New("the response has a header line without a name")
		}
		value = strings.Trim(value, " \t")
		switch strings.ToLower(name) {
		case "content-length":
			n, isNumber := decimal(value)
			if !isNumber || length >= 0 {
				return 0, 0, false, errors.New("the response has an invalid or a second Content-Length")
			}
			if n > maxBody {
				return 0, 0, false, fmt.Errorf("the response is longer than %d bytes", maxBody)
			}
			length = n
		case "transfer-encoding":
			return 0, 0, false, errors.New("the response has a Transfer-Encoding instead of a Content-Length")
		case "connection":
			reusable = reusable && !strings.EqualFold(value, "close")
		}
	}
	if length < 0 {
		return 0, 0, false, errors.New("the response has no Content-Length")
	}
	return status, length, reusable, nil
}

// decimal accepts only digits; strconv would accept a sign.
func decimal(s string) (int, bool) {
	if len(s) == 0 || len(s) > 9 || strings.Trim(s, "0123456789") != "" {
		return 0, false
	}
	n, err := strconv.Atoi(s)
	return n, err == nil
}

// connectionFailure distinguishes a stopped provider from a rejected client certificate. In TLS 1.3, the server sends
// the alert for the latter after the client has finished its handshake.
func connectionFailure(conn io.Reader, read int, err error) *Failure {
	var where string
	if c, ok := conn.(net.Conn); ok {
		where = c.RemoteAddr().String() + ": "
	}
	var op *net.OpError
	if errors.As(err, &op) && op.Op == "remote error" {
		return fail(cause.ProviderForeign, "%s%v", where, op.Err)
	}
	if isTimeout(err) {
		return fail(cause.ProviderUnreachable, "%sthe response was incomplete at the timeout, after %d bytes", where,
			read)
	}
	return fail(cause.ProviderUnreachable, "%sthe connection was closed after %d bytes of the response: %v", where,
		read, err)
}

func isTimeout(err error) bool {
	var t interface{ Timeout() bool }
	return errors.As(err, &t) && t.Timeout()
}
