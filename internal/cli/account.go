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
	"github.com/ccgrkc/ccgrkc/internal/inventory"
	"github.com/ccgrkc/ccgrkc/internal/verify"
)

func newAccount(g *globals) *cobra.Command {
	c := group(&cobra.Command{
		Use:   "account",
		Short: "Keep the Secrets of impersonation accounts",
		Long: `An impersonation account is the user of Active Directory that may read a gMSA's password. Its credentials are in one Secret,
which one release of the chart rancher-gmsa-account-provider serves to Windows nodes.`,
	})
	c.AddCommand(newAccountCreate(g), newAccountRotate(g))
	return c
}

// accountResult is what the account commands print.
type accountResult struct {
	Namespace        string `json:"namespace"`
	Secret           string `json:"secret"`
	PluginInput      string `json:"pluginInput"`
	DomainName       string `json:"domainName"`
	Username         string `json:"username"`
	Action           string `json:"action"` // created, rotated, unchanged
	Proved           bool   `json:"proved"` // Active Directory took the password
	DomainController string `json:"domainController,omitempty"`
	Security         string `json:"security,omitempty"`
	GMSA             string `json:"gmsa,omitempty"` // the account may read this one's password
}

type accountFlags struct {
	secret   string
	gmsa     string
	skip     bool
	password passwordFlags
}

func (f *accountFlags) add(g *globals, c *cobra.Command) {
	f.password.add(c, "the account's password")
	c.Flags().StringVar(&f.secret, "secret", "", "name of the Secret (default: the release's; before there is a release: <release>-creds)")
	c.Flags().StringVar(&f.gmsa, "gmsa", "", "also prove that the account may read the password of this gMSA")
	c.Flags().BoolVar(&f.skip, "skip-ad-check", false, "write the Secret without asking Active Directory")
	c.MarkFlagsMutuallyExclusive("gmsa", "skip-ad-check")
	g.addDirectoryFlags(c)
}

// oneRelease takes one argument. A second one may be a password, so no message repeats it.
func oneRelease(_ *cobra.Command, args []string) error {
	switch len(args) {
	case 0:
		return usagef("name the release: <namespace>/<release>")
	case 1:
		return nil
	}
	return fmt.Errorf("one <namespace>/<release> is wanted, and there are %d arguments: %w", len(args), errPasswordArgument)
}

func newAccountCreate(g *globals) *cobra.Command {
	var (
		f                accountFlags
		domain, username string
	)
	c := &cobra.Command{
		Use:   "create <namespace>/<release>",
		Short: "Write an account's credentials into its Secret, after Active Directory took them",
		Long: `Reads an account's domain, user name and password, proves them against Active Directory, and writes the Secret that the release
serves. What is wrong is found now, and not when a pod starts. An existing Secret is not touched: "account rotate" changes a password.

The password comes from the terminal, without echo, or from --password-file or --password-stdin; never from the command line.
The release need not exist yet; the namespace must.`,
		Example: g.examples(`
  # Ask for the password
  gmsactl account create gmsa-system/web --domain corp.example.com --username gmsa-reader

  # From a file, and prove that the account may read the password of the gMSA web01
  gmsactl account create gmsa-system/web --domain corp.example.com --username gmsa-reader --password-file password.txt --gmsa web01`),
		Args:              oneRelease,
		ValidArgsFunction: g.completeReleases,
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx := cmd.Context()
			cluster, ref, release, err := g.accountTarget(ctx, args[0], f.secret)
			if err != nil {
				return err
			}
			// Before anybody types a password.
			if err := cluster.TryCreateSecret(ctx, ref); err != nil {
				return g.secretError(ref, args[0], "create", err)
			}
			if domain == "" {
				if domain, err = g.ask(ctx, "DNS name of the domain", "--domain"); err != nil {
					return err
				}
			}
			if username == "" {
				if username, err = g.ask(ctx, "name of the account", "--username"); err != nil {
					return err
				}
			}
			if _, err := newCredential(domain, username, placeholder()); err != nil {
				return err
			}
			cred, result, err := g.readProved(ctx, f, ref, "password", domain, username)
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
				g.notef("There is no release %s yet. Install it with:\n  %s", args[0], verify.InstallReleaseCommand(name, ref))
			}
			return g.printAccount(result)
		},
	}
	c.Flags().StringVar(&domain, "domain", "", "DNS name of the account's domain, such as corp.example.com")
	c.Flags().StringVar(&username, "username", "", "bare name of the account (sAMAccountName), such as gmsa-reader")
	f.add(g, c)
	return c
}

