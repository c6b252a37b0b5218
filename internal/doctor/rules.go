package doctor

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/ccgrkc/ccgrkc/internal/credential"
	"github.com/ccgrkc/ccgrkc/internal/credspec"
	"github.com/ccgrkc/ccgrkc/internal/inventory"
	"github.com/ccgrkc/ccgrkc/internal/verify"
)

func upgrade(r inventory.Release, set ...string) string {
	words := []string{"helm", "upgrade", r.Name, "./charts/" + r.Chart, "--namespace", r.Namespace,
		"--reset-then-reuse-values"}
	for _, s := range set {
		words = append(words, "--set", s)
	}
	return command(words...)
}

func releaseObject(r inventory.Release) string { return "release " + r.String() }

// charts checks that there is one installer and that the providers have the same version and plugin identity.
func charts(o *Objects) []Finding {
	if !o.Read[ReadReleases] {
		return nil
	}
	installers, providers := inventory.Of(o.Releases, inventory.InstallerChart),
		inventory.Of(o.Releases, inventory.ProviderChart)
	var found []Finding
	if len(installers) == 0 {
		found = append(found, Finding{
			Severity: Error,
			Code:     "installer-missing",
			Object:   "cluster",
			Text:     "no release of " + inventory.InstallerChart + " is installed, so no node has the plugin",
			Remedy:   "Install the chart once for the cluster.",
			Commands: []string{inventory.InstallerCommand},
		})
	}
	if len(installers) > 1 {
		found = append(found, Finding{
			Severity: Error,
			Code:     "installer-twice",
			Object:   releaseObject(installers[1]),
			Text: fmt.Sprintf("%s and %s both install the plugin, and each overwrites the other's registration",
				installers[0], installers[1]),
			Remedy: "Uninstall one of them. Then check that the other repairs all nodes.",
			Commands: []string{command("helm", "uninstall", installers[1].Name, "--namespace",
				installers[1].Namespace)},
		})
	}
	for _, p := range providers {
		for _, i := range installers[:min(1, len(installers))] {
			if p.Version != i.Version {
				found = append(found, Finding{
					Severity: Warning,
					Code:     "versions-differ",
					Object:   releaseObject(p),
					Text: fmt.Sprintf("the provider has version %s, but the installer %s has version %s", p.Version,
						i, i.Version),
					Remedy:   "Upgrade both charts to the same version.",
					Commands: []string{upgrade(i), upgrade(p)},
				})
			}
			if p.RunAs != "" && i.RunAs != "" && p.RunAs != i.RunAs {
				found = append(found, Finding{
					Severity: Error,
					Code:     "plugin-identity-differs",
					Object:   releaseObject(p),
					Text: fmt.Sprintf("the provider allows %s to read its endpoint, but the plugin runs as %s (%s)",
						p.RunAs, i.RunAs, i),
					Remedy:   "Set plugin.runAs to the same value in both releases.",
					Commands: []string{upgrade(p, "plugin.runAs="+i.RunAs)},
				})
			}
		}
	}
	byAccount := map[credential.Reference]inventory.Release{}
	for _, p := range providers {
		first, twice := byAccount[p.Reference()]
		if !twice {
			byAccount[p.Reference()] = p
			continue
		}
		found = append(found, Finding{
			Severity: Error,
			Code:     "two-releases-of-one-secret",
			Object:   releaseObject(p),
			Text: fmt.Sprintf(
				"%s and %s provide the same Secret %s. On a node that both select, each release prevents the upgrade "+
					"and the uninstallation of the other", first, p, p.Secret),
			Remedy:   "Uninstall one of them, or use a separate Secret.",
			Commands: []string{command("helm", "uninstall", p.Name, "--namespace", p.Namespace)},
		})
	}
	return found
}

