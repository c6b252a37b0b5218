package cli

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/ccgrkc/ccgrkc/internal/credential"
	"github.com/ccgrkc/ccgrkc/internal/credspec"
	"github.com/ccgrkc/ccgrkc/internal/directory"
	"github.com/ccgrkc/ccgrkc/internal/escape"
	"github.com/ccgrkc/ccgrkc/internal/inventory"
	"github.com/ccgrkc/ccgrkc/internal/verify"
)

// checkedSpec is the output of credspec check for one credential spec.
type checkedSpec struct {
	Source   string             `json:"source"`         // the argument
	Name     string             `json:"name,omitempty"` // metadata.name
	GMSA     string             `json:"gmsa,omitempty"`
	Problems []credspec.Problem `json:"problems"`
}

type checkResult struct {
	CredentialSpecs []checkedSpec       `json:"credentialSpecs"`
	Skipped         []inventory.Skipped `json:"skipped,omitempty"`
	Errors          int                 `json:"errors"`
	Warnings        int                 `json:"warnings"`
}

type checkFlags struct {
	online, strict bool
	credential     credentialFlags
}

func newCredspecCheck(g *globals) *cobra.Command {
	var f checkFlags
	c := &cobra.Command{
		Use:   "check FILE|NAME...",
		Short: "Check credential specs",
		Long: `Checks each field of credential specs and prints a correction for each error. The arguments are files,
names of GMSACredentialSpecs in the cluster, or - for standard input. gmsactl treats an argument as a file if a file
with this name exists, or if the argument contains a slash or ends in .yaml, .yml or .json. A file contains
GMSACredentialSpecs or credential specs as JSON.

--online also checks the cluster and Active Directory: whether the release and the Secret exist, whether SID, GUID
and names match the domain, whether the gMSA exists, and whether the account can read its password. The command uses
the account in the Secret. To use another account, specify --domain and --username. The command then prompts for the
password, or reads it with --password-file or --password-stdin. Only the domain in --domain receives this password.
Credential specs of other domains are skipped.

The exit code is 0 if there are only warnings. With --strict, it is 1.`,
		Example: g.examples(`
  gmsactl credspec check web01.yaml
  gmsactl credspec check web01 --online
  kubectl get gmsacredentialspecs -o yaml | gmsactl credspec check -`),
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usagef("specify a file, a GMSACredentialSpec in the cluster, or - for standard input")
			}
			return nil
		},
		ValidArgsFunction: g.completeCredentialSpecs,
		RunE: func(cmd *cobra.Command, args []string) error {
			k := &checker{g: g, flags: f}
			defer k.close()
			if f.credential.isSet() {
				if !f.online {
					return usagef("--domain, --username and the password flags require --online")
				}
				if err := f.credential.validate(); err != nil {
					return err
				}
				if (f.credential.password.stdin || f.credential.password.file == "-") && slices.Contains(args, "-") {
					return usagef("standard input cannot contain both a credential spec and the password; use " +
						"--password-file")
				}
				var err error
				if k.explicit, err = f.credential.read(cmd.Context(), g); err != nil {
					return err
				}
			}
			for _, arg := range args {
				k.checkArgument(cmd.Context(), arg)
			}
			return k.print()
		},
	}
	flags := c.Flags()
	flags.BoolVar(&f.online, "online", false, "check the cluster and Active Directory, too")
	flags.BoolVar(&f.strict, "strict", false, "exit with code 1 if there are warnings")
	f.credential.add(c)
	g.addDirectoryFlags(c)
	return c
}

// checker is one run of credspec check.
type checker struct {
	g        *globals
	flags    checkFlags
	result   checkResult
	cluster  *inventory.Cluster
	explicit credential.Credential    // used if Username is set
	accounts map[string]*accountCheck // by plugin input and domain
}

// accountCheck is the result for an account. All credential specs with this account share it.
type accountCheck struct {
	problems []credspec.Problem // their fields are relative to a Spec
	session  *directory.Session // nil if the bind failed or was skipped
	domain   credspec.Domain
}

func (k *checker) close() {
	for _, a := range k.accounts {
		if a.session != nil {
			a.session.Close()
		}
	}
	k.explicit.Password.Wipe()
}

