package verify

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/ccgrkc/ccgrkc/internal/credential"
	"github.com/ccgrkc/ccgrkc/internal/credspec"
	"github.com/ccgrkc/ccgrkc/internal/directory"
	"github.com/ccgrkc/ccgrkc/internal/inventory"
	"github.com/ccgrkc/ccgrkc/internal/shell"
)

// Names of the steps.
const (
	StepSpec     = "credential spec"
	StepInput    = "plugin input"
	StepRelease  = "release"
	StepSecret   = "Secret"
	StepBind     = "AD bind"
	StepDomain   = "spec matches domain"
	StepRight    = "right to read"
	StepPassword = "managed password"
	StepTicket   = "Kerberos ticket"
)

// Options say which way to follow.
type Options struct {
	Cluster *inventory.Cluster // nil, for a file only: there is none, and NoCluster says why
	Program string             // how the user calls gmsactl, for remedies

	Name      string // of a GMSACredentialSpec in the cluster
	File      string // or the file that Content is from
	Content   []byte
	NoCluster error

	// Credential is used instead of the Secret's, if its Username is set. Its domain is asked and no other, since whoever
	// wrote the credential spec must not choose where the password goes.
	Credential credential.Credential
	// Directory completes how a domain is reached.
	Directory func(domain string) (directory.Config, error)
}

// Result is the whole way.
type Result struct {
	CredentialSpec string `json:"credentialSpec"` // name or file
	GMSA           string `json:"gmsa,omitempty"`
	Domain         string `json:"domain,omitempty"`
	PluginInput    string `json:"pluginInput,omitempty"`
	Release        string `json:"release,omitempty"`
	// DomainController is the one that was asked, and Security how.
	DomainController string       `json:"domainController,omitempty"`
	Security         string       `json:"security,omitempty"`
	Steps            []Step       `json:"steps"`
	Nodes            []NodeResult `json:"nodes,omitempty"`
	Ms               float64      `json:"ms"` // of Steps

	release *inventory.Release
	clock   *clock
}

// clock is a domain controller's clock, by this machine's.
type clock struct {
	server string
	ahead  time.Duration // of this machine's; to a second
}

// Verify follows the way of one credential spec.
func Verify(ctx context.Context, o Options) *Result {
	begin := time.Now()
	v := &verify{Options: o, result: &Result{CredentialSpec: o.Name}}
	if o.Content != nil {
		v.result.CredentialSpec = o.File
	}
	v.inCluster(ctx)
	v.inDirectory(ctx)
	v.result.Steps = v.steps
	v.result.Ms = float64(time.Since(begin).Microseconds()) / 1000
	return v.result
}

type verify struct {
	Options
	walk
	result *Result

	spec *credspec.Spec // nil: there is none that can be read
	ref  credential.Reference
	cred credential.Credential
}

func (v *verify) inCluster(ctx context.Context) {
	v.take(StepSpec, nil, func() Step { return v.credentialSpec(ctx) })

	// What is wrong in a credential spec need not keep its plugin input from being read.
	needs := []string{StepSpec}
	if v.spec != nil {
		needs = nil
		v.result.GMSA, v.result.Domain = v.spec.GMSAName(), v.spec.DomainJoinConfig.DnsName
	}
	v.take(StepInput, needs, v.pluginInput)
	v.take(StepRelease, []string{StepInput}, func() Step { return v.findRelease(ctx) })

	// The Secret is there, or not, with or without a release.
	v.take(StepSecret, []string{StepInput}, func() Step { return v.readSecret(ctx) })
}

