package cli

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/ccgrkc/ccgrkc/internal/credential"
	"github.com/ccgrkc/ccgrkc/internal/directory"
	"github.com/ccgrkc/ccgrkc/internal/escape"
	"github.com/ccgrkc/ccgrkc/internal/inventory"
	"github.com/ccgrkc/ccgrkc/internal/verify"
)

func newAccount(g *globals) *cobra.Command {
	c := group(&cobra.Command{
		Use:   "account",
		Short: "Manage the Secrets of impersonation accounts",
		Long: `An impersonation account is the Active Directory user that can read a gMSA's password. Its credentials
are in one Secret. A release of the chart rancher-gmsa-account-provider provides that Secret to Windows nodes.`,
	})
	c.AddCommand(newAccountCreate(g), newAccountRotate(g))
	return c
}

// accountResult is the output of the account commands.
type accountResult struct {
	Namespace        string `json:"namespace"`
	Secret           string `json:"secret"`
	PluginInput      string `json:"pluginInput"`
	DomainName       string `json:"domainName"`
	Username         string `json:"username"`
	Action           string `json:"action"`   // created, rotated or unchanged
	Verified         bool   `json:"verified"` // Active Directory accepted the password
	DomainController string `json:"domainController,omitempty"`
	Security         string `json:"security,omitempty"`
	GMSA             string `json:"gmsa,omitempty"` // the account can read the password of this gMSA
}

type accountFlags struct {
	secret   string
	gmsa     string
	skip     bool
	password passwordFlags
}

func (f *accountFlags) add(g *globals, c *cobra.Command) {
	f.password.add(c, "the account's password")
	c.Flags().StringVar(&f.secret, "secret", "",
		"name of the Secret (default: from the release; without a release: <release>-creds)")
	c.Flags().StringVar(&f.gmsa, "gmsa", "", "also verify that the account can read the password of this gMSA")
	c.Flags().BoolVar(&f.skip, "skip-ad-check", false, "write the Secret without verifying the password")
	c.MarkFlagsMutuallyExclusive("gmsa", "skip-ad-check")
	g.addDirectoryFlags(c)
}

// releaseArgument accepts one argument. A second argument can be a password, so the error does not contain it.
func releaseArgument(_ *cobra.Command, args []string) error {
	switch len(args) {
	case 0:
		return usagef("specify the release: <namespace>/<release>")
	case 1:
		return nil
	}
	return fmt.Errorf("expected one argument <namespace>/<release>, got %d: %w", len(args), errPasswordArgument)
}

func newAccountCreate(g *globals) *cobra.Command {
	var (
		f                accountFlags
		domain, username string
	)
	c := &cobra.Command{
		Use:   "create <namespace>/<release>",
		Short: "Create the Secret of an account, after verifying its credentials",
		Long: `Verifies an account's credentials with Active Directory and creates the Secret for the release. The
command fails if the Secret exists. To change a password, use "account rotate".

The command prompts for the password. Alternatively, use --password-file or --password-stdin. A password is not
accepted on the command line. The namespace must exist. The release is not required yet.`,
		Example: g.examples(`
  # Prompt for the password
  gmsactl account create gmsa-system/web --domain corp.example.com --username gmsa-reader

  # Read the password from a file, and verify that the account can read the password of the gMSA web01
  gmsactl account create gmsa-system/web --domain corp.example.com --username gmsa-reader --password-file password.txt --gmsa web01`),
		Args:              releaseArgument,
		ValidArgsFunction: g.completeReleases,
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx := cmd.Context()
			cluster, ref, release, err := g.accountTarget(ctx, args[0], f.secret)
			if err != nil {
				return err
			}
			// Before the prompt for the password.
			if err := cluster.TryCreateSecret(ctx, ref); err != nil {
				return g.secretError(ref, args[0], "create", err)
			}
			if domain == "" {
				if domain, err = g.prompt(ctx, "DNS name of the domain", "--domain"); err != nil {
					return err
				}
			}
			if username == "" {
				if username, err = g.prompt(ctx, "account name (sAMAccountName)", "--username"); err != nil {
					return err
				}
			}
			if _, err := newCredential(domain, username, placeholder()); err != nil {
				return err
			}
			cred, result, err := g.readVerified(ctx, f, ref, "password", domain, username)
			defer cred.Password.Wipe()
			if err != nil {
				return err
			}
			result.Action = "created"
			if err := cluster.CreateSecret(ctx, ref, cred); err != nil {
				return g.secretError(ref, args[0], "create", err)
			}
			if release == releaseMissing {
				_, name, _ := strings.Cut(args[0], "/")
				g.notef("The release %s does not exist yet. Install it:\n  %s", args[0],
					verify.InstallReleaseCommand(name, ref))
			}
			return g.printAccount(result)
		},
	}
	c.Flags().StringVar(&domain, "domain", "", "DNS name of the account's domain, such as corp.example.com")
	c.Flags().StringVar(&username, "username", "", "sAMAccountName of the account, without domain, such as gmsa-reader")
	f.add(g, c)
	return c
}

