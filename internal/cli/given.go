package cli

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/ccgrkc/ccgrkc/internal/credential"
)

// givenAccount is an account to ask Active Directory as instead of the Secret's. The user names its domain too: one that is
// taken from a credential spec, which may come from anywhere, would let the spec's author say where the password goes.
type givenAccount struct {
	domain, username string
	password         passwordFlags
}

func (a *givenAccount) add(c *cobra.Command) {
	c.Flags().StringVar(&a.domain, "domain", "", "DNS name of the domain of --username, which alone is asked")
	c.Flags().StringVar(&a.username, "username", "", "account to ask as instead of the Secret's: its bare sAMAccountName")
	a.password.add(c, "the password of --username")
}

// isGiven reports whether any of the flags was used.
func (a givenAccount) isGiven() bool { return a.domain != "" || a.username != "" || a.password.given() }

// check says what is wrong in the flags, before anybody types a password.
func (a givenAccount) check() error {
	if a.domain == "" || a.username == "" {
		return usagef("--domain and --username go together: they name the account to ask as")
	}
	_, err := newCredential(a.domain, a.username, placeholder())
	return err
}

// read reads the password. The caller wipes it.
func (a givenAccount) read(ctx context.Context, g *globals) (credential.Credential, error) {
	password, err := a.password.read(ctx, g, fmt.Sprintf("password of %s in %s", a.username, a.domain), false)
	if err != nil {
		return credential.Credential{}, err
	}
	return newCredential(a.domain, a.username, password)
}
