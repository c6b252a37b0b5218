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

// HTTP/1.1 (RFC 9112) is spoken here by hand, as far as one GET with a short answer needs it. Every byte that is read then
// lies in one buffer that is wiped afterwards, the limits are hard ones, and the DLL is half a megabyte smaller than with
// net/http.
const (
	maxHead = 8 << 10 // bytes of status line and header, the empty line included
	maxBody = credential.MaxWireLength
)

// dial connects to the endpoint and proves both sides to each other. Nothing of the request is sent before.
func dial(ctx context.Context, ref credential.Reference, e *endpoint.Endpoint) (*tls.Conn, *Failure) {
	config, err := mtls.ClientConfig(ref, e.CA, e.ClientCert, e.ClientKey)
	if err != nil {
		return nil, fail(cause.EndpointDamaged, "generation %s: %v", e.Generation, err)
	}
	// Providers listen on loopback only, and nothing in the endpoint can lead elsewhere.
	address := net.JoinHostPort("127.0.0.1", strconv.Itoa(int(e.Port)))
	raw, err := (&net.Dialer{}).DialContext(ctx, "tcp4", address)
	if err != nil {
		return nil, fail(cause.ProviderUnreachable, "%v", err)
	}
	conn := tls.Client(raw, config)
	if err := conn.HandshakeContext(ctx); err != nil {
		raw.Close()
		if isTimeout(err) {
			return nil, fail(cause.ProviderUnreachable, "%s accepted the connection and then said nothing", address)
		}
		return nil, fail(cause.ProviderForeign, "%s: %v", address, err)
	}
	return conn, nil
}

// ask sends the one request that there is and reads the answer. It closes the connection unless that can be used again.
func ask(ctx context.Context, conn *tls.Conn, ref credential.Reference) (c credential.Credential, again bool, failure *Failure) {
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer func() {
		// If ctx has ended, the deadline has passed or is about to.
		if again = stop() && again; !again {
			conn.Close()
		}
	}()
	request := "GET /v1/credentials HTTP/1.1\r\n" +
		"Host: " + ref.CertificateName() + "\r\n" +
		"User-Agent: ccg-plugin/" + strings.ReplaceAll(version.String(), " ", "-") + "\r\n" +
		"Accept: application/json, " + credential.ProblemMediaType + "\r\n\r\n"
	if _, err := io.WriteString(conn, request); err != nil {
		return c, false, connectionFailure(conn, 0, err)
	}
	buffer := make([]byte, maxHead+maxBody)
	defer clear(buffer)
	return readAnswer(conn, buffer)
}

// readAnswer reads one answer from conn into buffer, which has room for the longest. The connection can be used again if
// the answer says so and was whole.
func readAnswer(conn io.Reader, buffer []byte) (c credential.Credential, again bool, failure *Failure) {
	n, end := 0, -1 // bytes read; where the head ends, the empty line included
	for end < 0 {
		if n >= maxHead {
			return c, false, fail(cause.ResponseInvalid, "the answer's header is longer than %d bytes", maxHead)
		}
		read, err := conn.Read(buffer[n:])
		n += read
		if i := bytes.Index(buffer[:min(n, maxHead)], []byte("\r\n\r\n")); i >= 0 {
			end = i + 4
		} else if err != nil {
			return c, false, connectionFailure(conn, n, err)
		}
	}
	status, length, again, err := parseHead(buffer[:end-4])
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
		return c, false, fail(cause.ResponseInvalid, "the answer goes on after its end")
	}
	body := buffer[end:n]
	if status == 200 {
		c, err := credential.DecodeCredential(body)
		if err != nil {
			return credential.Credential{}, false, fail(cause.ResponseInvalid, "%v", err)
		}
		return c, again, nil
	}
	problem, err := credential.DecodeProblem(body)
	if err != nil {
		return c, false, fail(cause.ResponseInvalid, "status %d: %v", status, err)
	}
	return c, again, fail(problemCauses[problem.Code], "%s", problem.Detail)
}

// problemCauses has an entry for each of credential.ProblemCodes, the only ones that DecodeProblem lets through.
var problemCauses = map[credential.ProblemCode]*cause.Cause{
	credential.ProblemSecretNotFound: cause.SecretNotFound,
	credential.ProblemSecretInvalid:  cause.SecretInvalid,
	credential.ProblemForbidden:      cause.Forbidden,
	credential.ProblemUnavailable:    cause.Unavailable,
}

// parseHead reads a status line and a header without the empty line after it. It is stricter than RFC 9112 has to be: a
// Content-Length is needed, and no other framing is understood.
func parseHead(head []byte) (status, length int, again bool, err error) {
	lines := strings.Split(string(head), "\r\n")
	code, ok := strings.CutPrefix(lines[0], "HTTP/1.1 ")
	code, _, _ = strings.Cut(code, " ")
	status, isNumber := decimal(code)
	if !ok || !isNumber || len(code) != 3 || status < 200 {
		return 0, 0, false, errors.New("the answer does not begin with the status line of a final HTTP/1.1 answer")
	}
	length, again = -1, true
	for _, line := range lines[1:] {
		name, value, ok := strings.Cut(line, ":")
		if !ok || name == "" || strings.ContainsAny(name, " \t") {
			return 0, 0, false, errors.New("the answer has a header line without a name")
		}
		value = strings.Trim(value, " \t")
		switch strings.ToLower(name) {
		case "content-length":
			n, isNumber := decimal(value)
			if !isNumber || length >= 0 {
				return 0, 0, false, errors.New("the answer has no single Content-Length")
			}
			if n > maxBody {
				return 0, 0, false, fmt.Errorf("the answer is longer than %d bytes", maxBody)
			}
			length = n
		case "transfer-encoding":
			return 0, 0, false, errors.New("the answer has a Transfer-Encoding instead of a Content-Length")
		case "connection":
			again = again && !strings.EqualFold(value, "close")
		}
	}
	if length < 0 {
		return 0, 0, false, errors.New("the answer has no Content-Length")
	}
	return status, length, again, nil
}

// decimal reads digits and nothing else; strconv would take a sign.
func decimal(s string) (int, bool) {
	if len(s) == 0 || len(s) > 9 || strings.Trim(s, "0123456789") != "" {
		return 0, false
	}
	n, err := strconv.Atoi(s)
	return n, err == nil
}

// connectionFailure tells the end of a provider from its refusal: in TLS 1.3 the server's verdict on the client's
// certificate comes as an alert after the client has finished the handshake.
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
		return fail(cause.ProviderUnreachable, "%sno whole answer in time, %d bytes of it", where, read)
	}
	return fail(cause.ProviderUnreachable, "%sthe connection ended after %d bytes of an answer: %v", where, read, err)
}

func isTimeout(err error) bool {
	var t interface{ Timeout() bool }
	return errors.As(err, &t) && t.Timeout()
}