// daemonSets checks that each node that a release selects has a pod, and that the pod is ready.
func daemonSets(o *Objects) []Finding {
	if !o.Read[ReadNodes] {
		return nil
	}
	var found []Finding
	for _, r := range o.Releases {
		spec := r.DaemonSet.Spec.Template.Spec
		// These maps list the nodes by fault, so that many nodes with the same fault give one finding.
		outside, tainted, unready := map[string][]string{}, map[string][]string{}, map[string][]string{}
		var without []string
		selected := 0
		for i := range o.Nodes {
			n := &o.Nodes[i]
			if reason := inventory.OutsideSelector(spec, n); reason != "" {
				outside[reason] = append(outside[reason], n.Name)
				continue
			}
			selected++
			if !o.Read[ReadPods] {
				continue
			}
			pod := o.podOf(r, n.Name)
			taint := inventory.UntoleratedTaint(spec, n)
			switch {
			case pod != nil && inventory.Ready(pod):
			case pod != nil:
				reason := verify.WaitingReason(pod)
				unready[reason] = append(unready[reason], pod.Name+" on "+n.Name)
			case taint != nil:
				tainted[taint.ToString()] = append(tainted[taint.ToString()], n.Name)
			default:
				without = append(without, n.Name)
			}
		}
		describe := command("kubectl", "describe", "daemonset", r.DaemonSet.Name, "--namespace", r.Namespace)
		if r.Chart == inventory.InstallerChart {
			for _, reason := range slices.Sorted(maps.Keys(outside)) {
				found = append(found, Finding{
					Severity: Warning,
					Code:     "node-without-plugin",
					Object:   releaseObject(r),
					Text: fmt.Sprintf("%s: %s. Pods that use a gMSA do not start there",
						abbreviate(outside[reason]), reason),
					Remedy:   "If these nodes need gMSAs, change the value nodeSelector.",
					Commands: []string{upgrade(r, "nodeSelector=null")},
					order:    orderNodes,
				})
			}
		} else if selected == 0 && o.isWholeCluster() {
			selector := inventory.SelectorText(spec.NodeSelector)
			found = append(found, Finding{
				Severity: Warning,
				Code:     "release-selects-no-node",
				Object:   releaseObject(r),
				Text:     "no Windows node has the labels " + selector,
				Remedy:   "Label the nodes that are allowed to have these credentials.",
				Commands: []string{command("kubectl", "get", "nodes", "--selector", selector)},
				order:    orderNodes,
			})
		}
		for _, taint := range slices.Sorted(maps.Keys(tainted)) {
			found = append(found, Finding{
				Severity: Error,
				Code:     "node-taint",
				Object:   releaseObject(r),
				Text:     fmt.Sprintf("%s: the pod does not tolerate the taint %s", abbreviate(tainted[taint]), taint),
				Remedy:   "Add a matching toleration to the tolerations value, or restrict nodeSelector.",
				Commands: []string{describe},
				order:    orderNodes,
			})
		}
		if len(without) > 0 {
			f := Finding{
				Severity: Error,
				Code:     "node-without-pod",
				Object:   releaseObject(r),
				Text:     abbreviate(without) + ": the release selects the node, but has no pod there",
				Remedy: "Check the events. The namespace must allow privileged pods (label " +
					"pod-security.kubernetes.io/enforce=privileged).",
				Commands: []string{describe},
				order:    orderNodes,
			}
			if message := o.daemonSetEvent(r); message != "" {
				f.Text += ": " + message
			}
			found = append(found, f)
		}
		for _, reason := range slices.Sorted(maps.Keys(unready)) {
			pod, _, _ := strings.Cut(unready[reason][0], " ")
			found = append(found, Finding{
				Severity: Error,
				Code:     "pod-not-ready",
				Object:   releaseObject(r),
				Text:     fmt.Sprintf("%s: %s", abbreviate(unready[reason]), reason),
				Remedy:   "Check the pod's events and log.",
				Commands: []string{
					command("kubectl", "describe", "pod", pod, "--namespace", r.Namespace),
					command("kubectl", "logs", pod, "--namespace", r.Namespace),
				},
				order: orderNodes,
			})
		}
	}
	return found
}

// isWholeCluster reports whether the scope contains all nodes.
func (o *Objects) isWholeCluster() bool { return o.Scope == ScopeCluster }

// podOf returns a release's pod on a node, preferably a ready one.
func (o *Objects) podOf(r inventory.Release, node string) *corev1.Pod {
	var found *corev1.Pod
	for i := range o.Pods {
		pod := &o.Pods[i]
		if pod.Namespace == r.Namespace && pod.Spec.NodeName == node && pod.DeletionTimestamp == nil &&
			selects(r, pod) &&
			(found == nil || inventory.Ready(pod)) {
			found = pod
		}
	}
	return found
}

