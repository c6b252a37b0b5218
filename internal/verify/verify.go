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

// Names of the checks.
const (
	StepSpec       = "credential spec"
	StepInput      = "plugin input"
	StepRelease    = "release"
	StepSecret     = "Secret"
	StepBind       = "AD bind"
	StepDomain     = "spec matches domain"
	StepPermission = "read permission"
	StepPassword   = "managed password"
	StepTicket     = "Kerberos ticket"
)

// Options select the credential spec and the account.
type Options struct {
	Cluster   *inventory.Cluster // nil without a cluster, which only a file allows
	NoCluster error              // why Cluster is nil
	Program   string             // how the user calls gmsactl, for remedies

	Name    string // a GMSACredentialSpec in the cluster, or
	File    string // a file
	Content []byte // of the file

	// Credential replaces the Secret's credentials if Username is set. Only its own domain receives the password: the
	// author of the credential spec must not choose the domain.
	Credential credential.Credential
	// Directory returns the connection settings for a domain.
	Directory func(domain string) (directory.Config, error)
}

// Result holds all checks of one credential spec.
type Result struct {
	CredentialSpec   string       `json:"credentialSpec"` // name or file
	GMSA             string       `json:"gmsa,omitempty"`
	Domain           string       `json:"domain,omitempty"`
	PluginInput      string       `json:"pluginInput,omitempty"`
	Release          string       `json:"release,omitempty"`
	DomainController string       `json:"domainController,omitempty"`
	Security         string       `json:"security,omitempty"` // of the connection to DomainController
	Steps            []Step       `json:"steps"`
	Nodes            []NodeResult `json:"nodes,omitempty"`
	Ms               float64      `json:"ms"` // duration of Steps

	release *inventory.Release
	clock   *clock
}

// clock is a domain controller's clock.
type clock struct {
	server string
	ahead  time.Duration // relative to this machine's clock, with a precision of one second
}

// Verify runs the checks of one credential spec.
func Verify(ctx context.Context, o Options) *Result {
	start := time.Now()
	v := &verify{Options: o, result: &Result{CredentialSpec: o.Name}}
	if o.Content != nil {
		v.result.CredentialSpec = o.File
	}
	v.checkCluster(ctx)
	v.checkDirectory(ctx)
	v.result.Steps = v.steps
	v.result.Ms = float64(time.Since(start).Microseconds()) / 1000
	return v.result
}

type verify struct {
	Options
	checklist
	result *Result

	spec *credspec.Spec // nil if it could not be read
	ref  credential.Reference
	cred credential.Credential
}

func (v *verify) checkCluster(ctx context.Context) {
	v.check(StepSpec, nil, func() Step { return v.credentialSpec(ctx) })

	// A credential spec with a fault can still have a valid plugin input.
	needs := []string{StepSpec}
	if v.spec != nil {
		needs = nil
		v.result.GMSA, v.result.Domain = v.spec.GMSAName(), v.spec.DomainJoinConfig.DnsName
	}
	v.check(StepInput, needs, v.pluginInput)
	v.check(StepRelease, []string{StepInput}, func() Step { return v.findRelease(ctx) })

	// The Secret can exist without a release.
	v.check(StepSecret, []string{StepInput}, func() Step { return v.readSecret(ctx) })
}