func newAccountRotate(g *globals) *cobra.Command {
	var f accountFlags
	c := &cobra.Command{
		Use:   "rotate <namespace>/<release>",
		Short: "Write an account's new password into its Secret, after Active Directory took it",
		Long: `Writes the password that the account has now into the Secret; domain and user name stay. It changes nothing in Active
Directory: set the new password there first. Providers serve it within 5 seconds, without a restart. Between the two, nodes
that ask are refused by the domain, so do one right after the other.

Run again with the same password, it changes nothing.`,
		Example: g.examples(`
  gmsactl account rotate gmsa-system/web
  gmsactl account rotate gmsa-system/web --password-file password.txt`),
		Args:              oneRelease,
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
				return wrongf("Secret %s/%s: %w\nMake it anew: kubectl delete secret %s --namespace %s, then %s account create %s",
					ref.Namespace, ref.Secret, err, ref.Secret, ref.Namespace, g.program, args[0])
			}
			defer old.Password.Wipe()
			if s.Immutable != nil && *s.Immutable {
				return wrongf("Secret %s/%s is immutable, so its password cannot be changed\nMake it anew: kubectl delete secret %s --namespace %s, then %s account create %s",
					ref.Namespace, ref.Secret, ref.Secret, ref.Namespace, g.program, args[0])
			}
			cred, result, err := g.readProved(ctx, f, ref, "new password", old.DomainName, old.Username)
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
				g.notef("The annotation %s is removed: it held the old password.", inventory.LastApplied)
			}
			g.notef("Providers serve the new password within 5 seconds.")
			return g.printAccount(result)
		},
	}
	f.add(g, c)
	return c
}

// accountTarget returns the cluster, and the Secret of a release.
func (g *globals) accountTarget(ctx context.Context, arg, secret string) (*inventory.Cluster, credential.Reference, releaseState, error) {
	c, err := g.inventory()
	if err != nil {
		return nil, credential.Reference{}, 0, err
	}
	ref, state, err := g.account(ctx, c, arg, secret)
	return c, ref, state, err
}

// readProved reads the password of an account, and has Active Directory take it. The caller wipes it, with an error too.
func (g *globals) readProved(ctx context.Context, f accountFlags, ref credential.Reference, what, domain, username string) (credential.Credential, accountResult, error) {
	password, err := f.password.read(ctx, g, fmt.Sprintf("%s of %s in %s", what, username, domain), true)
	if err != nil {
		return credential.Credential{}, accountResult{}, err
	}
	cred, err := newCredential(domain, username, password)
	if err != nil {
		return cred, accountResult{}, err
	}
	result := accountResult{
		Namespace: ref.Namespace, Secret: ref.Secret, PluginInput: ref.String(), DomainName: cred.DomainName, Username: cred.Username,
	}
	err = g.prove(ctx, &result, f, cred)
	return cred, result, err
}

// newCredential checks the values as the provider will. It takes the password over.
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

// placeholder is a valid password that is nobody's, to check the other two values before one is asked for.
func placeholder() credential.Password { return credential.NewPassword([]byte("x")) }

// prove has Active Directory take the credentials, and tell whether the account may read the gMSA's password.
func (g *globals) prove(ctx context.Context, result *accountResult, f accountFlags, cred credential.Credential) error {
	if f.skip {
		g.warnf("Active Directory was not asked whether the password is right.")
		return nil
	}
	session, err := g.bind(ctx, cred)
	if err != nil {
		err = directoryError(err)
		if exitCode(err) == exitUnable {
			return unablef("%w\nTo write the Secret without asking Active Directory, add --skip-ad-check.", err)
		}
		return err
	}
	defer session.Close()
	result.Proved, result.DomainController, result.Security = true, session.Server(), string(session.Security())
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

// readGMSA reads a gMSA, and proves that the account of the session may read its password.
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
		fmt.Fprintf(w, "Secret %s/%s %s: account %s of %s", r.Namespace, r.Secret, r.Action, r.Username, r.DomainName)
		if r.Proved {
			fmt.Fprintf(w, ", taken by %s (%s)", r.DomainController, r.Security)
		}
		if r.GMSA != "" {
			fmt.Fprintf(w, ", may read the password of gMSA %s", r.GMSA)
		}
		fmt.Fprintln(w)
	})
}

// What is known of a release.
type releaseState int

const (
	releaseFound releaseState = iota
	releaseMissing
	releaseUnseen // listing DaemonSets is not allowed
)