func selects(r inventory.Release, pod *corev1.Pod) bool {
	if r.DaemonSet.Spec.Selector == nil {
		return false
	}
	for key, value := range r.DaemonSet.Spec.Selector.MatchLabels {
		if pod.Labels[key] != value {
			return false
		}
	}
	return true
}

func (o *Objects) daemonSetEvent(r inventory.Release) string {
	for _, e := range o.Events {
		ref := e.InvolvedObject
		if ref.Kind == "DaemonSet" && ref.Name == r.DaemonSet.Name && ref.Namespace == r.Namespace &&
			e.Type == corev1.EventTypeWarning {
			return e.Message
		}
	}
	return ""
}

// nodes reports the results of the programs that ran on nodes.
func nodes(o *Objects) []Finding {
	var found []Finding
	noInstaller := len(inventory.Of(o.Releases, inventory.InstallerChart)) == 0
	for _, n := range o.NodeResults {
		for _, s := range n.Steps {
			f := Finding{
				Severity: Error,
				Code:     s.Cause,
				Object:   "node " + n.Node,
				Text:     s.Name + ": " + s.Detail,
				Remedy:   s.Remedy,
				order:    orderNodes,
			}
			switch {
			case s.State == verify.Warning:
				f.Severity = Warning
			case s.State != verify.Failed:
				continue
			case s.Cause == verify.CauseInstallerMissing && noInstaller:
				continue // the rule "charts" reports this once for all nodes
			}
			found = append(found, f)
		}
	}
	return found
}

// secrets checks that each credentials Secret exists and is valid.
func secrets(o *Objects) []Finding {
	var found []Finding
	for _, s := range o.Secrets {
		account := s.Reference.Release()
		for _, r := range inventory.Of(o.Releases, inventory.ProviderChart) {
			if r.Reference() == s.Reference {
				account = r.String()
			}
		}
		f := Finding{Severity: Error, Object: "Secret " + s.Name, order: orderSecrets}
		switch {
		case !s.Exists:
			f.Code, f.Text, f.Remedy = "secret-not-found", "the Secret does not exist",
				"Create it. The provider reads it with the next request."
			f.Commands = []string{o.Program + " " + command("account", "create", account)}
		case s.Problem != "":
			f.Code, f.Text, f.Remedy = "secret-invalid", s.Problem, "Correct the key."
			f.Commands = []string{command("kubectl", "edit", "secret", s.Reference.Secret, "--namespace",
				s.Reference.Namespace)}
		case len(s.Warnings) > 0:
			f.Severity, f.Code, f.Text = Warning, "secret-line-end", strings.Join(s.Warnings, "; ")
			f.Remedy = "Write the password again."
			f.Commands = []string{o.Program + " " + command("account", "rotate", account)}
		default:
			continue
		}
		found = append(found, f)
	}
	return found
}

// certificates checks that the certificates in Secrets exist, are valid and do not expire soon.
func certificates(o *Objects) []Finding {
	var found []Finding
	for _, c := range o.Certificates {
		namespace, name, _ := strings.Cut(c.Secret, "/")
		f := Finding{
			Severity: Error,
			Object:   "Secret " + c.Secret,
			Commands: []string{
				command("kubectl", "describe", "secret", name, "--namespace", namespace),
				command("kubectl", "get", "certificates.cert-manager.io", "--namespace", namespace),
			},
			order: orderCertificates,
		}
		what := fmt.Sprintf("the certificate of the %s of release %s", c.Side, c.Release)
		left := c.NotAfter.Sub(o.Now)
		switch {
		case !c.Exists:
			f.Code, f.Text = "certificate-missing", what+" is missing: the Secret does not exist"
			f.Remedy = "Create the Secret, or check why cert-manager did not create it."
		case c.Problem != "":
			f.Code, f.Text = "certificate-invalid", what+": "+c.Problem
			f.Remedy = "Reissue the certificate as values.yaml of the chart describes."
		case left <= 0:
			f.Code, f.Text = "certificate-expired", what+" expired at "+timestamp(c.NotAfter)
			f.Remedy = renewCertificate
		// cert-manager renews a certificate after two thirds of its validity. Certificates from other sources are valid
		// for longer.
		case left < c.NotAfter.Sub(c.NotBefore)/10:
			f.Severity, f.Code, f.Text = Warning, "certificate-expires", what+" expires at "+timestamp(c.NotAfter)
			f.Remedy = renewCertificate
		case o.Now.Before(c.NotBefore.Add(-10 * time.Minute)):
			f.Code, f.Text = "certificate-not-yet", what+" is not valid before "+timestamp(c.NotBefore)
			f.Remedy = "Correct the clock of the issuer, then reissue the certificate."
		default:
			continue
		}
		found = append(found, f)
	}
	return found
}