func (v *verify) credentialSpec(ctx context.Context) Step {
	content := v.Content
	if content == nil {
		var err error
		content, err = v.Cluster.CredentialSpec(ctx, v.Name)
		switch {
		case err == nil:
		case isAccessError(err):
			return skipped("GMSACredentialSpec "+v.Name, err,
				inventory.Permission("get", inventory.CredentialSpecResource+"/"+v.Name, ""))
		case apierrors.IsNotFound(err):
			return failed(causeSpecNotFound, fmt.Sprintf("the GMSACredentialSpec %s does not exist", v.Name),
				"list them: kubectl get gmsacredentialspecs; create one: "+v.Program+" credspec create")
		default:
			return failed(causeSpecNotFound, err.Error(), "install the chart "+inventory.WebhookChart+
				", which contains it; then create the credential spec: "+v.Program+" credspec create")
		}
	}
	docs, err := credspec.Read(content)
	if err != nil {
		return failed(causeSpecInvalid, err.Error(),
			"use a GMSACredentialSpec or a credential spec as JSON; create one: "+v.Program+" credspec create")
	}
	if len(docs) != 1 {
		return failed(causeSpecInvalid, fmt.Sprintf("%s contains %d credential specs", v.File, len(docs)),
			"use a file with one credential spec, or apply the file and specify the name of a GMSACredentialSpec")
	}
	v.spec = &docs[0].Spec
	var faults, warnings []credspec.Problem
	for _, p := range docs[0].Problems {
		if p.Warning {
			warnings = append(warnings, p)
		} else {
			faults = append(faults, p)
		}
	}
	switch {
	case len(faults) > 0:
		s := failed(causeSpecInvalid, faults[0].Field+": "+faults[0].Text, faults[0].Remedy)
		if len(faults) > 1 {
			check := shell.Command("credspec", "check", v.result.CredentialSpec)
			s.Detail += fmt.Sprintf(" (and %d more: %s %s)", len(faults)-1, v.Program, check)
		}
		return s
	case len(warnings) > 0:
		return warning(causeSpecInvalid, warnings[0].Field+": "+warnings[0].Text, warnings[0].Remedy)
	}
	d := v.spec.DomainJoinConfig
	return ok(fmt.Sprintf("gMSA %s of %s", v.spec.GMSAName(), d.DnsName))
}

func (v *verify) pluginInput() Step {
	host := v.spec.ActiveDirectoryConfig.HostAccountConfig
	if host == nil {
		return failed(causeNoPlugin,
			"the credential spec has no HostAccountConfig, so Windows does not call the plugin",
			"create a credential spec with HostAccountConfig: "+v.Program+" credspec create")
	}
	if !v.spec.UsesPlugin() {
		owner := "another plugin"
		if p, known := credspec.ForeignPlugin("{" + strings.Trim(host.PluginGUID, "{}") + "}"); known {
			owner = p.Name
		}
		return failed(causeForeignPlugin, fmt.Sprintf("PluginGUID %s belongs to %s", host.PluginGUID, owner),
			"to use this product's plugin, set PluginGUID to "+credspec.PluginGUID)
	}
	ref, err := credential.ParseReference(host.PluginInput)
	if err != nil {
		return failed(causeInputInvalid, err.Error(), "set PluginInput to "+credential.InputForm)
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
		return skipped("releases in namespace "+v.ref.Namespace, err,
			inventory.Permission("list", "daemonsets.apps", v.ref.Namespace))
	}
	var matches []inventory.Release
	var others []string
	for _, r := range inventory.Of(all, inventory.ProviderChart) {
		if r.Secret == v.ref.Secret {
			matches = append(matches, r)
		} else {
			others = append(others, fmt.Sprintf("%s provides %s", r, r.Reference()))
		}
	}
	if len(matches) == 0 {
		detail := fmt.Sprintf("no release of %s in namespace %s provides the Secret %s",
			inventory.ProviderChart, v.ref.Namespace, v.ref.Secret)
		if len(others) > 0 {
			detail += " (" + strings.Join(others, ", ") + ")"
		}
		return failed(causeReleaseNotFound, detail,
			"correct the plugin input, or install a release: "+InstallCommand(v.ref))
	}
	r := matches[0]
	v.result.release, v.result.Release = &r, r.String()
	status := r.DaemonSet.Status
	detail := fmt.Sprintf("%s %s, ready on %d of %d nodes", r, r.Version, status.NumberReady,
		status.DesiredNumberScheduled)
	remedy := fmt.Sprintf(
		"check its pods: kubectl get pods --namespace %s --selector app.kubernetes.io/instance=%s -o wide; %s doctor",
		r.Namespace, r.Name, v.Program)
	switch {
	case len(matches) > 1:
		return warning(causeReleaseTwice, fmt.Sprintf("%s and %s provide the same Secret", matches[0], matches[1]),
			"uninstall one of them: each prevents the upgrade and the uninstallation of the other")
	case status.DesiredNumberScheduled == 0:
		selector := inventory.SelectorText(r.DaemonSet.Spec.Template.Spec.NodeSelector)
		return failed(causeReleaseNoNode, fmt.Sprintf("%s selects no node: %s", r, selector),
			"add this label to a node, or change the value nodeSelector of the release")
	case status.NumberReady == 0:
		return failed(causeReleaseNotReady, detail, remedy)
	case status.NumberReady < status.DesiredNumberScheduled:
		return warning(causeReleaseNotReady, detail, remedy)
	}
	return ok(detail)
}