func (k *checker) checkArgument(ctx context.Context, arg string) {
	var content []byte
	var err error
	info, statErr := os.Stat(arg)
	switch {
	case arg == "-":
		content, err = io.ReadAll(k.g.streams.In)
	case statErr == nil && !info.IsDir() || isFile(arg):
		content, err = os.ReadFile(arg)
	default:
		k.checkObject(ctx, arg)
		return
	}
	if err != nil {
		k.skip(inventory.Skipped{What: "file " + arg, Why: err.Error()})
		return
	}
	k.checkContent(ctx, arg, content)
}

// checkObject checks a GMSACredentialSpec in the cluster. Without a cluster, the other arguments are still checked.
func (k *checker) checkObject(ctx context.Context, name string) {
	c, err := k.connect()
	if err != nil {
		k.skip(inventory.Skipped{What: "GMSACredentialSpec " + name, Why: err.Error()})
		return
	}
	content, err := c.CredentialSpec(ctx, name)
	switch {
	case errors.Is(err, inventory.ErrNoCredentialSpecs):
		k.add(checkedSpec{Source: name, Problems: []credspec.Problem{{
			Text:   "does not exist: " + err.Error(),
			Remedy: "if it is a file, write ./" + name + "; otherwise install the chart " + inventory.WebhookChart,
		}}})
	case apierrors.IsNotFound(err):
		k.add(checkedSpec{Source: name, Problems: []credspec.Problem{{
			Text:   "does not exist in the cluster",
			Remedy: "list the existing ones: kubectl get gmsacredentialspecs; if it is a file, write ./" + name,
		}}})
	case err != nil:
		permission := inventory.Permission("get", inventory.CredentialSpecResource+"/"+name, "")
		k.skip(inventory.NewSkipped("GMSACredentialSpec "+name, err, permission))
	default:
		k.checkContent(ctx, name, content)
	}
}

func (k *checker) checkContent(ctx context.Context, source string, content []byte) {
	docs, err := credspec.Read(content)
	if err != nil {
		k.add(checkedSpec{Source: source, Problems: []credspec.Problem{{
			Text:   err.Error(),
			Remedy: "use a GMSACredentialSpec or a credential spec as JSON",
		}}})
	}
	for _, d := range docs {
		if k.flags.online {
			d.Problems = append(d.Problems, k.checkOnline(ctx, d)...)
		}
		k.add(checkedSpec{Source: source, Name: d.Name, GMSA: d.Spec.GMSAName(), Problems: d.Problems})
	}
}

func (k *checker) add(s checkedSpec) {
	if s.Problems == nil {
		s.Problems = []credspec.Problem{}
	}
	for _, p := range s.Problems {
		if p.Warning {
			k.result.Warnings++
		} else {
			k.result.Errors++
		}
	}
	k.result.CredentialSpecs = append(k.result.CredentialSpecs, s)
}

func (k *checker) skip(u inventory.Skipped) {
	if !slices.Contains(k.result.Skipped, u) {
		k.result.Skipped = append(k.result.Skipped, u)
	}
}

func (k *checker) connect() (*inventory.Cluster, error) {
	if k.cluster == nil {
		c, err := k.g.inventory()
		if err != nil {
			return nil, err
		}
		k.cluster = c
	}
	return k.cluster, nil
}

const (
	inputField   = "ActiveDirectoryConfig.HostAccountConfig.PluginInput"
	machineField = "DomainJoinConfig.MachineAccountName"
	dnsField     = "DomainJoinConfig.DnsName"
)

// checkOnline checks a credential spec against the cluster and Active Directory.
func (k *checker) checkOnline(ctx context.Context, d credspec.Document) []credspec.Problem {
	if !d.Spec.UsesPlugin() {
		k.skip(inventory.Skipped{
			What: "the account of credential spec " + cmp.Or(d.Name, d.Spec.GMSAName()),
			Why:  "the spec uses another plugin",
		})
		return nil
	}
	ref, err := credential.ParseReference(d.Spec.ActiveDirectoryConfig.HostAccountConfig.PluginInput)
	if err != nil {
		return nil // credspec.Read has reported it
	}
	a := k.checkAccount(ctx, ref, d.Spec.DomainJoinConfig.DnsName)
	problems := a.problems
	if a.session != nil {
		problems = append(problems, d.Spec.CheckDomain(a.domain)...)
		problems = append(problems, k.checkGMSAs(ctx, a.session, d.Spec)...)
	}
	as := make([]credspec.Problem, len(problems))
	for i, p := range problems {
		p.Field = d.Path(p.Field)
		as[i] = p
	}
	return as
}

