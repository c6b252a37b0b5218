package servingcert

import (
	"crypto/x509"
	"time"
)

// maxDifference is the largest difference between two clocks that counts as agreement.
const maxDifference = 5 * time.Minute

// clocks is the current time by two clocks. Either can be wrong: a node's, or that of one of several API servers, for
// seconds or for ever. The rules that follow from this:
//
//   - What this webhook issues is valid by both clocks.
//   - Something is renewed when it is due by the API server's clock, because API servers verify certificates.
//   - A certificate counts as expired only if it has expired by both clocks.
//   - Nothing is removed while the clocks disagree.
type clocks struct{ api, local time.Time }

func (c clocks) earlier() time.Time {
	if c.local.Before(c.api) {
		return c.local
	}
	return c.api
}

func (c clocks) later() time.Time {
	if c.local.After(c.api) {
		return c.local
	}
	return c.api
}

// ahead returns how far the API server's clock is ahead of the local one.
func (c clocks) ahead() time.Duration { return c.api.Sub(c.local) }

func (c clocks) disagree() bool { return c.ahead().Abs() > maxDifference }

// valid reports whether a certificate is valid by at least one clock.
func (c clocks) valid(cert *x509.Certificate) bool {
	in := func(t time.Time) bool { return !t.Before(cert.NotBefore) && t.Before(cert.NotAfter) }
	return in(c.api) || in(c.local)
}

func (c clocks) expired(cert *x509.Certificate) bool { return !c.earlier().Before(cert.NotAfter) }