const renewCertificate = "Renew the certificate, or check why cert-manager did not renew it."

func timestamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// credentialSpecs checks that each GMSACredentialSpec is valid and that a release matches its plugin input.
func credentialSpecs(o *Objects) []Finding {
	var found []Finding
	for _, s := range o.Specs {
		problems := s.Document.Problems
		if s.Document.Spec.ActiveDirectoryConfig.HostAccountConfig == nil {
			// Valid for nodes that are joined to the domain.
			problems = slices.DeleteFunc(slices.Clone(problems), func(p credspec.Problem) bool {
				return p.Warning && strings.HasSuffix(p.Field, ".HostAccountConfig")
			})
		}
		for _, severity := range []Severity{Error, Warning} {
			if f, ok := specFinding("GMSACredentialSpec "+s.Name, problems, severity); ok {
				f.Commands = []string{o.Program + " " + command("credspec", "check", s.Name)}
				found = append(found, f)
			}
		}
		ref, ours := inputOf(s.Document.Spec)
		if !ours || !o.knowsReleases(ref.Namespace) || o.releaseOf(ref) != nil {
			continue
		}
		f := Finding{
			Severity: Error,
			Code:     "release-not-found",
			Object:   "GMSACredentialSpec " + s.Name,
			Text: fmt.Sprintf("no release matches the plugin input %s: none in namespace %s provides the Secret %s",
				ref, ref.Namespace, ref.Secret),
			Remedy:   "Correct PluginInput, or install a release for this account.",
			Commands: []string{command("kubectl", "edit", "gmsacredentialspec", s.Name), verify.InstallCommand(ref)},
			order:    orderSpecs,
		}
		for _, r := range inventory.Of(o.Releases, inventory.ProviderChart) {
			if r.Secret == ref.Secret || r.Namespace == ref.Namespace {
				f.Text += fmt.Sprintf("; %s provides %s", r, r.Reference())
			}
		}
		found = append(found, f)
	}
	return found
}

func specFinding(object string, problems []credspec.Problem, severity Severity) (Finding, bool) {
	var texts []string
	f := Finding{Severity: severity, Code: "credential-spec-invalid", Object: object, order: orderSpecs}
	for _, p := range problems {
		if p.Warning != (severity == Warning) {
			continue
		}
		if len(texts) == 0 {
			f.Remedy = "In " + cmp.Or(p.Field, "the document") + ": " + p.Remedy + "."
		}
		texts = append(texts, strings.TrimPrefix(p.Field+": "+p.Text, ": "))
	}
	if len(texts) > 1 {
		f.Remedy = "Correct each field."
	}
	f.Text = strings.Join(texts, "; ")
	return f, len(texts) > 0
}

// inputOf returns the plugin input of a credential spec. ok is false if the spec does not use the plugin, or if the
// plugin input is invalid.
func inputOf(s credspec.Spec) (ref credential.Reference, ok bool) {
	if !s.UsesPlugin() {
		return credential.Reference{}, false
	}
	ref, err := credential.ParseReference(s.ActiveDirectoryConfig.HostAccountConfig.PluginInput)
	return ref, err == nil
}

func (o *Objects) releaseOf(ref credential.Reference) *inventory.Release {
	for i := range o.Releases {
		if o.Releases[i].Chart == inventory.ProviderChart && o.Releases[i].Reference() == ref {
			return &o.Releases[i]
		}
	}
	return nil
}

