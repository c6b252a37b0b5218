package cli

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/ccgrkc/ccgrkc/internal/credential"
)

// credentialFlags specify an account that replaces the Secret's. They include the domain. A credential spec can come
// from an untrusted source. With a domain from the spec, its author could choose which server receives the password.
type credentialFlags struct {
	domain, username string
	password         passwordFlags
}

func (a *credentialFlags) add(c *cobra.Command) {
	c.Flags().StringVar(&a.domain, "domain", "",
		"DNS name of the domain of --username; only this domain receives the password")
	c.Flags().StringVar(&a.username, "username", "",
		"account to use instead of the Secret's: sAMAccountName, without domain")
	a.password.add(c, "the password of --username")
}

// isSet reports whether the user set one of the flags.
func (a credentialFlags) isSet() bool {
	return a.domain != "" || a.username != "" || a.password.isSet()
}

// validate checks the flags. It runs before the prompt for the password.
func (a credentialFlags) validate() error {
	if a.domain == "" || a.username == "" {
		return usagef("--domain and --username must be used together")
	}
	_, err := newCredential(a.domain, a.username, placeholder())
	return err
}

// read reads the password. The caller wipes it.
func (a credentialFlags) read(ctx context.Context, g *globals) (credential.Credential, error) {
	password, err := a.password.read(ctx, g, fmt.Sprintf("password of %s in %s", a.username, a.domain), false)
	if err != nil {
		return credential.Credential{}, err
	}
	return newCredential(a.domain, a.username, password)
}