func (v *verify) credentialSpec(ctx context.Context) Step {
	content := v.Content
	if content == nil {
		var err error
		content, err = v.Cluster.CredentialSpec(ctx, v.Name)
		switch {
		case err == nil:
		case cannotLook(err):
			return unseen("GMSACredentialSpec "+v.Name, err, inventory.Right("get", inventory.CredentialSpecResource+"/"+v.Name, ""))
		case apierrors.IsNotFound(err):
			return failed(causeSpecNotFound, "there is no GMSACredentialSpec "+v.Name, "see which there are: kubectl get gmsacredentialspecs; make one: "+v.Program+" credspec create")
		default:
			return failed(causeSpecNotFound, err.Error(), "install the chart of a gMSA webhook, which brings it, then make the credential spec: "+v.Program+" credspec create")
		}
	}
	docs, err := credspec.Read(content)
	if err != nil {
		return failed(causeSpecInvalid, err.Error(), "write a GMSACredentialSpec or the JSON of a plain credential spec; "+v.Program+" credspec create makes one")
	}
	if len(docs) != 1 {
		return failed(causeSpecInvalid, fmt.Sprintf("%s holds %d credential specs", v.File, len(docs)), "name a file with one, or apply it and name the GMSACredentialSpec")
	}
	v.spec = &docs[0].Spec
	var wrong, doubtful []credspec.Problem
	for _, p := range docs[0].Problems {
		if p.Warning {
			doubtful = append(doubtful, p)
		} else {
			wrong = append(wrong, p)
		}
	}
	switch {
	case len(wrong) > 0:
		s := failed(causeSpecInvalid, wrong[0].Field+": "+wrong[0].Text, wrong[0].Remedy)
		if len(wrong) > 1 {
			s.Detail += fmt.Sprintf(" (and %d more: %s %s)", len(wrong)-1, v.Program, shell.Command("credspec", "check", v.result.CredentialSpec))
		}
		return s
	case len(doubtful) > 0:
		return warning(causeSpecInvalid, doubtful[0].Field+": "+doubtful[0].Text, doubtful[0].Remedy)
	}
	d := v.spec.DomainJoinConfig
	return ok(fmt.Sprintf("gMSA %s of %s", v.spec.GMSAName(), d.DnsName))
}

func (v *verify) pluginInput() Step {
	host := v.spec.ActiveDirectoryConfig.HostAccountConfig
	if host == nil {
		return failed(causeNoPlugin, "the credential spec has no HostAccountConfig, so that Windows asks no plugin", "make one that has: "+v.Program+" credspec create")
	}
	if !v.spec.UsesPlugin() {
		whose := "another plugin"
		if p, known := credspec.ForeignPlugin("{" + strings.Trim(host.PluginGUID, "{}") + "}"); known {
			whose = p.Name
		}
		return failed(causeForeignPlugin, fmt.Sprintf("PluginGUID %s is that of %s", host.PluginGUID, whose), "if this product is to serve it, write "+credspec.PluginGUID)
	}
	ref, err := credential.ParseReference(host.PluginInput)
	if err != nil {
		return failed(causeInputInvalid, err.Error(), "write "+credential.InputForm)
	}
	v.ref, v.result.PluginInput = ref, ref.String()
	return ok(ref.String())
}

func (v *verify) findRelease(ctx context.Context) Step {
	if v.Cluster == nil {
		return v.withoutCluster("releases in namespace " + v.ref.Namespace)
	}
	all, err := v.Cluster.Releases(ctx, v.ref.Namespace)
	if err != nil {
		return unseen("releases in namespace "+v.ref.Namespace, err, inventory.Right("list", "daemonsets.apps", v.ref.Namespace))
	}
	var of []inventory.Release
	var others []string
	for _, r := range inventory.Of(all, inventory.ProviderChart) {
		if r.Secret == v.ref.Secret {
			of = append(of, r)
		} else {
			others = append(others, fmt.Sprintf("%s serves %s", r, r.Reference()))
		}
	}
	if len(of) == 0 {
		detail := fmt.Sprintf("no release of %s in namespace %s serves the Secret %s", inventory.ProviderChart, v.ref.Namespace, v.ref.Secret)
		if len(others) > 0 {
			detail += " (" + strings.Join(others, ", ") + ")"
		}
		return failed(causeReleaseNotFound, detail, "correct the plugin input, or install a release: "+InstallCommand(v.ref))
	}
	r := of[0]
	v.result.release, v.result.Release = &r, r.String()
	status := r.DaemonSet.Status
	detail := fmt.Sprintf("%s %s, ready on %d of %d nodes", r, r.Version, status.NumberReady, status.DesiredNumberScheduled)
	see := fmt.Sprintf("see why: kubectl get pods --namespace %s --selector app.kubernetes.io/instance=%s -o wide; %s doctor", r.Namespace, r.Name, v.Program)
	switch {
	case len(of) > 1:
		return warning(causeReleaseTwice, fmt.Sprintf("%s and %s serve the same Secret", of[0], of[1]), "uninstall one: they keep each other from being upgraded and uninstalled")
	case status.DesiredNumberScheduled == 0:
		return failed(causeReleaseNoNode, fmt.Sprintf("%s selects no node: %s", r, inventory.SelectorText(r.DaemonSet.Spec.Template.Spec.NodeSelector)),
			"label a node so, or change the value nodeSelector of the release")
	case status.NumberReady == 0:
		return failed(causeReleaseNotReady, detail, see)
	case status.NumberReady < status.DesiredNumberScheduled:
		return warning(causeReleaseNotReady, detail, see)
	}
	return ok(detail)
}