// checkGMSAs checks each gMSA of a spec.
func (k *checker) checkGMSAs(ctx context.Context, session *directory.Session, s credspec.Spec) []credspec.Problem {
	var problems []credspec.Problem
	checked := map[string]bool{}
	for i, account := range s.ActiveDirectoryConfig.GroupManagedServiceAccounts {
		name := strings.TrimSuffix(account.Name, "$")
		if name == "" || checked[strings.ToLower(name)] {
			continue
		}
		checked[strings.ToLower(name)] = true
		field := fmt.Sprintf("ActiveDirectoryConfig.GroupManagedServiceAccounts[%d].Name", i)
		gmsa, err := readGMSA(ctx, session, name)
		switch {
		case err != nil:
			problems = k.directoryProblem(problems, field, "gMSA "+name, err)
		case !gmsa.Enabled:
			problems = append(problems, credspec.Problem{
				Field:  field,
				Text:   "the gMSA " + gmsa.Name + " is disabled",
				Remedy: "enable it: " + enableCommand(gmsa.Name),
			})
		}
	}
	return problems
}

// directoryProblem adds an error of Active Directory to problems. If the error is inconclusive, it is recorded as
// skipped.
func (k *checker) directoryProblem(problems []credspec.Problem, field, what string, err error) []credspec.Problem {
	cause := directory.CauseOf(err)
	if cause == nil || exitCode(err) == exitIncomplete {
		k.skip(inventory.Skipped{What: what, Why: err.Error()})
		return problems
	}
	return append(problems, credspec.Problem{Field: field, Text: err.Error(), Remedy: cause.Remedy})
}

// checkAccount checks the release and the Secret of a plugin input, and binds to Active Directory as the account.
func (k *checker) checkAccount(ctx context.Context, ref credential.Reference, domain string) *accountCheck {
	key := ref.String() + " " + strings.ToLower(domain)
	if a := k.accounts[key]; a != nil {
		return a
	}
	a := &accountCheck{}
	if k.accounts == nil {
		k.accounts = map[string]*accountCheck{}
	}
	k.accounts[key] = a
	c, err := k.connect()
	if err != nil {
		k.skip(inventory.Skipped{What: "release and Secret of " + ref.String(), Why: err.Error()})
	} else {
		k.checkRelease(ctx, c, ref, a)
	}
	cred, ok := k.findCredential(ctx, c, ref, domain, a)
	if !ok {
		return a
	}
	defer cred.Password.Wipe()
	if domain != "" && !strings.EqualFold(cred.DomainName, domain) {
		a.problems = append(a.problems, credspec.Problem{
			Field: dnsField, Warning: true,
			Text:   fmt.Sprintf("is %q, but the account of %s belongs to %s", domain, ref, cred.DomainName),
			Remedy: "use a credential spec and an account of the same domain",
		})
	}
	session, err := k.g.bind(ctx, cred)
	if err != nil {
		a.problems = k.directoryProblem(a.problems, inputField,
			"Active Directory as "+cred.Username+" of "+cred.DomainName, err)
		return a
	}
	d, err := session.Domain(ctx)
	if err != nil {
		session.Close()
		a.problems = k.directoryProblem(a.problems, inputField, "domain "+cred.DomainName, err)
		return a
	}
	a.session, a.domain = session, credspec.Domain(d)
	return a
}

