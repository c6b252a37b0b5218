package cli

import (
	"bytes"
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
	"github.com/ccgrkc/ccgrkc/internal/inventory"
	"github.com/ccgrkc/ccgrkc/internal/verify"
)

// checkedSpec is what credspec check tells of one credential spec.
type checkedSpec struct {
	Source   string             `json:"source"`         // the argument
	Name     string             `json:"name,omitempty"` // metadata.name
	GMSA     string             `json:"gmsa,omitempty"`
	Problems []credspec.Problem `json:"problems"`
}

type checkResult struct {
	CredentialSpecs []checkedSpec      `json:"credentialSpecs"`
	Unseen          []inventory.Unseen `json:"unseen,omitempty"` // what could not be looked at
	Errors          int                `json:"errors"`
	Warnings        int                `json:"warnings"`
}

type checkFlags struct {
	online, strict bool
	given          givenAccount
}

func newCredspecCheck(g *globals) *cobra.Command {
	var f checkFlags
	c := &cobra.Command{
		Use:   "check FILE|NAME...",
		Short: "Find what is wrong in credential specs",
		Long: `Reads credential specs from files (GMSACredentialSpecs or the plain JSON, one or several in a file; - is standard input) or by
name from the cluster, and lists what is wrong, field by field, with what to write instead. An argument is a file if there is one of
this name, or if it has a slash or an ending .yaml, .yml or .json.

--online also asks the cluster and Active Directory: whether the release and the Secret exist, whether SID, GUID and names are the
domain's, whether the gMSA exists and the account may read its password. The account is the Secret's, or that of --domain,
--username and a password, which is asked for without echo, or comes from --password-file or --password-stdin. No domain but --domain
gets to see that password; credential specs of others are not looked at in Active Directory.

Warnings alone give exit code 0; with --strict, 1.`,
		Example: g.examples(`
  gmsactl credspec check web01.yaml
  gmsactl credspec check web01 --online
  kubectl get gmsacredentialspecs -o yaml | gmsactl credspec check -`),
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usagef("name a file or a GMSACredentialSpec of the cluster; - is standard input")
			}
			return nil
		},
		ValidArgsFunction: g.completeCredentialSpecs,
		RunE: func(cmd *cobra.Command, args []string) error {
			k := &check{g: g, flags: f}
			defer k.close()
			if f.given.isGiven() {
				if !f.online {
					return usagef("--domain, --username and their password are for --online")
				}
				if err := f.given.check(); err != nil {
					return err
				}
				if (f.given.password.stdin || f.given.password.file == "-") && slices.Contains(args, "-") {
					return usagef("standard input cannot be both a credential spec and the password: use --password-file FILE")
				}
				var err error
				if k.given, err = f.given.read(cmd.Context(), g); err != nil {
					return err
				}
			}
			for _, arg := range args {
				k.argument(cmd.Context(), arg)
			}
			return k.print()
		},
	}
	flags := c.Flags()
	flags.BoolVar(&f.online, "online", false, "also ask the cluster and Active Directory")
	flags.BoolVar(&f.strict, "strict", false, "end with exit code 1 for warnings too")
	f.given.add(c)
	g.addDirectoryFlags(c)
	return c
}

// check is one run of credspec check.
type check struct {
	g        *globals
	flags    checkFlags
	result   checkResult
	cluster  *inventory.Cluster
	given    credential.Credential // if its Username is set
	accounts map[string]*ofAccount // what was seen of the account with this plugin input and domain
}

// ofAccount is an account as it was found, once for all credential specs that name it.
type ofAccount struct {
	problems []credspec.Problem // with the field of a Spec
	session  *directory.Session // nil: there is none, and problems or unseen say why
	domain   credspec.Domain
}

func (k *check) close() {
	for _, a := range k.accounts {
		if a.session != nil {
			a.session.Close()
		}
	}
	k.given.Password.Wipe()
}

func (k *check) argument(ctx context.Context, arg string) {
	var content []byte
	var err error
	info, statErr := os.Stat(arg)
	switch {
	case arg == "-":
		content, err = io.ReadAll(k.g.streams.In)
	case statErr == nil && !info.IsDir() || isFile(arg):
		content, err = os.ReadFile(arg)
	default:
		k.object(ctx, arg)
		return
	}
	if err != nil {
		k.unseen(inventory.Unseen{What: "file " + arg, Why: err.Error()})
		return
	}
	k.content(ctx, arg, content)
}