func (v *verify) withoutCluster(what string) Step {
	return Step{State: NotLookedAt, Detail: fmt.Sprintf("%s: %v", what, v.NoCluster)}
}

// InstallCommand is how a release that serves a Secret is installed, under the name that the Secret has it from.
func InstallCommand(ref credential.Reference) string {
	return InstallReleaseCommand(credential.ReleaseName(ref.Secret), ref)
}

// InstallReleaseCommand is how a release of this name is installed, to serve a Secret.
func InstallReleaseCommand(release string, ref credential.Reference) string {
	words := []string{"helm", "install", release, "./charts/" + inventory.ProviderChart, "--namespace", ref.Namespace, "--wait"}
	if ref.Secret != credential.SecretName(release) {
		words = append(words, "--set", "credentials.secretName="+ref.Secret)
	}
	return shell.Command(words...)
}

func (v *verify) readSecret(ctx context.Context) Step {
	given := v.Credential.Username != ""
	object := v.ref.Namespace + "/" + v.ref.Secret
	if v.Cluster == nil {
		return v.giveAccount(v.withoutCluster("Secret " + object))
	}
	cred, warnings, err := v.Cluster.Secret(ctx, v.ref)
	switch {
	case err == nil && given:
		cred.Password.Wipe()
		return ok("account " + cred.Username + "; the account that was given is used")
	case err == nil:
		v.cred = cred
		if domain := v.spec.DomainJoinConfig.DnsName; domain != "" && !strings.EqualFold(cred.DomainName, domain) {
			return warning(causeSpecMismatch, fmt.Sprintf("account %s of %s, but the credential spec is of %q", cred.Username, cred.DomainName, domain), "correct one of the two: an account reads the passwords of its own domain's gMSAs")
		}
		if len(warnings) > 0 {
			return warning(causeSecretInvalid, strings.Join(warnings, "; "), "write the value without a line end: "+v.Program+" account rotate "+v.account())
		}
		return ok(fmt.Sprintf("account %s of %s", cred.Username, cred.DomainName))
	case cannotLook(err):
		return v.giveAccount(unseen("Secret "+object, err, inventory.Right("get", "secrets/"+v.ref.Secret, v.ref.Namespace)))
	case apierrors.IsNotFound(err):
		return failed(causeSecretNotFound, "there is no Secret "+object, "make it: "+v.Program+" account create "+v.account())
	}
	return failed(causeSecretInvalid, err.Error(), "write it anew: "+v.Program+" account create "+v.account())
}

// giveAccount says what to do where the Secret cannot be read.
func (v *verify) giveAccount(s Step) Step {
	if v.Credential.Username == "" {
		s.Remedy = "give the account instead: --domain, --username and --password-file"
	}
	return s
}

// account is the release's name, as gmsactl account takes it.
func (v *verify) account() string {
	if v.result.release != nil {
		return v.result.release.String()
	}
	return v.ref.Release()
}

