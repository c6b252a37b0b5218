package servingcert

import (
	"crypto/x509"
	"errors"
	"fmt"
	"reflect"
	"strings"

	"github.com/ccgrkc/ccgrkc/internal/kube"
)

// problem is an error of one step. The text of err can differ in each pass, for example in a port or a time.
type problem struct {
	step string
	err  error
}

func (p *problem) Error() string { return p.err.Error() }
func (p *problem) Unwrap() error { return p.err }

// causes returns what err has in common with later errors of the same cause: the step, the HTTP status, and the kind of
// the innermost error.
func causes(err error) string {
	if err == nil {
		return ""
	}
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		var all []string
		for _, e := range joined.Unwrap() {
			all = append(all, causes(e))
		}
		return strings.Join(all, "; ")
	}
	if p, ok := err.(*problem); ok {
		return p.step + ": " + causes(p.err)
	}
	if inner := errors.Unwrap(err); inner != nil {
		return causes(inner)
	}
	kind := reflect.TypeOf(err)
	switch e := err.(type) {
	case *kube.StatusError:
		return fmt.Sprint(kind, " ", e.Code)
	case x509.CertificateInvalidError:
		return fmt.Sprint(kind, " ", e.Reason)
	}
	if kind == reflect.TypeOf(errors.New("")) {
		return err.Error() // the text is all that there is
	}
	return kind.String()
}