func (o *Objects) spec(name string) *Spec {
	for i := range o.Specs {
		if o.Specs[i].Name == name {
			return &o.Specs[i]
		}
	}
	return nil
}

// webhooks checks that one webhook populates credential specs, that it runs, and that its certificates are valid.
func webhooks(o *Objects) []Finding {
	if !o.Read[ReadWebhooks] {
		return nil
	}
	var found []Finding
	var mutating []string // Services or configurations of webhooks that populate pods, without duplicates
	for _, w := range o.Webhooks {
		if at := cmp.Or(w.Service, w.Configuration); w.Mutating && !slices.Contains(mutating, at) {
			mutating = append(mutating, at)
		}
		f := Finding{
			Severity: Error,
			Object:   w.Resource + " " + w.Configuration,
			Commands: []string{command("kubectl", "get", w.Resource, w.Configuration, "-o", "yaml")},
			order:    orderWebhooks,
		}
		effect := ". It does not populate pods"
		if w.Fails {
			effect = ". The API server denies pods that use a gMSA"
		}
		// The CA and the serving certificate must both be valid. The CA is often valid for years longer.
		which, begins, expires := "its CA", w.CABegins, w.CAExpires
		if !w.Expires.IsZero() && (expires.IsZero() || w.Expires.Before(expires)) {
			which, begins, expires = "the certificate in its Secret "+w.Secret, w.Begins, w.Expires
		}
		left := expires.Sub(o.Now)
		namespace, service, _ := strings.Cut(w.Service, "/")
		prefix := "webhook " + w.Name + ": "
		switch {
		case w.CAProblem != "":
			f.Code, f.Text, f.Remedy = "webhook-ca-invalid", prefix+w.CAProblem+effect, "Reinstall the webhook's chart."
		case !expires.IsZero() && left <= 0:
			f.Code, f.Text = "webhook-certificate-expired", prefix+which+" expired at "+timestamp(expires)+effect
			f.Remedy = "Renew the webhook's certificate. With cert-manager, check its Certificate; otherwise " +
				"reinstall the webhook's chart."
		case w.Endpoints != nil && *w.Endpoints == 0:
			f.Code, f.Text = "webhook-down", prefix+"its Service "+w.Service+" has no ready pod"+effect
			f.Remedy = "Check the webhook's Deployment."
			f.Commands = []string{
				command("kubectl", "describe", "service", service, "--namespace", namespace),
				command("kubectl", "get", "pods", "--namespace", namespace, "-o", "wide"),
			}
		case w.Problem != "":
			f.Code, f.Text = "webhook-ca-mismatch", prefix+w.Problem+effect
			f.Remedy = "While it runs, rancher-gmsa-webhook repairs this within seconds. If it does not, check its " +
				"log. With your own " +
				"certificate, set certificates.provided.caBundle to its CA."
			f.Commands = append(f.Commands, command("kubectl", "logs", "--namespace", namespace,
				"--selector", "app.kubernetes.io/name="+inventory.WebhookChart, "--tail=50"))
		// rancher-gmsa-webhook renews its certificate when a third of the validity is left.
		case !expires.IsZero() && left < min(14*24*time.Hour, expires.Sub(begins)/4):
			f.Severity, f.Code = Warning, "webhook-certificate-expires"
			f.Text = prefix + which + " expires at " + timestamp(expires)
			f.Remedy = "Renew the webhook's certificate, or check in the webhook's log why it was not renewed."
		case w.Endpoints != nil && w.Replicas != nil && *w.Endpoints < *w.Replicas:
			f.Severity, f.Code = Warning, "webhook-degraded"
			f.Text = fmt.Sprintf("%sits Service %s has %d ready pods of %d", prefix, w.Service, *w.Endpoints,
				*w.Replicas)
			f.Remedy = "Check why the other pods are not ready."
			f.Commands = []string{command("kubectl", "get", "pods", "--namespace", namespace, "-o", "wide")}
		default:
			continue
		}
		found = append(found, f)
	}
	if o.NoCRD {
		found = append(found, Finding{
			Severity: Warning,
			Code:     "no-credential-specs",
			Object:   "cluster",
			Text:     inventory.ErrNoCredentialSpecs.Error(),
			Remedy:   "Install the chart " + inventory.WebhookChart + ". It contains the CustomResourceDefinition.",
			Commands: []string{"kubectl get customresourcedefinition " + inventory.CredentialSpecResource},
			order:    orderWebhooks,
		})
	}
	referenced := slices.ContainsFunc(o.GMSAPods, func(p corev1.Pod) bool {
		return slices.ContainsFunc(gmsaRefs(&p), func(u gmsaRef) bool { return u.name != "" })
	})
	if len(mutating) > 1 {
		found = append(found, Finding{
			Severity: Warning,
			Code:     "webhook-twice",
			Object:   "cluster",
			Text: "more than one webhook populates pods: " + strings.Join(mutating, ", ") +
				". The API server denies a pod if any of them denies it or is down",
			Remedy: "Uninstall the webhook that you do not need. First check that the uninstallation keeps the " +
				"CustomResourceDefinition and the GMSACredentialSpecs.",
			Commands: []string{"kubectl get mutatingwebhookconfigurations,validatingwebhookconfigurations"},
			order:    orderWebhooks,
		})
	}
	if len(mutating) == 0 && (referenced || len(o.Specs) > 0) {
		found = append(found, Finding{
			Severity: Error,
			Code:     "webhook-missing",
			Object:   "cluster",
			Text:     "no gMSA webhook is configured, so gmsaCredentialSpecName of a pod has no effect",
			Remedy:   "Install the chart " + inventory.WebhookChart + ".",
			Commands: []string{"kubectl get mutatingwebhookconfigurations,validatingwebhookconfigurations"},
			order:    orderWebhooks,
		})
	}
	return found
}