func (v *verify) inDirectory(ctx context.Context) {
	needs := []string{StepInput, StepSecret}
	if v.Credential.Username != "" {
		needs = nil
		if v.spec == nil {
			needs = []string{StepSpec}
		}
		v.cred = v.Credential
	} else {
		defer func() { v.cred.Password.Wipe() }()
	}
	var session *directory.Session
	var password *directory.ManagedPassword
	defer func() {
		if password != nil {
			password.Wipe()
		}
		if session != nil {
			session.Close()
		}
	}()

	v.take(StepBind, needs, func() (s Step) {
		session, s = v.bind(ctx)
		return s
	})
	v.take(StepDomain, []string{StepBind}, func() Step { return v.compare(ctx, session) })
	var passwordErr error
	v.take(StepRight, []string{StepBind}, func() Step {
		gmsa := v.result.GMSA
		if _, err := session.GMSA(ctx, gmsa); err != nil {
			return v.fromDirectory(err)
		}
		// One answer tells whether it may be read and what it is.
		password, passwordErr = session.ManagedPassword(ctx, gmsa)
		if passwordErr != nil && !slices.Contains(passwordCauses, directory.CauseOf(passwordErr)) {
			return v.fromDirectory(passwordErr)
		}
		return ok(fmt.Sprintf("%s may read the password of %s", v.cred.Username, gmsa))
	})
	v.take(StepPassword, []string{StepRight}, func() Step {
		if passwordErr != nil {
			return v.fromDirectory(passwordErr)
		}
		detail := "well-formed"
		if password.Query > 0 {
			detail += fmt.Sprintf(", the next is due in %s", password.Query.Round(time.Minute))
		}
		return ok(detail)
	})
	v.take(StepTicket, []string{StepPassword}, func() Step { return v.ticket(ctx, session, password) })
}

// Causes that are about the managed password, and not about the right to read it.
var passwordCauses = []*directory.Cause{directory.NoKDSKey, directory.ManagedPasswordDamaged}

// fromDirectory puts the names in place of those in angle brackets of a remedy.
func (v *verify) fromDirectory(err error) Step {
	s := fromDirectory(err)
	for placeholder, name := range map[string]string{"<gmsa>": v.result.GMSA, "<account>": v.cred.Username} {
		// The commands there are PowerShell's.
		if shell.IsPlain(name) {
			s.Remedy = strings.ReplaceAll(s.Remedy, placeholder, name)
		}
	}
	return s
}

func (v *verify) bind(ctx context.Context) (*directory.Session, Step) {
	config, err := v.Directory(v.cred.DomainName)
	if err != nil {
		return nil, Step{State: NotLookedAt, Detail: err.Error(), Remedy: "correct the flag"}
	}
	session, err := directory.Bind(ctx, config, v.cred)
	if err != nil {
		return nil, v.fromDirectory(err)
	}
	v.result.DomainController, v.result.Security = session.Server(), string(session.Security())
	v.result.clock = &clock{server: session.Server(), ahead: session.Offset()}
	return session, ok(fmt.Sprintf("%s at %s (%s)", v.cred.Username, session.Server(), session.Security()))
}

func (v *verify) compare(ctx context.Context, session *directory.Session) Step {
	d, err := session.Domain(ctx)
	if err != nil {
		return v.fromDirectory(err)
	}
	return v.matches(credspec.Domain(d))
}

func (v *verify) matches(d credspec.Domain) Step {
	var wrong []string
	for _, p := range v.spec.CheckDomain(d) {
		wrong = append(wrong, p.Field+" "+p.Text)
	}
	if len(wrong) == 0 {
		return ok("SID, GUID and names are those of " + d.DNSName)
	}
	remedy := "write the domain's values"
	if gmsa := v.spec.GMSAName(); credspec.IsAccountName(gmsa) {
		remedy += ", or make the credential spec anew: " + v.Program + " " + shell.Command("credspec", "create", "--gmsa", gmsa, "--account", v.account())
	}
	return failed(causeSpecMismatch, strings.Join(wrong, "; "), remedy)
}

func (v *verify) ticket(ctx context.Context, session *directory.Session, password *directory.ManagedPassword) Step {
	t, err := session.TicketAs(ctx, v.result.GMSA, password)
	if err != nil {
		return v.fromDirectory(err)
	}
	detail := fmt.Sprintf("%s for %s until %s (%s)", t.Service, t.Client, t.End.Local().Format("2006-01-02 15:04:05"), t.EncryptionType)
	if t.Previous {
		// Within 5 minutes of a roll the current password is the next one.
		detail += ", by the previous password"
	}
	return ok(detail)
}
