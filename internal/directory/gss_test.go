package directory

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"net"
	"strings"
	"testing"

	"github.com/jcmturner/gokrb5/v8/crypto"
	"github.com/jcmturner/gokrb5/v8/iana/keyusage"
)

func newGSSContext(t testing.TB) *gssContext {
	t.Helper()
	e, err := crypto.GetEtype(aes[0])
	if err != nil {
		t.Fatal(err)
	}
	return &gssContext{etype: e, key: bytes.Repeat([]byte{7}, 32), subkey: true, sent: 100, received: 200}
}

// fromServer creates a token as a server does. The header is a parameter, so that a test can break each rule
// separately.
func fromServer(t testing.TB, w *gssContext, plain []byte, flag byte, sequence uint64, rotate int) []byte {
	t.Helper()
	var extra uint16
	var body []byte
	var err error
	content := append(bytes.Clone(plain), header(flag, 0, 0, sequence)...)
	if flag&sealed != 0 {
		_, body, err = w.etype.EncryptMessage(w.key, content, keyusage.GSSAPI_ACCEPTOR_SEAL)
	} else {
		body, err = w.etype.GetChecksumHash(w.key, content, keyusage.GSSAPI_ACCEPTOR_SEAL)
		extra = uint16(len(body))
		body = append(bytes.Clone(plain), body...)
	}
	if err != nil {
		t.Fatal(err)
	}
	at := len(body) - rotate%len(body)
	return append(header(flag, extra, uint16(rotate), sequence), append(bytes.Clone(body[at:]), body[:at]...)...)
}

func TestServerTokensOfAnyRotationAreAccepted(t *testing.T) {
	for _, rotate := range []int{0, 12, 28, 1000} {
		for _, flag := range []byte{sentByServer | withSubkey, sentByServer | withSubkey | sealed} {
			w := newGSSContext(t)
			got, err := w.unwrap(fromServer(t, w, []byte("an answer"), flag, 200, rotate), flag&sealed != 0)
			if err != nil || string(got) != "an answer" {
				t.Errorf("flags %d, rotated by %d: %q, %v", flag, rotate, got, err)
			}
			if w.received != 201 {
				t.Errorf("the next token must have number %d", w.received)
			}
		}
	}
}

// An attacker between the two sides can repeat, drop, reorder, reflect and change tokens. The client rejects each of
// these.
func TestTokensOutOfSequenceOrChangedAreRejected(t *testing.T) {
	const good = sentByServer | withSubkey | sealed
	w := newGSSContext(t)
	token := func(flag byte, sequence uint64) []byte { return fromServer(t, w, []byte("secret"), flag, sequence, 0) }
	changed := func(at int) []byte {
		b := token(good, 200)
		b[at] ^= 1
		return b
	}
	own, err := newGSSContext(t).wrap([]byte("secret"), true)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		token []byte
		want  string
	}{
		"repeated":         {token(good, 199), "instead of 200"},
		"one missing":      {token(good, 201), "instead of 200"},
		"reflected":        {own, "sent by this side"},
		"only signed":      {token(sentByServer|withSubkey, 200), "not sealed"},
		"another key":      {token(sentByServer|sealed, 200), "another key"},
		"changed sequence": {changed(15), "instead of 200"},
		"changed content":  {changed(20), "cannot be decrypted"},
		"changed filler":   {changed(5), "different header"},
		"empty":            {nil, "not a Kerberos wrap token"},
		"header only":      {token(good, 200)[:16], "too short"},
		"truncated":        {token(good, 200)[:40], "too short"},
	} {
		if got, err := w.unwrap(c.token, true); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %q, %v; want %q", name, got, err, c.want)
		}
	}
	if w.received != 200 {
		t.Errorf("a rejected token was counted: %d", w.received)
	}
	if _, err := w.unwrap(token(good, 200), true); err != nil {
		t.Errorf("the correct token afterwards: %v", err)
	}
}

func TestASealedConnectionLimitsTheLengthOfTokens(t *testing.T) {
	for name, c := range map[string]struct {
		sent []byte
		want string
	}{
		"4 GiB announced": {[]byte{0xff, 0xff, 0xff, 0xff, 1, 2, 3}, errTooLarge.Error()},
		"truncated":       {[]byte{0, 0, 0, 100, 1, 2, 3}, errTruncated.Error()},
		"plain LDAP":      {[]byte{0, 0, 0, 5, 0x30, 3, 2, 1, 1}, "not a Kerberos wrap token"},
	} {
		here, there := net.Pipe()
		go func() {
			_, _ = there.Write(c.sent)
			_ = there.Close()
		}()
		conn := &sealedConn{Conn: here, maxToken: 4096, w: newGSSContext(t)}
		if _, err := conn.Read(make([]byte, 10)); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
		_ = here.Close()
	}
}

func TestASealedConnectionObservesTheServersTokenLimit(t *testing.T) {
	here, there := net.Pipe()
	go func() {
		_, _ = (&sealedConn{Conn: here, maxToken: 1024, w: newGSSContext(t)}).Write(make([]byte, 5000))
		_ = here.Close()
	}()
	tokens := 0
	for {
		var head [4]byte
		if _, err := there.Read(head[:]); err != nil {
			break
		}
		n := binary.BigEndian.Uint32(head[:])
		if n > 1024 {
			t.Errorf("a token of %d bytes", n)
		}
		body := make([]byte, n)
		if _, err := there.Read(body); err != nil {
			t.Fatal(err)
		}
		if bytes.Contains(body, make([]byte, 64)) {
			t.Error("a token contains plain text")
		}
		tokens++
	}
	if tokens != 6 {
		t.Errorf("%d tokens for 5000 bytes", tokens)
	}
}

func FuzzUnwrap(f *testing.F) {
	w := newGSSContext(f)
	f.Add(fromServer(f, w, []byte("an answer"), sentByServer|withSubkey|sealed, 200, 28), true)
	f.Add(fromServer(f, w, []byte{7, 0, 0, 0}, sentByServer|withSubkey, 200, 0), false)
	own := make([]byte, 60)
	_, _ = rand.Read(own)
	f.Add(own, false)
	f.Fuzz(func(t *testing.T, token []byte, seal bool) {
		w := newGSSContext(t)
		plain, err := w.unwrap(token, seal)
		if err == nil && len(plain) > len(token) {
			t.Errorf("%d bytes from %d", len(plain), len(token))
		}
		if (err == nil) != (w.received == 201) {
			t.Errorf("counted %d with %v", w.received, err)
		}
	})
}