// denials reports pods that admission denied.
func denials(o *Objects) []Finding {
	var found []Finding
	seen := map[string]bool{}
	for _, e := range o.Events {
		if e.InvolvedObject.Kind == "Pod" || e.InvolvedObject.Kind == "DaemonSet" && o.isRelease(e.InvolvedObject) {
			continue
		}
		object := fmt.Sprintf("%s %s/%s", e.InvolvedObject.Kind, e.InvolvedObject.Namespace, e.InvolvedObject.Name)
		if seen[object] {
			continue
		}
		seen[object] = true
		kind := strings.ToLower(e.InvolvedObject.Kind)
		found = append(found, Finding{
			Severity: Error,
			Code:     "pod-refused",
			Object:   object,
			Text:     "its pods are denied: " + e.Message,
			Remedy: "If the message reports a missing use permission, bind the ServiceAccount to a role that has it. " +
				"Otherwise " +
				"check the webhook's log.",
			Commands: []string{
				command("kubectl", "describe", kind, e.InvolvedObject.Name, "--namespace", e.InvolvedObject.Namespace),
			},
			order: orderUse,
		})
	}
	return found
}

func (o *Objects) isRelease(ref corev1.ObjectReference) bool {
	return slices.ContainsFunc(o.Releases, func(r inventory.Release) bool {
		return r.DaemonSet.Name == ref.Name && r.Namespace == ref.Namespace
	})
}

// uses checks that each pod's ServiceAccount has the use permission for the pod's credential spec.
func uses(o *Objects) []Finding {
	var found []Finding
	for _, u := range o.Uses {
		if u.Allowed {
			continue
		}
		manifest := string(credspec.UseRBACManifest(u.CredentialSpec, u.Namespace, u.ServiceAccount))
		found = append(found, Finding{
			Severity: Error,
			Code:     "use-forbidden",
			Object:   fmt.Sprintf("ServiceAccount %s/%s", u.Namespace, u.ServiceAccount),
			Text: fmt.Sprintf(
				"the ServiceAccount does not have the use permission for the GMSACredentialSpec %s of its pods, so a "+
					"webhook denies them", u.CredentialSpec),
			Remedy: "Grant it this one permission.",
			// kubectl create clusterrole does not accept the verb.
			Commands: []string{command("echo", manifest) + " | kubectl apply -f -"},
			order:    orderUse,
		})
	}
	return found
}

// abbreviate lists names. If there are more than five, it lists five and the number of the others.
func abbreviate(names []string) string {
	const most = 5
	slices.Sort(names)
	if len(names) <= most {
		return strings.Join(names, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(names[:most], ", "), len(names)-most)
}