// account returns where the Secret of a release is. arg is <namespace>/<release>; secret is its name if the user gave one.
func (g *globals) account(ctx context.Context, c *inventory.Cluster, arg, secret string) (credential.Reference, releaseState, error) {
	namespace, release, err := parseRelease(arg)
	if err != nil {
		return credential.Reference{}, 0, err
	}
	state := releaseMissing
	releases, err := c.Releases(ctx, namespace)
	switch {
	case err != nil && !notAllowed(err):
		return credential.Reference{}, 0, g.clusterError("DaemonSets in namespace "+namespace, inventory.Right("list", "daemonsets.apps", namespace), err)
	case err != nil:
		state = releaseUnseen
		if secret == "" {
			g.warnf("whether release %s names its Secret otherwise than %s could not be looked at: needs the right to %s", arg, credential.SecretName(release), inventory.Right("list", "daemonsets.apps", namespace))
		}
	}
	for _, r := range inventory.Of(releases, inventory.ProviderChart) {
		if r.Name != release {
			continue
		}
		state = releaseFound
		if secret != "" && r.Secret != secret {
			g.warnf("release %s serves Secret %s, not %s.", arg, r.Secret, secret)
		}
		if secret == "" {
			secret = r.Secret
		}
	}
	if secret == "" {
		secret = credential.SecretName(release)
	}
	ref, err := credential.NewReference(namespace, secret)
	if err != nil {
		return ref, state, usagef("%s: %w", arg, err)
	}
	return ref, state, nil
}

func parseRelease(arg string) (namespace, release string, _ error) {
	if ref, err := credential.ParseReference(arg); err == nil {
		return "", "", usagef("%s is a plugin input; write the release: %s", arg, ref.Release())
	}
	namespace, release, ok := strings.Cut(arg, "/")
	if !ok {
		return "", "", usagef("%q: write <namespace>/<release>, such as gmsa-system/web", arg)
	}
	// Helm's names of releases have the form of a Secret's name.
	if _, err := credential.NewReference(namespace, release); err != nil {
		return "", "", usagef("%q: %w; write <namespace>/<release>, such as gmsa-system/web", arg, err)
	}
	return namespace, release, nil
}

// secretError explains what the API server said to a call about an account's Secret.
func (g *globals) secretError(ref credential.Reference, release, verb string, err error) error {
	name := ref.Namespace + "/" + ref.Secret
	status, _ := err.(apierrors.APIStatus)
	switch {
	case apierrors.IsAlreadyExists(err):
		return wrongf("Secret %s exists already, and is left as it is\nFor a new password: %s account rotate %s\nFor another account: kubectl delete secret %s --namespace %s, then this again",
			name, g.program, release, ref.Secret, ref.Namespace)
	case apierrors.IsNotFound(err) && status != nil && status.Status().Details != nil && status.Status().Details.Kind == "namespaces":
		return wrongf("there is no namespace %s\nMake it: kubectl create namespace %s", ref.Namespace, ref.Namespace)
	case apierrors.IsNotFound(err):
		return wrongf("there is no Secret %s\nMake it: %s account create %s", name, g.program, release)
	case apierrors.IsConflict(err):
		return wrongf("Secret %s was changed by somebody else meanwhile, and is left as it is\nRun this again, if the password is still the right one", name)
	}
	resource := "secrets/" + ref.Secret
	if verb == "create" { // RBAC cannot narrow it to a name
		resource = "secrets"
	}
	return g.clusterError("Secret "+name, inventory.Right(verb, resource, ref.Namespace), err)
}

// clusterError explains an error of the API server about something that needs a right.
func (g *globals) clusterError(what, right string, err error) error {
	switch {
	case apierrors.IsUnauthorized(err):
		return unablef("%s: the cluster does not know who you are; log in to it again: %w", what, err)
	case notAllowed(err):
		return unablef("%s: you need the right to %s", what, right)
	case unreachable(err):
		return unablef("%s: the cluster cannot be reached: %w", what, err)
	}
	return &failure{exitCode(err), fmt.Errorf("%s: %w", what, err)}
}

func (g *globals) completeReleases(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	c, err := g.inventory()
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), completionTime)
	defer cancel()
	releases, err := c.Releases(ctx, "")
	if namespace := *g.config.Namespace; err != nil && namespace != "" {
		releases, _ = c.Releases(ctx, namespace)
	}
	var names []string
	for _, r := range inventory.Of(releases, inventory.ProviderChart) {
		names = append(names, r.String())
	}
	return slices.Compact(names), cobra.ShellCompDirectiveNoFileComp
}