func (v *verify) withoutCluster(what string) Step {
	return Step{State: Skipped, Detail: fmt.Sprintf("%s: %v", what, v.NoCluster)}
}

// InstallCommand returns the command that installs a release for a Secret. The release name comes from the Secret name.
func InstallCommand(ref credential.Reference) string {
	return InstallReleaseCommand(credential.ReleaseName(ref.Secret), ref)
}

// InstallReleaseCommand returns the command that installs a release with this name for a Secret.
func InstallReleaseCommand(release string, ref credential.Reference) string {
	words := []string{"helm", "install", release, "./charts/" + inventory.ProviderChart, "--namespace", ref.Namespace,
		"--wait"}
	if ref.Secret != credential.SecretName(release) {
		words = append(words, "--set", "credentials.secretName="+ref.Secret)
	}
	return shell.Command(words...)
}

func (v *verify) readSecret(ctx context.Context) Step {
	object := v.ref.Namespace + "/" + v.ref.Secret
	if v.Cluster == nil {
		return v.suggestAccount(v.withoutCluster("Secret " + object))
	}
	cred, warnings, err := v.Cluster.Secret(ctx, v.ref)
	switch {
	case err == nil && v.Credential.Username != "":
		cred.Password.Wipe()
		return ok("account " + cred.Username + "; the checks use the account from --username")
	case err == nil:
		v.cred = cred
		if domain := v.spec.DomainJoinConfig.DnsName; domain != "" && !strings.EqualFold(cred.DomainName, domain) {
			return warning(causeSpecMismatch,
				fmt.Sprintf("the account %s belongs to %s, but the credential spec to %q", cred.Username,
					cred.DomainName, domain),
				"correct one of them: an account can read only the passwords of gMSAs in its own domain")
		}
		if len(warnings) > 0 {
			return warning(causeSecretInvalid, strings.Join(warnings, "; "),
				"write the value without a line break: "+v.Program+" account rotate "+v.account())
		}
		return ok(fmt.Sprintf("account %s of %s", cred.Username, cred.DomainName))
	case isAccessError(err):
		permission := inventory.Permission("get", "secrets/"+v.ref.Secret, v.ref.Namespace)
		return v.suggestAccount(skipped("Secret "+object, err, permission))
	case apierrors.IsNotFound(err):
		return failed(causeSecretNotFound, fmt.Sprintf("the Secret %s does not exist", object),
			"create it: "+v.Program+" account create "+v.account())
	}
	return failed(causeSecretInvalid, err.Error(),
		"delete it, then create it: "+v.Program+" account create "+v.account())
}

// suggestAccount adds the remedy for a Secret that cannot be read.
func (v *verify) suggestAccount(s Step) Step {
	if v.Credential.Username == "" {
		s.Remedy = "specify the account: --domain, --username and --password-file"
	}
	return s
}

// account returns <namespace>/<release>, the argument of gmsactl account.
func (v *verify) account() string {
	if v.result.release != nil {
		return v.result.release.String()
	}
	return v.ref.Release()
}

