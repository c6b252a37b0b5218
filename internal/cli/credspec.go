package cli

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"strings"

	"github.com/spf13/cobra"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/yaml"

	"github.com/ccgrkc/ccgrkc/internal/credential"
	"github.com/ccgrkc/ccgrkc/internal/credspec"
	"github.com/ccgrkc/ccgrkc/internal/escape"
	"github.com/ccgrkc/ccgrkc/internal/inventory"
)

func newCredspec(g *globals) *cobra.Command {
	c := group(&cobra.Command{
		Use:   "credspec",
		Short: "Create and check credential specs",
		Long: `A credential spec describes a gMSA to Windows. It also specifies the plugin that returns the credentials
of the account that can read the gMSA's password. In a cluster, it is a GMSACredentialSpec. Pods reference it in
securityContext.windowsOptions.gmsaCredentialSpecName.`,
	})
	c.AddCommand(newCredspecCreate(g), newCredspecCheck(g))
	return c
}

// Formats of a credential spec.
const (
	formatKubernetes = "kubernetes"
	formatDocker     = "docker"
)

type createFlags struct {
	gmsa, name, format     string
	account, secret, input string
	credential             credentialFlags
	apply, skipRead        bool
}

func newCredspecCreate(g *globals) *cobra.Command {
	var f createFlags
	c := &cobra.Command{
		Use:   "create --gmsa NAME --account <namespace>/<release>",
		Short: "Create the credential spec of a gMSA from Active Directory",
		Long: `Reads the domain and the gMSA from Active Directory, verifies that the impersonation account can read
the gMSA's password, and prints a GMSACredentialSpec for kubectl apply. The command binds as the release's
impersonation account. This requires permission to get the release's Secret.

If you can't read the Secret, specify a domain account with --domain and --username. Cluster access is then not
required. The command prompts for the password, or reads it with --password-file or --password-stdin. In this case,
--account only determines the field PluginInput.

The credential spec is written to standard output, notes and warnings to standard error.`,
		Example: g.examples(`
  # A GMSACredentialSpec named web01
  gmsactl credspec create --gmsa web01 --account gmsa-system/web > web01.yaml

  # Apply it to the cluster
  gmsactl credspec create --gmsa web01 --account gmsa-system/web --apply

  # Without a cluster, as JSON for a container runtime
  gmsactl credspec create --gmsa web01 --account gmsa-system/web --domain corp.example.com --username gmsa-reader --password-file password.txt --format docker`),
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return g.createCredspec(cmd.Context(), f) },
	}
	flags := c.Flags()
	flags.StringVar(&f.gmsa, "gmsa", "", "name of the gMSA, with or without $ (required)")
	flags.StringVar(&f.account, "account", "", "release of the impersonation account: <namespace>/<release>")
	flags.StringVar(&f.secret, "secret", "",
		"name of the account's Secret (default: from the release; without a cluster: <release>-creds)")
	flags.StringVar(&f.input, "plugin-input", "", "plugin input <namespace>:<secret>, instead of --account")
	flags.StringVar(&f.name, "name", "", "name of the GMSACredentialSpec (default: name of the gMSA)")
	flags.StringVar(&f.format, "format", formatKubernetes,
		"kubernetes for a GMSACredentialSpec, or docker for the JSON of container runtimes")
	flags.BoolVar(&f.apply, "apply", false, "apply the GMSACredentialSpec to the cluster with server-side apply")
	flags.BoolVar(&f.skipRead, "skip-read-check", false,
		"do not verify that the account can read the gMSA's password; for a --username other than the impersonation "+
			"account")
	f.credential.add(c)
	c.MarkFlagsOneRequired("account", "plugin-input")
	c.MarkFlagsMutuallyExclusive("account", "plugin-input")
	c.MarkFlagsMutuallyExclusive("secret", "plugin-input")
	_ = c.MarkFlagRequired("gmsa")
	_ = c.RegisterFlagCompletionFunc("account", g.completeReleases)
	formats := []string{formatKubernetes, formatDocker}
	_ = c.RegisterFlagCompletionFunc("format", cobra.FixedCompletions(formats, cobra.ShellCompDirectiveNoFileComp))
	g.addDirectoryFlags(c)
	return c
}

