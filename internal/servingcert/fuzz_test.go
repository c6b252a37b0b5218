package servingcert

import (
	"bytes"
	"slices"
	"testing"
	"time"

	"github.com/ccgrkc/ccgrkc/internal/servingcert/certtest"
)

// For any content of a file, the API server accepts a pair that parse accepts, with the caBundle of its CAs.
func FuzzPair(f *testing.F) {
	now := clocks{api: time.Now(), local: time.Now()}
	aCA, aCert, aKey := certtest.Issue(f, dnsName, 720*time.Hour)
	bCA, _, bKey := certtest.Issue(f, dnsName, 720*time.Hour)
	f.Add([]byte{}, []byte{}, []byte{})
	f.Add(aCert, aKey, aCA)
	f.Add(aCert, aKey, []byte{})
	f.Add(slices.Concat(aCert, aCA), aKey, slices.Concat(bCA, aKey, aCA))
	f.Add(aCert, bKey, aCA)
	f.Add(aKey, aCert, bCA)
	f.Add(aCA, aKey, aCert)
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

// For any content of the Secret, the API server accepts what a usable CA signs, with the caBundle from the Secret, and
// the content that is written back is read again without a change.
func FuzzSecret(f *testing.F) {
	now := clocks{api: time.Now(), local: time.Now()}
	issue := func(lifetime time.Duration) *authority {
		ca, err := newAuthority(dnsName, now.api.Add(-time.Hour), now.api.Add(lifetime))
		if err != nil {
			f.Fatal(err)
		}
		return ca
	}
	a, b, expired := issue(time.Hour), issue(DefaultCALifetime), issue(-time.Minute)
	legacyCA, legacyCert, legacyKey := certtest.Issue(f, dnsName, 720*time.Hour)
	none := []byte{}
	f.Add(none, none, none, none, none, none, none)
	f.Add(a.certPEM, a.keyPEM, b.certPEM, b.keyPEM, slices.Concat(a.certPEM, b.certPEM), none, none)
	f.Add(a.certPEM, b.keyPEM, b.certPEM, a.keyPEM, expired.certPEM, none, none)
	f.Add(expired.certPEM, expired.keyPEM, b.keyPEM, b.certPEM, a.keyPEM, none, none)
	f.Add(none, none, none, none, legacyCA, legacyCert, legacyKey)
	f.Add(legacyCert, legacyKey, legacyCA, legacyKey, none, a.certPEM, a.keyPEM)
	f.Fuzz(func(t *testing.T, cert, key, next, nextsKey, ca, legacy, legacysKey []byte) {
		s := self().(Self)
		data := map[string][]byte{authorityCert: cert, authorityKey: key, nextCert: next, nextKey: nextsKey, caKey: ca,
			certKey: legacy, keyKey: legacysKey}
		read := func(data map[string][]byte) state {
			st := s.read(data, dnsName, now)
			for _, own := range st.own() {
				st.cas = add(st.cas, own.cert)
			}
			return st
		}
		st := read(data)
		for _, own := range st.own() {
			p, err := own.sign(dnsName, own.cert.NotAfter)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := p.verify(certificates(bundle(st.cas)), dnsName, now); err != nil {
				t.Errorf("the API server rejects a certificate: %v", err)
			}
		}
		once := st.data(data, now)
		twice := read(once).data(once, now)
		for name := range once {
			if !bytes.Equal(once[name], twice[name]) {
				t.Errorf("%s changes when it is read again", name)
			}
		}
	})
}