func (k *checker) checkRelease(ctx context.Context, c *inventory.Cluster, ref credential.Reference, a *accountCheck) {
	releases, err := c.Releases(ctx, ref.Namespace)
	if err != nil {
		permission := inventory.Permission("list", "daemonsets.apps", ref.Namespace)
		k.skip(inventory.NewSkipped("releases in namespace "+ref.Namespace, err, permission))
		return
	}
	for _, r := range inventory.Of(releases, inventory.ProviderChart) {
		if r.Reference() == ref {
			return
		}
	}
	a.problems = append(a.problems, credspec.Problem{
		Field: inputField,
		Text: fmt.Sprintf("no release in namespace %s provides the Secret %s/%s", ref.Namespace, ref.Namespace,
			ref.Secret),
		Remedy: "install a release: " + verify.InstallCommand(ref),
	})
}

// findCredential returns the account for the checks in Active Directory. ok is false if there is none.
func (k *checker) findCredential(ctx context.Context, c *inventory.Cluster, ref credential.Reference, domain string,
	a *accountCheck) (credential.Credential, bool) {
	release := ref.Release()
	what := fmt.Sprintf("Secret %s/%s", ref.Namespace, ref.Secret)
	var cred credential.Credential
	var err error
	if c != nil {
		cred, _, err = c.Secret(ctx, ref)
		invalid, isInvalid := errors.AsType[*inventory.InvalidSecret](err)
		switch {
		case apierrors.IsNotFound(err):
			a.problems = append(a.problems, credspec.Problem{
				Field:  inputField,
				Text:   what + " does not exist",
				Remedy: fmt.Sprintf("create it: %s account create %s", k.g.program, release),
			})
		case isInvalid:
			a.problems = append(a.problems, credspec.Problem{
				Field:  inputField,
				Text:   fmt.Sprintf("%s: %v", what, invalid.Err),
				Remedy: "correct the Secret",
			})
		case err != nil && k.explicit.Username == "":
			u := inventory.NewSkipped(what, err, inventory.Permission("get", "secrets/"+ref.Secret, ref.Namespace))
			k.skip(u)
			k.skip(inventory.Skipped{
				What: "Active Directory",
				Why: "cannot read the account's password; specify another account with --domain, --username and " +
					"--password-file",
			})
		}
	}
	if k.explicit.Username == "" {
		return cred, c != nil && err == nil
	}
	cred.Password.Wipe()
	if !strings.EqualFold(domain, k.explicit.DomainName) {
		k.skip(inventory.Skipped{
			What: "domain " + cmp.Or(domain, "without a name"),
			Why:  "the account in --username belongs to " + k.explicit.DomainName,
		})
		return credential.Credential{}, false
	}
	// A copy, because the caller wipes it.
	cred = k.explicit
	cred.Password = credential.NewPassword(bytes.Clone(k.explicit.Password.Reveal()))
	return cred, true
}

func (k *checker) print() error {
	r := k.result
	if r.CredentialSpecs == nil {
		r.CredentialSpecs = []checkedSpec{}
	}
	if err := k.g.print(r, func(w io.Writer) { k.g.writeCheck(w, r) }); err != nil {
		return err
	}
	switch {
	case r.Errors > 0 || k.flags.strict && r.Warnings > 0:
		return exitWith(exitFault)
	case len(r.Skipped) > 0:
		return exitWith(exitIncomplete)
	}
	return nil
}

func (g *globals) writeCheck(w io.Writer, r checkResult) {
	for _, s := range r.CredentialSpecs {
		title := s.Source
		if s.Name != "" && s.Name != s.Source {
			title += " (" + s.Name + ")"
		}
		if len(s.Problems) == 0 {
			escape.Fprintf(w, "%s: %s\n", title, g.paint(green, "ok"))
			continue
		}
		escape.Fprintf(w, "%s:\n", title)
		for _, p := range s.Problems {
			kind := g.paint(red, "error  ")
			if p.Warning {
				kind = g.paint(yellow, "warning")
			}
			var field escape.Text
			if p.Field != "" {
				field = g.paint(bold, p.Field) + ": "
			}
			escape.Fprintf(w, "  %s  %s%s\n", kind, field, p.Text)
			if p.Remedy != "" {
				escape.Fprintf(w, "           %s\n", p.Remedy)
			}
		}
	}
	for _, u := range r.Skipped {
		escape.Fprintf(w, "%s %s\n", g.paint(yellow, "skipped:"), u)
	}
}
