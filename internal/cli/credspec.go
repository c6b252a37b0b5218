package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/yaml"

	"github.com/ccgrkc/ccgrkc/internal/credential"
	"github.com/ccgrkc/ccgrkc/internal/credspec"
	"github.com/ccgrkc/ccgrkc/internal/inventory"
)

func newCredspec(g *globals) *cobra.Command {
	c := group(&cobra.Command{
		Use:   "credspec",
		Short: "Make and check credential specs",
		Long: `A credential spec tells Windows which gMSA a container is, and which plugin knows the account that may read its password. In
a cluster it is a GMSACredentialSpec, which pods name in securityContext.windowsOptions.gmsaCredentialSpecName.`,
	})
	c.AddCommand(newCredspecCreate(g), newCredspecCheck(g))
	return c
}

// Forms of a credential spec.
const (
	formatKubernetes = "kubernetes"
	formatDocker     = "docker"
)

type createFlags struct {
	gmsa, name, format     string
	account, secret, input string
	given                  givenAccount
	apply, skipRead        bool
}

func newCredspecCreate(g *globals) *cobra.Command {
	var f createFlags
	c := &cobra.Command{
		Use:   "create --gmsa NAME --account <namespace>/<release>",
		Short: "Make the credential spec of a gMSA from Active Directory",
		Long: `Binds to Active Directory as the impersonation account of a release, reads the domain and the gMSA, proves that the account may
read the gMSA's password, and prints a GMSACredentialSpec for kubectl apply. It needs the right to get the release's Secret.

Who may not read that Secret gives an account of the domain with --domain, --username and a password, which is asked for without
echo, or comes from --password-file or --password-stdin. No cluster is needed then. --account only says what PluginInput is.

The credential spec goes to standard output, all else to standard error.`,
		Example: g.examples(`
  # A GMSACredentialSpec named web01
  gmsactl credspec create --gmsa web01 --account gmsa-system/web > web01.yaml

  # Written into the cluster
  gmsactl credspec create --gmsa web01 --account gmsa-system/web --apply

  # Without a cluster, as JSON for a container runtime
  gmsactl credspec create --gmsa web01 --account gmsa-system/web --domain corp.example.com --username gmsa-reader --password-file password.txt --format docker`),
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return g.createCredspec(cmd.Context(), f) },
	}
	flags := c.Flags()
	flags.StringVar(&f.gmsa, "gmsa", "", "name of the gMSA, with or without $ (required)")
	flags.StringVar(&f.account, "account", "", "release that serves the impersonation account, <namespace>/<release>")
	flags.StringVar(&f.secret, "secret", "", "name of the account's Secret (default: the release's; without a cluster: <release>-creds)")
	flags.StringVar(&f.input, "plugin-input", "", "PluginInput, <namespace>:<secret>, instead of --account")
	flags.StringVar(&f.name, "name", "", "name of the GMSACredentialSpec (default: the gMSA's)")
	flags.StringVar(&f.format, "format", formatKubernetes, "kubernetes: a GMSACredentialSpec; docker: the plain JSON that container runtimes read")
	flags.BoolVar(&f.apply, "apply", false, "write the GMSACredentialSpec into the cluster, by server-side apply")
	flags.BoolVar(&f.skipRead, "skip-read-check", false, "do not ask whether the account may read the gMSA's password; for --username of another account than the Secret's")
	f.given.add(c)
	c.MarkFlagsOneRequired("account", "plugin-input")
	c.MarkFlagsMutuallyExclusive("account", "plugin-input")
	c.MarkFlagsMutuallyExclusive("secret", "plugin-input")
	_ = c.MarkFlagRequired("gmsa")
	_ = c.RegisterFlagCompletionFunc("account", g.completeReleases)
	_ = c.RegisterFlagCompletionFunc("format", cobra.FixedCompletions([]string{formatKubernetes, formatDocker}, cobra.ShellCompDirectiveNoFileComp))
	g.addDirectoryFlags(c)
	return c
}

func (g *globals) createCredspec(ctx context.Context, f createFlags) error {
	if f.given.isGiven() {
		if err := f.given.check(); err != nil {
			return err
		}
	}
	switch {
	case f.format != formatKubernetes && f.format != formatDocker:
		return usagef("--format %s: use kubernetes or docker", f.format)
	case f.apply && f.format == formatDocker:
		return usagef("--apply writes a GMSACredentialSpec, so it does not go with --format docker")
	}
	gmsa := strings.TrimSuffix(f.gmsa, "$")
	if gmsa == "" {
		return usagef("--gmsa is empty: name the gMSA")
	}
	name := f.name
	if name == "" {
		name = strings.ToLower(gmsa)
	}
	if err := credential.ValidateName(name); err != nil && f.format == formatKubernetes {
		return usagef("%q cannot be the name of a GMSACredentialSpec: give it one of lower-case letters, digits and hyphens with --name", name)
	}
	// So that what cannot be reached is told before Active Directory is asked.
	var c *inventory.Cluster
	var err error
	if f.apply || !f.given.isGiven() {
		if c, err = g.inventory(); err != nil {
			return err
		}
	}
	ref, err := g.credspecReference(ctx, c, f)
	if err != nil {
		return err
	}
	cred, err := g.credspecCredential(ctx, c, f, ref)
	if err != nil {
		return err
	}
	defer cred.Password.Wipe()
	spec, err := g.readSpec(ctx, cred, gmsa, ref, f.skipRead)
	if err != nil {
		return err
	}
	// What Active Directory says is right by definition, but it may be more than a credential spec can say.
	for _, p := range spec.Check() {
		g.warnf("%s", p)
	}
	if f.apply {
		return g.applyCredspec(ctx, c, name, spec)
	}
	return g.printSpec(name, spec, f.format)
}