func (g *globals) createCredspec(ctx context.Context, f createFlags) error {
	if f.credential.isSet() {
		if err := f.credential.validate(); err != nil {
			return err
		}
	}
	switch {
	case f.format != formatKubernetes && f.format != formatDocker:
		return usagef("--format %s: use kubernetes or docker", f.format)
	case f.apply && f.format == formatDocker:
		return usagef("--apply requires --format kubernetes")
	}
	gmsa := strings.TrimSuffix(f.gmsa, "$")
	if gmsa == "" {
		return usagef("--gmsa is empty; specify the name of the gMSA")
	}
	name := f.name
	if name == "" {
		name = strings.ToLower(gmsa)
	}
	// The name must be an RFC 1123 subdomain, like the name of a Secret.
	if err := credential.ValidateName(name); err != nil && f.format == formatKubernetes {
		return usagef("%q is not a valid name for a GMSACredentialSpec; specify --name with lower-case letters, "+
			"digits and hyphens", name)
	}
	// An error of the cluster connection must precede the requests to Active Directory.
	var c *inventory.Cluster
	var err error
	if f.apply || !f.credential.isSet() {
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
	// The values from Active Directory are correct, but a credential spec cannot contain all of them.
	for _, p := range spec.Check() {
		g.warnf("%s", p)
	}
	if f.apply {
		return g.applyCredspec(ctx, c, name, spec)
	}
	return g.printSpec(name, spec, f.format)
}

// credspecReference returns the plugin input.
func (g *globals) credspecReference(
	ctx context.Context, c *inventory.Cluster, f createFlags,
) (credential.Reference, error) {
	if f.input != "" {
		ref, err := credential.ParseReference(f.input)
		if err != nil {
			return ref, usagef("--plugin-input: %w", err)
		}
		return ref, nil
	}
	if f.credential.isSet() {
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
	ref, _, err := g.resolveSecret(ctx, c, f.account, f.secret)
	return ref, err
}

// credspecCredential returns the account for the bind to Active Directory.
func (g *globals) credspecCredential(
	ctx context.Context, c *inventory.Cluster, f createFlags, ref credential.Reference,
) (credential.Credential, error) {
	if f.credential.isSet() {
		return f.credential.read(ctx, g)
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
		return cred, incompletef("Secret %s/%s: requires permission: %s\n"+
			"If you do not have it, specify a domain account: --domain, --username and --password-file",
			ref.Namespace, ref.Secret, inventory.Permission("get", "secrets/"+ref.Secret, ref.Namespace))
	}
	if invalid, ok := errors.AsType[*inventory.InvalidSecret](err); ok {
		return cred, &exitError{exitFault, invalid}
	}
	if err != nil {
		return cred, g.secretError(ref, release, "get", err)
	}
	return cred, nil
}

func (g *globals) readSpec(
	ctx context.Context, cred credential.Credential, gmsa string, ref credential.Reference, skipRead bool,
) (credspec.Spec, error) {
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
		g.warnf("gMSA %s is disabled, so pods cannot use it; enable it: %s", found.Name, enableCommand(found.Name))
	}
	return credspec.New(credspec.Domain(domain), found.Name, ref.String()), nil
}

func (g *globals) printSpec(name string, spec credspec.Spec, format string) error {
	switch {
	case format == formatDocker && g.output == outputYAML:
		return g.print(spec, nil)
	case format == formatDocker:
		return escape.WriteJSON(g.streams.Out, spec, "  ")
	}
	document, err := credspec.Object(name, spec)
	if err != nil {
		return err
	}
	object, err := yaml.YAMLToJSON(document)
	if err != nil {
		return err
	}
	if g.output == outputJSON {
		return g.print(json.RawMessage(object), nil)
	}
	return g.writeYAML(document, object)
}

const crdURL = "https://raw.githubusercontent.com/kubernetes-sigs/windows-gmsa/master/admission-webhook/deploy/gmsa-crd.yml"

// applyResult is the output of credspec create --apply.
type applyResult struct {
	Name        string `json:"name"`
	GMSA        string `json:"gmsa"`
	PluginInput string `json:"pluginInput"`
	Created     bool   `json:"created"`
}

func (g *globals) applyCredspec(ctx context.Context, c *inventory.Cluster, name string, spec credspec.Spec) error {
	created, err := c.ApplyCredentialSpec(ctx, name, spec)
	what := "GMSACredentialSpec " + name
	switch {
	case apierrors.IsNotFound(err):
		// Server-side apply creates missing objects, so the resource itself is missing.
		return faultf("%w\nInstall it:\n  kubectl apply -f %s", inventory.ErrNoCredentialSpecs, crdURL)
	case apierrors.IsConflict(err):
		return faultf("%s: another client set some of its fields; nothing was written: %w\nTo overwrite them, run "+
			"this command "+
			"without --apply and pipe the output to: kubectl apply --server-side --force-conflicts --field-manager "+
			"%s -f -",
			what, err, inventory.Manager)
	case err != nil:
		return g.clusterError(what, inventory.Permission("patch", inventory.CredentialSpecResource, ""), err)
	}
	result := applyResult{name, spec.GMSAName(), spec.ActiveDirectoryConfig.HostAccountConfig.PluginInput, created}
	g.notef("To reference it, a pod's ServiceAccount requires the use permission for gmsacredentialspecs/%s.", name)
	return g.print(result, func(w io.Writer) { writeApplied(w, result) })
}

func writeApplied(w io.Writer, r applyResult) {
	done := "applied"
	if r.Created {
		done = "created"
	}
	escape.Fprintf(w, "GMSACredentialSpec %s %s: gMSA %s, %s\n", r.Name, done, r.GMSA, r.PluginInput)
}
