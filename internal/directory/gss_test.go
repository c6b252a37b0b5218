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

func newWrapping(t testing.TB) *wrapping {
	t.Helper()
	e, err := crypto.GetEtype(aes[0])
	if err != nil {
		t.Fatal(err)
	}
	return &wrapping{etype: e, key: bytes.Repeat([]byte{7}, 32), subkey: true, sent: 100, received: 200}
}

// fromServer makes a token as a server does, with any header, so that each rule can be broken alone.
func fromServer(t testing.TB, w *wrapping, plain []byte, flag byte, sequence uint64, rotate int) []byte {
	t.Helper()
	var extra uint16
	var body []byte
	var err error
	if flag&sealed != 0 {
		_, body, err = w.etype.EncryptMessage(w.key, append(bytes.Clone(plain), header(flag, 0, 0, sequence)...), keyusage.GSSAPI_ACCEPTOR_SEAL)
	} else {
		body, err = w.etype.GetChecksumHash(w.key, append(bytes.Clone(plain), header(flag, 0, 0, sequence)...), keyusage.GSSAPI_ACCEPTOR_SEAL)
		extra = uint16(len(body))
		body = append(bytes.Clone(plain), body...)
	}
	if err != nil {
		t.Fatal(err)
	}
	at := len(body) - rotate%len(body)
	return append(header(flag, extra, uint16(rotate), sequence), append(bytes.Clone(body[at:]), body[:at]...)...)
}

func TestTokensOfTheServerAreOpenedWhateverTheirRotation(t *testing.T) {
	for _, rotate := range []int{0, 12, 28, 1000} {
		for _, flag := range []byte{sentByServer | withSubkey, sentByServer | withSubkey | sealed} {
			w := newWrapping(t)
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

// Who stands between the two sides can repeat, drop, reorder, reflect and change tokens. Each is refused.
func TestTokensThatAreNotTheNextOfTheServerAreRefused(t *testing.T) {
	const good = sentByServer | withSubkey | sealed
	w := newWrapping(t)
	token := func(flag byte, sequence uint64) []byte { return fromServer(t, w, []byte("secret"), flag, sequence, 0) }
	changed := func(at int) []byte {
		b := token(good, 200)
		b[at] ^= 1
		return b
	}
	own, err := newWrapping(t).wrap([]byte("secret"), true)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		token []byte
		want  string
	}{
		"repeated":         {token(good, 199), "comes next"},
		"one left out":     {token(good, 201), "comes next"},
		"reflected":        {own, "sent itself"},
		"signed only":      {token(sentByServer|withSubkey, 200), "not sealed"},
		"another key":      {token(sentByServer|sealed, 200), "another key"},
		"changed sequence": {changed(15), "comes next"},
		"changed content":  {changed(20), "does not open"},
		"changed filler":   {changed(5), "another header"},
		"empty":            {nil, "not a wrap token"},
		"header only":      {token(good, 200)[:16], "too short"},
		"cut off":          {token(good, 200)[:40], "too short"},
	} {
		if got, err := w.unwrap(c.token, true); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %q, %v; want %q", name, got, err, c.want)
		}
	}
	if w.received != 200 {
		t.Errorf("a refused token was counted: %d", w.received)
	}
	if _, err := w.unwrap(token(good, 200), true); err != nil {
		t.Errorf("the right token after all those: %v", err)
	}
}

func TestASealedConnectionBoundsWhatItReads(t *testing.T) {
	for name, c := range map[string]struct {
		sent []byte
		want string
	}{
		"4 GiB announced": {[]byte{0xff, 0xff, 0xff, 0xff, 1, 2, 3}, errTooLarge.Error()},
		"cut off":         {[]byte{0, 0, 0, 100, 1, 2, 3}, errTruncated.Error()},
		"plain LDAP":      {[]byte{0, 0, 0, 5, 0x30, 3, 2, 1, 1}, "not a wrap token"},
	} {
		here, there := net.Pipe()
		go func() {
			_, _ = there.Write(c.sent)
			_ = there.Close()
		}()
		if _, err := (&sealedConn{Conn: here, most: 4096, w: newWrapping(t)}).Read(make([]byte, 10)); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
		_ = here.Close()
	}
}

func TestASealedConnectionSendsNoMoreAtATimeThanTheServerTakes(t *testing.T) {
	here, there := net.Pipe()
	go func() {
		_, _ = (&sealedConn{Conn: here, most: 1024, w: newWrapping(t)}).Write(make([]byte, 5000))
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
			t.Error("a token shows what is in it")
		}
		tokens++
	}
	if tokens != 6 {
		t.Errorf("%d tokens for 5000 bytes", tokens)
	}
}

func FuzzUnwrap(f *testing.F) {
	w := newWrapping(f)
	f.Add(fromServer(f, w, []byte("an answer"), sentByServer|withSubkey|sealed, 200, 28), true)
	f.Add(fromServer(f, w, []byte{7, 0, 0, 0}, sentByServer|withSubkey, 200, 0), false)
	own := make([]byte, 60)
	_, _ = rand.Read(own)
	f.Add(own, false)
	f.Fuzz(func(t *testing.T, token []byte, seal bool) {
		w := newWrapping(t)
		plain, err := w.unwrap(token, seal)
		if err == nil && len(plain) > len(token) {
			t.Errorf("%d bytes came of %d", len(plain), len(token))
		}
		if (err == nil) != (w.received == 201) {
			t.Errorf("counted %d with %v", w.received, err)
		}
	})
}