// object reads a GMSACredentialSpec of the cluster. Without a cluster the rest is looked at all the same.
func (k *check) object(ctx context.Context, name string) {
	c, err := k.connect()
	if err != nil {
		k.unseen(inventory.Unseen{What: "GMSACredentialSpec " + name, Why: err.Error()})
		return
	}
	content, err := c.CredentialSpec(ctx, name)
	switch {
	case errors.Is(err, inventory.ErrNoCredentialSpecs):
		k.add(checkedSpec{Source: name, Problems: []credspec.Problem{{
			Text:   "is not in the cluster, which does not know GMSACredentialSpecs",
			Remedy: "if it is a file, write ./" + name + "; else install the CustomResourceDefinition and the GMSACredentialSpec",
		}}})
	case apierrors.IsNotFound(err):
		k.add(checkedSpec{Source: name, Problems: []credspec.Problem{{
			Text:   "is not in the cluster",
			Remedy: "see what there is: kubectl get gmsacredentialspecs; if it is a file, write ./" + name,
		}}})
	case err != nil:
		k.unseen(inventory.NotSeen("GMSACredentialSpec "+name, err, inventory.Right("get", "gmsacredentialspecs.windows.k8s.io/"+name, "")))
	default:
		k.content(ctx, name, content)
	}
}

func (k *check) content(ctx context.Context, source string, content []byte) {
	docs, err := credspec.Read(content)
	if err != nil {
		k.add(checkedSpec{Source: source, Problems: []credspec.Problem{{Text: err.Error(), Remedy: "write a GMSACredentialSpec or the JSON of a plain credential spec"}}})
	}
	for _, d := range docs {
		if k.flags.online {
			d.Problems = append(d.Problems, k.online(ctx, d)...)
		}
		k.add(checkedSpec{Source: source, Name: d.Name, GMSA: d.Spec.GMSAName(), Problems: d.Problems})
	}
}