func newAccountRotate(g *globals) *cobra.Command {
	var f accountFlags
	c := &cobra.Command{
		Use:   "rotate <namespace>/<release>",
		Short: "Write an account's new password to its Secret, after verifying it",
		Long: `Writes the account's current password to the Secret. The domain and the user name remain. The command
does not change the password in Active Directory: set the new password there first, then run the command immediately.
Until then, nodes use the old password, which the domain rejects. Providers use the new password within 5 seconds,
without a restart.

If the Secret already contains the password, the command changes nothing.`,
		Example: g.examples(`
  gmsactl account rotate gmsa-system/web
  gmsactl account rotate gmsa-system/web --password-file password.txt`),
		Args:              releaseArgument,
		ValidArgsFunction: g.completeReleases,
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx := cmd.Context()
			cluster, ref, _, err := g.accountTarget(ctx, args[0], f.secret)
			if err != nil {
				return err
			}
			s, err := cluster.GetSecret(ctx, ref)
			if err != nil {
				return g.secretError(ref, args[0], "get", err)
			}
			defer inventory.Wipe(s)
			old, _, err := credential.FromSecret(s.Data)
			if err != nil {
				return faultf("Secret %s/%s: %w\n%s", ref.Namespace, ref.Secret, err, g.recreateSecret(ref, args[0]))
			}
			defer old.Password.Wipe()
			if s.Immutable != nil && *s.Immutable {
				return faultf("Secret %s/%s is immutable\n%s", ref.Namespace, ref.Secret,
					g.recreateSecret(ref, args[0]))
			}
			cred, result, err := g.readVerified(ctx, f, ref, "new password", old.DomainName, old.Username)
			defer cred.Password.Wipe()
			if err != nil {
				return err
			}
			result.Action = "rotated"
			_, applied := s.Annotations[inventory.LastApplied]
			if bytes.Equal(s.Data[credential.KeyPassword], cred.Password.Reveal()) && !applied {
				result.Action = "unchanged"
				return g.printAccount(result)
			}
			if err := cluster.SetPassword(ctx, s, cred.Password); err != nil {
				return g.secretError(ref, args[0], "update", err)
			}
			if applied {
				g.notef("The annotation %s was removed because it contained the old password.", inventory.LastApplied)
			}
			g.notef("Providers use the new password within 5 seconds.")
			return g.printAccount(result)
		},
	}
	f.add(g, c)
	return c
}

func (g *globals) recreateSecret(ref credential.Reference, release string) string {
	return fmt.Sprintf("Recreate it: kubectl delete secret %s --namespace %s, then %s account create %s",
		ref.Secret, ref.Namespace, g.program, release)
}

// accountTarget returns the cluster and the Secret of a release.
func (g *globals) accountTarget(
	ctx context.Context, arg, secret string,
) (*inventory.Cluster, credential.Reference, releaseState, error) {
	c, err := g.inventory()
	if err != nil {
		return nil, credential.Reference{}, 0, err
	}
	ref, state, err := g.resolveSecret(ctx, c, arg, secret)
	return c, ref, state, err
}

