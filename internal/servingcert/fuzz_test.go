package servingcert

import (
	"bytes"
	"testing"
	"time"

	"github.com/ccgrkc/ccgrkc/internal/mtls"
)

// Whatever a Secret or a file holds: a pair that is taken for good is one that the API server takes with what becomes of its
// CAs in a caBundle.
func FuzzPair(f *testing.F) {
	now := time.Now()
	made := func() *mtls.Material {
		m, err := mtls.IssueServer("gmsa-webhook", dnsName, now, DefaultLifetime)
		if err != nil {
			f.Fatal(err)
		}
		return m
	}
	a, b := made(), made()
	f.Add([]byte{}, []byte{}, []byte{})
	f.Add(a.ServerCert, a.ServerKey, a.CA)
	f.Add(a.ServerCert, a.ServerKey, []byte{})
	f.Add(append(bytes.Clone(a.ServerCert), a.CA...), a.ServerKey, append(append(bytes.Clone(b.CA), a.ServerKey...), a.CA...))
	f.Add(a.ServerCert, b.ServerKey, a.CA)
	f.Add(a.ServerKey, a.ServerCert, b.CA)
	f.Add(a.CA, a.ServerKey, a.ServerCert)
	f.Fuzz(func(t *testing.T, cert, key, ca []byte) {
		cas := certificates(ca)
		written := bundle(cas)
		if !bytes.Equal(written, bundle(certificates(written))) {
			t.Error("a bundle changes when it is read and written again")
		}
		p, err := parse(cert, key, cas, dnsName, now)
		if err != nil {
			return
		}
		if len(cas) == 0 {
			written = bundle(add(nil, p.issuer))
		}
		if _, err := p.verify(certificates(written), dnsName, now); err != nil || !p.inDate(now) {
			t.Errorf("a pair that was taken is refused: %v", err)
		}
	})
}
