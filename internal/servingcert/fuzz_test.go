package servingcert

import (
	"bytes"
	"slices"
	"testing"
	"time"

	"github.com/ccgrkc/ccgrkc/internal/mtls"
)

// For any content of a Secret or a file, the API server accepts a pair that parse accepts, with the caBundle of its
// CAs.
func FuzzPair(f *testing.F) {
	now := time.Now()
	issue := func() *mtls.Material {
		m, err := mtls.IssueServer("gmsa-webhook", dnsName, now, DefaultLifetime)
		if err != nil {
			f.Fatal(err)
		}
		return m
	}
	a, b := issue(), issue()
	f.Add([]byte{}, []byte{}, []byte{})
	f.Add(a.ServerCert, a.ServerKey, a.CA)
	f.Add(a.ServerCert, a.ServerKey, []byte{})
	f.Add(slices.Concat(a.ServerCert, a.CA), a.ServerKey, slices.Concat(b.CA, a.ServerKey, a.CA))
	f.Add(a.ServerCert, b.ServerKey, a.CA)
	f.Add(a.ServerKey, a.ServerCert, b.CA)
	f.Add(a.CA, a.ServerKey, a.ServerCert)
	f.Fuzz(func(t *testing.T, cert, key, ca []byte) {
		cas := certificates(ca)
		written := bundle(cas)
		if !bytes.Equal(written, bundle(certificates(written))) {
			t.Error("decoding and encoding changes a bundle")
		}
		p, err := parse(cert, key, cas, dnsName, now)
		if err != nil {
			return
		}
		if len(cas) == 0 {
			written = bundle(add(nil, p.issuer))
		}
		if _, err := p.verify(certificates(written), dnsName, now); err != nil || !p.inDate(now) {
			t.Errorf("the API server rejects a pair: %v", err)
		}
	})
}