// readVerified reads the password of an account and verifies it. The caller wipes the password even if there is an
// error.
func (g *globals) readVerified(
	ctx context.Context, f accountFlags, ref credential.Reference, what, domain, username string,
) (credential.Credential, accountResult, error) {
	password, err := f.password.read(ctx, g, fmt.Sprintf("%s of %s in %s", what, username, domain), true)
	if err != nil {
		return credential.Credential{}, accountResult{}, err
	}
	cred, err := newCredential(domain, username, password)
	if err != nil {
		return cred, accountResult{}, err
	}
	result := accountResult{
		Namespace:   ref.Namespace,
		Secret:      ref.Secret,
		PluginInput: ref.String(),
		DomainName:  cred.DomainName,
		Username:    cred.Username,
	}
	err = g.verifyCredential(ctx, &result, f, cred)
	return cred, result, err
}

// newCredential checks the values as the provider does. It wipes the password that it gets.
func newCredential(domain, username string, password credential.Password) (credential.Credential, error) {
	defer password.Wipe()
	c, _, err := credential.FromSecret(map[string][]byte{
		credential.KeyDomainName: []byte(domain),
		credential.KeyUsername:   []byte(username),
		credential.KeyPassword:   password.Reveal(),
	})
	if err != nil {
		return c, usagef("%w", err)
	}
	return c, nil
}

// placeholder returns a valid password, to check the other values before the prompt for the real one.
func placeholder() credential.Password { return credential.NewPassword([]byte("x")) }

// verifyCredential verifies the credentials with Active Directory. If --gmsa is set, it also verifies the permission to
// read that gMSA's password.
func (g *globals) verifyCredential(
	ctx context.Context, result *accountResult, f accountFlags, cred credential.Credential,
) error {
	if f.skip {
		g.warnf("the password was not verified with Active Directory")
		return nil
	}
	session, err := g.bind(ctx, cred)
	if err != nil {
		err = directoryError(err)
		if exitCode(err) == exitIncomplete {
			return incompletef("%w\nTo write the Secret without this check, add --skip-ad-check", err)
		}
		return err
	}
	defer session.Close()
	result.Verified, result.DomainController, result.Security = true, session.Server(), string(session.Security())
	if f.gmsa == "" {
		return nil
	}
	gmsa, err := readGMSA(ctx, session, f.gmsa)
	if err != nil {
		return directoryError(err)
	}
	result.GMSA = gmsa.Name
	return nil
}

func (g *globals) bind(ctx context.Context, cred credential.Credential) (*directory.Session, error) {
	config, err := g.directoryConfig(cred.DomainName)
	if err != nil {
		return nil, err
	}
	return directory.Bind(ctx, config, cred)
}

// readGMSA reads a gMSA and verifies that the account of the session can read its password.
func readGMSA(ctx context.Context, session *directory.Session, name string) (directory.GMSA, error) {
	gmsa, err := session.GMSA(ctx, name)
	if err != nil {
		return gmsa, err
	}
	password, err := session.ManagedPassword(ctx, gmsa.Name)
	if err != nil {
		return gmsa, err
	}
	password.Wipe()
	return gmsa, nil
}

func (g *globals) printAccount(r accountResult) error {
	return g.print(r, func(w io.Writer) {
		escape.Fprintf(w, "Secret %s/%s %s: account %s of %s",
			r.Namespace, r.Secret, r.Action, r.Username, r.DomainName)
		if r.Verified {
			escape.Fprintf(w, ", verified with %s (%s)", r.DomainController, r.Security)
		}
		if r.GMSA != "" {
			escape.Fprintf(w, ", can read the password of gMSA %s", r.GMSA)
		}
		escape.Fprintf(w, "\n")
	})
}

// releaseState reports whether a release exists.
type releaseState int

const (
	releaseFound releaseState = iota
	releaseMissing
	releaseUnknown // no permission to list DaemonSets
)