func (v *verify) checkDirectory(ctx context.Context) {
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

	v.check(StepBind, needs, func() (s Step) {
		session, s = v.bind(ctx)
		return s
	})
	v.check(StepDomain, []string{StepBind}, func() Step { return v.compareDomain(ctx, session) })
	var passwordErr error
	v.check(StepPermission, []string{StepBind}, func() Step {
		gmsa := v.result.GMSA
		if _, err := session.GMSA(ctx, gmsa); err != nil {
			return v.directoryStep(err)
		}
		// One LDAP request answers this check and the next one.
		password, passwordErr = session.ManagedPassword(ctx, gmsa)
		if passwordErr != nil && !slices.Contains(passwordCauses, directory.CauseOf(passwordErr)) {
			return v.directoryStep(passwordErr)
		}
		return ok(fmt.Sprintf("%s can read the password of %s", v.cred.Username, gmsa))
	})
	v.check(StepPassword, []string{StepPermission}, func() Step {
		if passwordErr != nil {
			return v.directoryStep(passwordErr)
		}
		detail := "valid"
		if password.Query > 0 {
			detail += fmt.Sprintf("; next change in %s", password.Query.Round(time.Minute))
		}
		return ok(detail)
	})
	v.check(StepTicket, []string{StepPassword}, func() Step { return v.ticket(ctx, session, password) })
}

// passwordCauses are about the managed password itself, not about the permission to read it.
var passwordCauses = []*directory.Cause{directory.NoKDSKey, directory.ManagedPasswordDamaged}

// directoryStep replaces the placeholders in the remedy with names.
func (v *verify) directoryStep(err error) Step {
	s := directoryStep(err)
	for placeholder, name := range map[string]string{"<gmsa>": v.result.GMSA, "<account>": v.cred.Username} {
		// The remedies contain PowerShell commands.
		if shell.IsPlain(name) {
			s.Remedy = strings.ReplaceAll(s.Remedy, placeholder, name)
		}
	}
	return s
}

func (v *verify) bind(ctx context.Context) (*directory.Session, Step) {
	config, err := v.Directory(v.cred.DomainName)
	if err != nil {
		return nil, Step{State: Skipped, Detail: err.Error(), Remedy: "correct the flag"}
	}
	session, err := directory.Bind(ctx, config, v.cred)
	if err != nil {
		return nil, v.directoryStep(err)
	}
	v.result.DomainController, v.result.Security = session.Server(), string(session.Security())
	v.result.clock = &clock{server: session.Server(), ahead: session.Offset()}
	return session, ok(fmt.Sprintf("%s at %s (%s)", v.cred.Username, session.Server(), session.Security()))
}

func (v *verify) compareDomain(ctx context.Context, session *directory.Session) Step {
	d, err := session.Domain(ctx)
	if err != nil {
		return v.directoryStep(err)
	}
	return v.matchDomain(credspec.Domain(d))
}

func (v *verify) matchDomain(d credspec.Domain) Step {
	var faults []string
	for _, p := range v.spec.CheckDomain(d) {
		faults = append(faults, p.Field+" "+p.Text)
	}
	if len(faults) == 0 {
		return ok("SID, GUID and names match " + d.DNSName)
	}
	remedy := "write the domain's values"
	if gmsa := v.spec.GMSAName(); credspec.IsAccountName(gmsa) {
		create := shell.Command("credspec", "create", "--gmsa", gmsa, "--account", v.account())
		remedy += ", or create the credential spec again: " + v.Program + " " + create
	}
	return failed(causeSpecMismatch, strings.Join(faults, "; "), remedy)
}

func (v *verify) ticket(ctx context.Context, session *directory.Session, password *directory.ManagedPassword) Step {
	t, err := session.TicketAs(ctx, v.result.GMSA, password)
	if err != nil {
		return v.directoryStep(err)
	}
	detail := fmt.Sprintf("%s for %s until %s (%s)",
		t.Service, t.Client, t.End.Local().Format("2006-01-02 15:04:05"), t.EncryptionType)
	if t.Previous {
		// Within 5 minutes of a password change, the current password in the attribute can already be the next one.
		detail += ", with the previous password"
	}
	return ok(detail)
}