// credspecReference returns what PluginInput is to say.
func (g *globals) credspecReference(ctx context.Context, c *inventory.Cluster, f createFlags) (credential.Reference, error) {
	if f.input != "" {
		ref, err := credential.ParseReference(f.input)
		if err != nil {
			return ref, usagef("--plugin-input: %w", err)
		}
		return ref, nil
	}
	if f.given.isGiven() {
		namespace, release, err := parseRelease(f.account)
		if err != nil {
			return credential.Reference{}, err
		}
		secret := f.secret
		if secret == "" {
			secret = credential.SecretName(release)
		}
		ref, err := credential.NewReference(namespace, secret)
		if err != nil {
			return ref, usagef("--secret: %w", err)
		}
		return ref, nil
	}
	ref, _, err := g.account(ctx, c, f.account, f.secret)
	return ref, err
}

// credspecCredential returns the account to ask Active Directory as.
func (g *globals) credspecCredential(ctx context.Context, c *inventory.Cluster, f createFlags, ref credential.Reference) (credential.Credential, error) {
	if f.given.isGiven() {
		return f.given.read(ctx, g)
	}
	cred, warnings, err := c.Secret(ctx, ref)
	for _, w := range warnings {
		g.warnf("Secret %s/%s: %s", ref.Namespace, ref.Secret, w)
	}
	release := f.account
	if release == "" {
		release = ref.Release()
	}
	if apierrors.IsForbidden(err) {
		return cred, unablef("Secret %s/%s: you need the right to %s\nWithout it, name an account of the domain: --domain, --username and --password-file",
			ref.Namespace, ref.Secret, inventory.Right("get", "secrets/"+ref.Secret, ref.Namespace))
	}
	if invalid, ok := errors.AsType[*inventory.InvalidSecret](err); ok {
		return cred, &failure{exitWrong, invalid}
	}
	if err != nil {
		return cred, g.secretError(ref, release, "get", err)
	}
	return cred, nil
}

func (g *globals) readSpec(ctx context.Context, cred credential.Credential, gmsa string, ref credential.Reference, skipRead bool) (credspec.Spec, error) {
	session, err := g.bind(ctx, cred)
	if err != nil {
		return credspec.Spec{}, directoryError(err)
	}
	defer session.Close()
	domain, err := session.Domain(ctx)
	if err != nil {
		return credspec.Spec{}, directoryError(err)
	}
	found, err := session.GMSA(ctx, gmsa)
	if err == nil && !skipRead {
		found, err = readGMSA(ctx, session, gmsa)
	}
	if err != nil {
		return credspec.Spec{}, directoryError(err)
	}
	if !found.Enabled {
		g.warnf("gMSA %s is disabled: no pod will get a ticket as it. Enable it: %s", found.Name, enableCommand(found.Name))
	}
	return credspec.New(credspec.Domain(domain), found.Name, ref.String()), nil
}

func (g *globals) printSpec(name string, spec credspec.Spec, format string) error {
	content := spec.JSON()
	if format == formatKubernetes {
		var err error
		if content, err = credspec.Object(name, spec); err != nil {
			return err
		}
	}
	switch {
	case g.output == outputJSON && format == formatKubernetes:
		j, err := yaml.YAMLToJSON(content)
		if err != nil {
			return err
		}
		var object any
		if err := json.Unmarshal(j, &object); err != nil {
			return err
		}
		return g.print(object, nil)
	case g.output == outputYAML && format == formatDocker:
		return g.print(spec, nil)
	}
	_, err := g.streams.Out.Write(content)
	return err
}

func (g *globals) applyCredspec(ctx context.Context, c *inventory.Cluster, name string, spec credspec.Spec) error {
	created, err := c.ApplyCredentialSpec(ctx, name, spec)
	what := "GMSACredentialSpec " + name
	switch {
	case apierrors.IsNotFound(err):
		// Server-side apply makes what is not there, so it is the resource that is missing.
		return wrongf("%w\nInstall it:\n"+
			"  kubectl apply -f https://raw.githubusercontent.com/kubernetes-sigs/windows-gmsa/master/admission-webhook/deploy/gmsa-crd.yml", inventory.ErrNoCredentialSpecs)
	case apierrors.IsConflict(err):
		return wrongf("%s: somebody else set fields of it otherwise, and it is left as it is: %w\nTo take them over, run this without --apply and pipe it into: kubectl apply --server-side --force-conflicts --field-manager %s -f -",
			what, err, inventory.Manager)
	case err != nil:
		return g.clusterError(what, inventory.Right("patch", inventory.CredentialSpecResource, ""), err)
	}
	result := struct {
		Name        string `json:"name"`
		GMSA        string `json:"gmsa"`
		PluginInput string `json:"pluginInput"`
		Created     bool   `json:"created"`
	}{name, spec.GMSAName(), spec.ActiveDirectoryConfig.HostAccountConfig.PluginInput, created}
	g.notef("A pod may name it if its ServiceAccount has the verb use on gmsacredentialspecs/%s.", name)
	return g.print(result, func(w io.Writer) {
		done := "applied"
		if created {
			done = "created"
		}
		fmt.Fprintf(w, "%s %s: gMSA %s, %s\n", what, done, result.GMSA, result.PluginInput)
	})
}