// resolveSecret returns the Secret of a release. arg is <namespace>/<release>. secret is the value of --secret.
func (g *globals) resolveSecret(
	ctx context.Context, c *inventory.Cluster, arg, secret string,
) (credential.Reference, releaseState, error) {
	namespace, release, err := parseRelease(arg)
	if err != nil {
		return credential.Reference{}, 0, err
	}
	defaultSecret := credential.SecretName(release)
	permission := inventory.Permission("list", "daemonsets.apps", namespace)
	state := releaseMissing
	releases, err := c.Releases(ctx, namespace)
	switch {
	case err != nil && !isDenied(err):
		return credential.Reference{}, 0, g.clusterError("DaemonSets in namespace "+namespace, permission, err)
	case err != nil:
		state = releaseUnknown
		if secret == "" {
			g.warnf("assuming that release %s uses the Secret %s; checking this requires permission: %s",
				arg, defaultSecret, permission)
		}
	}
	for _, r := range inventory.Of(releases, inventory.ProviderChart) {
		if r.Name != release {
			continue
		}
		state = releaseFound
		if secret != "" && r.Secret != secret {
			g.warnf("release %s uses the Secret %s, not %s", arg, r.Secret, secret)
		}
		if secret == "" {
			secret = r.Secret
		}
	}
	if secret == "" {
		secret = defaultSecret
	}
	ref, err := credential.NewReference(namespace, secret)
	if err != nil {
		return ref, state, usagef("%s: %w", arg, err)
	}
	return ref, state, nil
}

func parseRelease(arg string) (namespace, release string, _ error) {
	if ref, err := credential.ParseReference(arg); err == nil {
		return "", "", usagef("%s is a plugin input; specify the release: %s", arg, ref.Release())
	}
	namespace, release, ok := strings.Cut(arg, "/")
	if !ok {
		return "", "", usagef("%q: specify <namespace>/<release>, such as gmsa-system/web", arg)
	}
	// Helm's release names have the same form as names of Secrets.
	if _, err := credential.NewReference(namespace, release); err != nil {
		return "", "", usagef("%q: %w; specify <namespace>/<release>, such as gmsa-system/web", arg, err)
	}
	return namespace, release, nil
}

// secretError explains an error of the API server about a credentials Secret.
func (g *globals) secretError(ref credential.Reference, release, verb string, err error) error {
	name := ref.Namespace + "/" + ref.Secret
	status, _ := err.(apierrors.APIStatus)
	switch {
	case apierrors.IsAlreadyExists(err):
		return faultf("Secret %s already exists\nTo change the password: %s account rotate %s\n"+
			"To replace the account: kubectl delete secret %s --namespace %s, then run this command again",
			name, g.program, release, ref.Secret, ref.Namespace)
	case apierrors.IsNotFound(err) && status != nil && status.Status().Details != nil &&
		status.Status().Details.Kind == "namespaces":
		return faultf("the namespace %s does not exist\nCreate it: kubectl create namespace %s", ref.Namespace,
			ref.Namespace)
	case apierrors.IsNotFound(err):
		return faultf("the Secret %s does not exist\nCreate it: %s account create %s", name, g.program, release)
	case apierrors.IsConflict(err):
		return faultf("Secret %s was changed by another client; nothing was written\n"+
			"If the password is still correct, run this command again", name)
	}
	resource := "secrets/" + ref.Secret
	if verb == "create" { // RBAC cannot restrict create to a name
		resource = "secrets"
	}
	return g.clusterError("Secret "+name, inventory.Permission(verb, resource, ref.Namespace), err)
}

// clusterError explains an error of the API server about a request that requires a permission.
func (g *globals) clusterError(what, permission string, err error) error {
	switch {
	case apierrors.IsUnauthorized(err):
		return incompletef("%s: the cluster rejected your login; log in again: %w", what, err)
	case isDenied(err):
		return incompletef("%s: requires permission: %s", what, permission)
	case isUnreachable(err):
		return incompletef("%s: the cluster is unreachable: %w", what, err)
	}
	return &exitError{exitCode(err), fmt.Errorf("%s: %w", what, err)}
}

func (g *globals) completeReleases(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	c, err := g.inventory()
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), completionTimeout)
	defer cancel()
	releases, err := c.Releases(ctx, "")
	if namespace := *g.config.Namespace; err != nil && namespace != "" {
		releases, _ = c.Releases(ctx, namespace)
	}
	var names []string
	for _, r := range inventory.Of(releases, inventory.ProviderChart) {
		names = append(names, r.String())
	}
	return completions(slices.Compact(names)), cobra.ShellCompDirectiveNoFileComp
}