func (k *check) add(s checkedSpec) {
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

func (k *check) unseen(u inventory.Unseen) {
	for _, known := range k.result.Unseen {
		if known == u {
			return
		}
	}
	k.result.Unseen = append(k.result.Unseen, u)
}

func (k *check) connect() (*inventory.Cluster, error) {
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

// online returns what the cluster and Active Directory have against a credential spec. What they do not tell goes to unseen.
func (k *check) online(ctx context.Context, d credspec.Document) []credspec.Problem {
	if !d.Spec.UsesPlugin() {
		k.unseen(inventory.Unseen{What: "the account of credential spec " + or(d.Name, d.Spec.GMSAName()), Why: "it does not come from this plugin"})
		return nil
	}
	ref, err := credential.ParseReference(d.Spec.ActiveDirectoryConfig.HostAccountConfig.PluginInput)
	if err != nil {
		return nil // Read has said it
	}
	a := k.account(ctx, ref, d.Spec.DomainJoinConfig.DnsName)
	problems := a.problems
	if a.session != nil {
		problems = append(problems, d.Spec.CheckDomain(a.domain)...)
		problems = append(problems, k.gmsas(ctx, a.session, d.Spec)...)
	}
	as := make([]credspec.Problem, len(problems))
	for i, p := range problems {
		p.Field = d.Path(p.Field)
		as[i] = p
	}
	return as
}

// gmsas asks for each gMSA of a spec.
func (k *check) gmsas(ctx context.Context, session *directory.Session, s credspec.Spec) []credspec.Problem {
	var problems []credspec.Problem
	asked := map[string]bool{}
	for i, account := range s.ActiveDirectoryConfig.GroupManagedServiceAccounts {
		name := strings.TrimSuffix(account.Name, "$")
		if name == "" || asked[strings.ToLower(name)] {
			continue
		}
		asked[strings.ToLower(name)] = true
		field := fmt.Sprintf("ActiveDirectoryConfig.GroupManagedServiceAccounts[%d].Name", i)
		gmsa, err := readGMSA(ctx, session, name)
		switch {
		case err != nil:
			problems = k.directoryProblem(problems, field, "gMSA "+name, err)
		case !gmsa.Enabled:
			problems = append(problems, credspec.Problem{Field: field, Text: "is " + gmsa.Name + ", which is disabled", Remedy: "enable it: " + enableCommand(gmsa.Name)})
		}
	}
	return problems
}

// directoryProblem is what Active Directory has against a field, or something unseen if it was not asked in earnest.
func (k *check) directoryProblem(problems []credspec.Problem, field, what string, err error) []credspec.Problem {
	cause := directory.CauseOf(err)
	if cause == nil || exitCode(err) == exitUnable {
		k.unseen(inventory.Unseen{What: what, Why: err.Error()})
		return problems
	}
	return append(problems, credspec.Problem{Field: field, Text: err.Error(), Remedy: cause.Remedy})
}

// account looks at the release and the Secret that a plugin input names, and binds as the account.
func (k *check) account(ctx context.Context, ref credential.Reference, domain string) *ofAccount {
	key := ref.String() + " " + strings.ToLower(domain)
	if a := k.accounts[key]; a != nil {
		return a
	}
	a := &ofAccount{}
	if k.accounts == nil {
		k.accounts = map[string]*ofAccount{}
	}
	k.accounts[key] = a
	c, err := k.connect()
	if err != nil {
		k.unseen(inventory.Unseen{What: "release and Secret of " + ref.String(), Why: err.Error()})
	} else {
		k.release(ctx, c, ref, a)
	}
	cred, ok := k.credential(ctx, c, ref, domain, a)
	if !ok {
		return a
	}
	defer cred.Password.Wipe()
	if domain != "" && !strings.EqualFold(cred.DomainName, domain) {
		a.problems = append(a.problems, credspec.Problem{
			Field: dnsField, Warning: true,
			Text:   fmt.Sprintf("is %q, but the account of %s is of %s", domain, ref, cred.DomainName),
			Remedy: "correct one of them, unless the domains trust each other",
		})
	}
	session, err := k.g.bind(ctx, cred)
	if err != nil {
		a.problems = k.directoryProblem(a.problems, inputField, "Active Directory as "+cred.Username+" of "+cred.DomainName, err)
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

func (k *check) release(ctx context.Context, c *inventory.Cluster, ref credential.Reference, a *ofAccount) {
	releases, err := c.Releases(ctx, ref.Namespace)
	if err != nil {
		k.unseen(inventory.NotSeen("releases in namespace "+ref.Namespace, err, inventory.Right("list", "daemonsets.apps", ref.Namespace)))
		return
	}
	for _, r := range inventory.Of(releases, inventory.ProviderChart) {
		if r.Reference() == ref {
			return
		}
	}
	a.problems = append(a.problems, credspec.Problem{
		Field:  inputField,
		Text:   fmt.Sprintf("names Secret %s/%s, which no release in namespace %s serves", ref.Namespace, ref.Secret, ref.Namespace),
		Remedy: "install a release: " + verify.InstallCommand(ref),
	})
}

// credential returns the account to ask Active Directory as, if there is one.
func (k *check) credential(ctx context.Context, c *inventory.Cluster, ref credential.Reference, domain string, a *ofAccount) (credential.Credential, bool) {
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
				Field: inputField, Text: "names " + what + ", which does not exist",
				Remedy: fmt.Sprintf("make it: %s account create %s", k.g.program, release),
			})
		case isInvalid:
			a.problems = append(a.problems, credspec.Problem{Field: inputField, Text: fmt.Sprintf("names %s, which is no good: %v", what, invalid.Err), Remedy: "mend the Secret"})
		case err != nil && k.given.Username == "":
			u := inventory.NotSeen(what, err, inventory.Right("get", "secrets/"+ref.Secret, ref.Namespace))
			k.unseen(u)
			k.unseen(inventory.Unseen{What: "Active Directory", Why: "the account's password cannot be read; give another with --domain, --username and --password-file"})
		}
	}
	if k.given.Username == "" {
		return cred, c != nil && err == nil
	}
	cred.Password.Wipe()
	if !strings.EqualFold(domain, k.given.DomainName) {
		k.unseen(inventory.Unseen{What: "domain " + or(domain, "without a name"), Why: "the account that was given is of " + k.given.DomainName})
		return credential.Credential{}, false
	}
	// A copy, because each is wiped after its use.
	cred = k.given
	cred.Password = credential.NewPassword(bytes.Clone(k.given.Password.Reveal()))
	return cred, true
}

func (k *check) print() error {
	r := k.result
	if r.CredentialSpecs == nil {
		r.CredentialSpecs = []checkedSpec{}
	}
	if err := k.g.print(r, func(w io.Writer) { k.g.writeCheck(w, r) }); err != nil {
		return err
	}
	switch {
	case r.Errors > 0 || k.flags.strict && r.Warnings > 0:
		return endWith(exitWrong)
	case len(r.Unseen) > 0:
		return endWith(exitUnable)
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
			fmt.Fprintf(w, "%s: %s\n", title, g.paint(green, "good"))
			continue
		}
		fmt.Fprintf(w, "%s:\n", title)
		for _, p := range s.Problems {
			kind := g.paint(red, "error  ")
			if p.Warning {
				kind = g.paint(yellow, "warning")
			}
			field := ""
			if p.Field != "" {
				field = g.paint(bold, p.Field) + ": "
			}
			fmt.Fprintf(w, "  %s  %s%s\n", kind, field, p.Text)
			if p.Remedy != "" {
				fmt.Fprintf(w, "           %s\n", p.Remedy)
			}
		}
	}
	for _, u := range r.Unseen {
		fmt.Fprintf(w, "%s %s\n", g.paint(yellow, "not looked at:"), u)
	}
}

func or(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}
