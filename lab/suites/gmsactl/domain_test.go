package gmsactl

import (
	"context"

	"github.com/ccgrkc/ccgrkc/internal/credential"
	"github.com/ccgrkc/ccgrkc/lab/env/ad"
)

// domain is a domain with additional objects for the tests.
type domain struct {
	*ad.Domain
	Reader, Password string // the impersonation account
	Unreadable       string // a gMSA whose password Reader cannot read
}

func startDomain(ctx context.Context, dir string) (*domain, error) {
	d, err := ad.Start(ctx, dir, ad.Corp)
	if err != nil {
		return nil, err
	}
	const unreadable = "secret02"
	if err := d.AddGMSA(ctx, unreadable); err != nil {
		d.Stop()
		return nil, err
	}
	return &domain{d, d.Reader.Username, string(d.Reader.Password.Reveal()), unreadable}, nil
}

// addReader creates a user that can read the password of the domain's gMSA.
func (d *domain) addReader(ctx context.Context, name, password string) error {
	return d.AddUser(ctx, name, credential.NewPassword([]byte(password)), ad.Group)
}

func (d *domain) setPassword(ctx context.Context, name, password string) error {
	return d.SetPassword(ctx, name, credential.NewPassword([]byte(password)))
}
