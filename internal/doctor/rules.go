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

const installInstaller = "helm install " + inventory.InstallerChart + " ./charts/" + inventory.InstallerChart +
	" --namespace cattle-windows-gmsa-system --create-namespace --wait"

func upgrade(r inventory.Release, set ...string) string {
	words := []string{"helm", "upgrade", r.Name, "./charts/" + r.Chart, "--namespace", r.Namespace, "--reset-then-reuse-values"}
	for _, s := range set {
		words = append(words, "--set", s)
	}
	return command(words...)
}

func releaseObject(r inventory.Release) string { return "release " + r.String() }

// charts: one installer, of one version and one identity with the providers.
func charts(o *Objects) []Finding {
	if !o.Read[ReadReleases] {
		return nil
	}
	installers, providers := inventory.Of(o.Releases, inventory.InstallerChart), inventory.Of(o.Releases, inventory.ProviderChart)
	var found []Finding
	if len(installers) == 0 {
		found = append(found, Finding{Severity: Error, Code: "installer-missing", Object: "cluster",
			Text:   "no release of " + inventory.InstallerChart + " is installed, so no node has the plugin",
			Remedy: "Install it once for the cluster.", Commands: []string{installInstaller}})
	}
	if len(installers) > 1 {
		found = append(found, Finding{Severity: Error, Code: "installer-twice", Object: releaseObject(installers[1]),
			Text:   fmt.Sprintf("%s and %s both install the plugin; each takes the other's registration for drift", installers[0], installers[1]),
			Remedy: "Uninstall one, then see that the other heals every node.", Commands: []string{command("helm", "uninstall", installers[1].Name, "--namespace", installers[1].Namespace)}})
	}
	for _, p := range providers {
		for _, i := range installers[:min(1, len(installers))] {
			if p.Version != i.Version {
				found = append(found, Finding{Severity: Warning, Code: "versions-differ", Object: releaseObject(p),
					Text:   fmt.Sprintf("the provider is version %s, the installer %s is %s", p.Version, i, i.Version),
					Remedy: "Bring both charts to one version.", Commands: []string{upgrade(i), upgrade(p)}})
			}
			if p.RunAs != "" && i.RunAs != "" && p.RunAs != i.RunAs {
				found = append(found, Finding{Severity: Error, Code: "plugin-identity-differs", Object: releaseObject(p),
					Text:   fmt.Sprintf("the provider lets %s read its files, but the plugin runs as %s (%s)", p.RunAs, i.RunAs, i),
					Remedy: "Give both releases the same value plugin.runAs.", Commands: []string{upgrade(p, "plugin.runAs="+i.RunAs)}})
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
		found = append(found, Finding{Severity: Error, Code: "two-releases-of-one-secret", Object: releaseObject(p),
			Text:   fmt.Sprintf("%s and %s serve the same Secret %s; on a node that both select they keep each other from being upgraded and uninstalled", first, p, p.Secret),
			Remedy: "Uninstall one, or give it a Secret of its own.", Commands: []string{command("helm", "uninstall", p.Name, "--namespace", p.Namespace)}})
	}
	return found
}

// daemonSets: every node that a release selects has its pod, and the pod is ready.
func daemonSets(o *Objects) []Finding {
	if !o.Read[ReadNodes] {
		return nil
	}
	var found []Finding
	for _, r := range o.Releases {
		spec := r.DaemonSet.Spec.Template.Spec
		// Nodes by what keeps the pod from them, so that a hundred nodes with one fault are one finding.
		outside, repelled, without, unready := map[string][]string{}, map[string][]string{}, []string{}, map[string][]string{}
		selected := 0
		for i := range o.Nodes {
			n := &o.Nodes[i]
			if why := inventory.OutsideSelector(spec, n); why != "" {
				outside[why] = append(outside[why], n.Name)
				continue
			}
			selected++
			if !o.Read[ReadPods] {
				continue
			}
			pod := o.podOf(r, n.Name)
			taint := inventory.Repelled(spec, n)
			switch {
			case pod != nil && inventory.Ready(pod):
			case pod != nil:
				unready[verify.Waiting(pod)] = append(unready[verify.Waiting(pod)], pod.Name+" on "+n.Name)
			case taint != nil:
				repelled[taint.ToString()] = append(repelled[taint.ToString()], n.Name)
			default:
				without = append(without, n.Name)
			}
		}
		describe := command("kubectl", "describe", "daemonset", r.DaemonSet.Name, "--namespace", r.Namespace)
		if r.Chart == inventory.InstallerChart {
			for _, why := range slices.Sorted(maps.Keys(outside)) {
				found = append(found, Finding{Severity: Warning, Code: "node-without-plugin", Object: releaseObject(r), order: orderNodes,
					Text:   fmt.Sprintf("%s: %s; no pod with a gMSA starts there", few(outside[why]), why),
					Remedy: "Change the value nodeSelector, unless these nodes are meant to have no gMSAs.", Commands: []string{upgrade(r, "nodeSelector=null")}})
			}
		} else if selected == 0 && o.whole() {
			found = append(found, Finding{Severity: Warning, Code: "release-selects-no-node", Object: releaseObject(r), order: orderNodes,
				Text:   "no Windows node has the labels " + inventory.SelectorText(spec.NodeSelector),
				Remedy: "Label the nodes that may have these credentials.", Commands: []string{command("kubectl", "get", "nodes", "--selector", inventory.SelectorText(spec.NodeSelector))}})
		}
		for _, taint := range slices.Sorted(maps.Keys(repelled)) {
			found = append(found, Finding{Severity: Error, Code: "node-taint", Object: releaseObject(r), order: orderNodes,
				Text:   fmt.Sprintf("%s: the taint %s keeps the pod away", few(repelled[taint]), taint),
				Remedy: "Add the taint to the value tolerations, or narrow nodeSelector.", Commands: []string{describe}})
		}
		if len(without) > 0 {
			f := Finding{Severity: Error, Code: "node-without-pod", Object: releaseObject(r), order: orderNodes,
				Text: few(without) + ": selected, and there is no pod", Remedy: "Its events tell why. The namespace must admit privileged pods (label pod-security.kubernetes.io/enforce=privileged).",
				Commands: []string{describe}}
			if refused := o.daemonSetEvent(r); refused != "" {
				f.Text += ": " + refused
			}
			found = append(found, f)
		}
		for _, why := range slices.Sorted(maps.Keys(unready)) {
			pod, _, _ := strings.Cut(unready[why][0], " ")
			found = append(found, Finding{Severity: Error, Code: "pod-not-ready", Object: releaseObject(r), order: orderNodes,
				Text: fmt.Sprintf("%s: %s", few(unready[why]), why), Remedy: "See its events and its log.",
				Commands: []string{command("kubectl", "describe", "pod", pod, "--namespace", r.Namespace), command("kubectl", "logs", pod, "--namespace", r.Namespace)}})
		}
	}
	return found
}

// whole tells whether all nodes were read.
func (o *Objects) whole() bool { return o.Scope == ScopeCluster }

// podOf returns a release's pod on a node, a ready one before others.
func (o *Objects) podOf(r inventory.Release, node string) *corev1.Pod {
	var found *corev1.Pod
	for i := range o.Pods {
		pod := &o.Pods[i]
		if pod.Namespace == r.Namespace && pod.Spec.NodeName == node && pod.DeletionTimestamp == nil && selects(r, pod) && (found == nil || inventory.Ready(pod)) {
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
		if e.InvolvedObject.Kind == "DaemonSet" && e.InvolvedObject.Name == r.DaemonSet.Name && e.InvolvedObject.Namespace == r.Namespace && e.Type == corev1.EventTypeWarning {
			return e.Message
		}
	}
	return ""
}

// nodes: what was found by looking at nodes from within.
func nodes(o *Objects) []Finding {
	var found []Finding
	for _, n := range o.NodeResults {
		for _, s := range n.Steps {
			f := Finding{Severity: Error, Code: s.Cause, Object: "node " + n.Node, order: orderNodes, Text: s.Name + ": " + s.Detail, Remedy: s.Remedy}
			switch {
			case s.State == verify.Warning:
				f.Severity = Warning
			case s.State != verify.Failed || s.Cause == verify.CauseInstallerMissing && len(inventory.Of(o.Releases, inventory.InstallerChart)) == 0:
				continue // the rule charts says it once for all nodes
			}
			found = append(found, f)
		}
	}
	return found
}

// secrets: each account's Secret is there and holds a credential.
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
			f.Code, f.Text, f.Remedy = "secret-not-found", "it does not exist", "Make it; the provider picks it up with the next call."
			f.Commands = []string{o.Program + " " + command("account", "create", account)}
		case s.Problem != "":
			f.Code, f.Text, f.Remedy = "secret-invalid", s.Problem, "Write it anew, or mend the key."
			f.Commands = []string{command("kubectl", "edit", "secret", s.Reference.Secret, "--namespace", s.Reference.Namespace)}
		case len(s.Warnings) > 0:
			f.Severity, f.Code, f.Text, f.Remedy = Warning, "secret-line-end", strings.Join(s.Warnings, "; "), "Write the password anew."
			f.Commands = []string{o.Program + " " + command("account", "rotate", account)}
		default:
			continue
		}
		found = append(found, f)
	}
	return found
}

// certificates: those in Secrets are there, good and not at their end.
func certificates(o *Objects) []Finding {
	var found []Finding
	for _, c := range o.Certificates {
		namespace, name, _ := strings.Cut(c.Secret, "/")
		see := []string{command("kubectl", "describe", "secret", name, "--namespace", namespace), command("kubectl", "get", "certificates.cert-manager.io", "--namespace", namespace)}
		f := Finding{Severity: Error, Object: "Secret " + c.Secret, order: orderCertificates, Commands: see}
		what := fmt.Sprintf("the certificate of the %s of release %s", c.Side, c.Release)
		left := c.NotAfter.Sub(o.Now)
		switch {
		case !c.Exists:
			f.Code, f.Text, f.Remedy = "certificate-missing", what+" is to be here, and the Secret does not exist", "Make it, or see why cert-manager has not."
		case c.Problem != "":
			f.Code, f.Text, f.Remedy = "certificate-invalid", what+": "+c.Problem, "Make it anew as the chart's values say."
		case left <= 0:
			f.Code, f.Text, f.Remedy = "certificate-expired", fmt.Sprintf("%s expired at %s", what, c.NotAfter.UTC().Format(time.RFC3339)), "Renew it, or see why cert-manager has not."
		// cert-manager renews at two thirds; who makes certificates by hand makes them for longer.
		case left < c.NotAfter.Sub(c.NotBefore)/10:
			f.Severity, f.Code, f.Remedy = Warning, "certificate-expires", "Renew it, or see why cert-manager has not."
			f.Text = fmt.Sprintf("%s expires at %s", what, c.NotAfter.UTC().Format(time.RFC3339))
		case o.Now.Before(c.NotBefore.Add(-10 * time.Minute)):
			f.Code, f.Text, f.Remedy = "certificate-not-yet", fmt.Sprintf("%s begins at %s", what, c.NotBefore.UTC().Format(time.RFC3339)), "Set the clock of what made it, and make it anew."
		default:
			continue
		}
		found = append(found, f)
	}
	return found
}

// credentialSpecs: each is right in itself, and names a release.
func credentialSpecs(o *Objects) []Finding {
	var found []Finding
	for _, s := range o.Specs {
		for _, severity := range []Severity{Error, Warning} {
			if f, ok := specFinding("GMSACredentialSpec "+s.Name, s.Document.Problems, severity); ok {
				f.Commands = []string{o.Program + " " + command("credspec", "check", s.Name)}
				found = append(found, f)
			}
		}
		ref, ours := inputOf(s.Document.Spec)
		if !ours || !o.sawReleases(ref.Namespace) || o.releaseOf(ref) != nil {
			continue
		}
		f := Finding{Severity: Error, Code: "release-not-found", Object: "GMSACredentialSpec " + s.Name, order: orderSpecs,
			Text:     fmt.Sprintf("its plugin input %s names no release: none in namespace %s serves the Secret %s", ref, ref.Namespace, ref.Secret),
			Remedy:   "Correct PluginInput, or install a release for this account.",
			Commands: []string{command("kubectl", "edit", "gmsacredentialspec", s.Name), verify.InstallCommand(ref)}}
		for _, r := range inventory.Of(o.Releases, inventory.ProviderChart) {
			if r.Secret == ref.Secret || r.Namespace == ref.Namespace {
				f.Text += fmt.Sprintf("; %s serves %s", r, r.Reference())
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
		f.Remedy = "Mend each field."
	}
	f.Text = strings.Join(texts, "; ")
	return f, len(texts) > 0
}

// inputOf returns what a credential spec for this plugin names.
func inputOf(s credspec.Spec) (credential.Reference, bool) {
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

// webhooks: there is one that copies credential specs into pods, it runs, and its certificate is in date.
func webhooks(o *Objects) []Finding {
	if !o.Read[ReadWebhooks] {
		return nil
	}
	var found []Finding
	var mutating []string // Services or configurations of webhooks that copy, each once
	for _, w := range o.Webhooks {
		if at := cmp.Or(w.Service, w.Configuration); w.Mutating && !slices.Contains(mutating, at) {
			mutating = append(mutating, at)
		}
		see := command("kubectl", "get", w.Resource, w.Configuration, "-o", "yaml")
		f := Finding{Severity: Error, Object: w.Resource + " " + w.Configuration, order: orderWebhooks, Commands: []string{see}}
		harm := "; credential specs do not get into pods"
		if w.Fails {
			harm = "; pods that it is asked about are refused"
		}
		// With one of the two at its end nobody is believed. A new certificate may lack where the CA lasts for years.
		which, begins, expires := "its CA", w.CABegins, w.CAExpires
		if !w.Expires.IsZero() && (expires.IsZero() || w.Expires.Before(expires)) {
			which, begins, expires = "the certificate in its Secret "+w.Secret, w.Begins, w.Expires
		}
		left := expires.Sub(o.Now)
		switch {
		case w.CAProblem != "":
			f.Code, f.Text, f.Remedy = "webhook-ca-invalid", fmt.Sprintf("webhook %s: %s%s", w.Name, w.CAProblem, harm), "Install the webhook's chart anew."
		case !expires.IsZero() && left <= 0:
			f.Code, f.Text = "webhook-certificate-expired", fmt.Sprintf("webhook %s: %s expired at %s%s", w.Name, which, expires.UTC().Format(time.RFC3339), harm)
			f.Remedy = "Renew the webhook's certificate: with cert-manager see its Certificate, else install the webhook's chart anew."
		case w.Endpoints != nil && *w.Endpoints == 0:
			f.Code, f.Text, f.Remedy = "webhook-down", fmt.Sprintf("webhook %s: its Service %s has no ready pod%s", w.Name, w.Service, harm), "Bring the webhook's Deployment back."
			namespace, service, _ := strings.Cut(w.Service, "/")
			f.Commands = []string{command("kubectl", "describe", "service", service, "--namespace", namespace), command("kubectl", "get", "pods", "--namespace", namespace, "-o", "wide")}
		case w.Problem != "":
			f.Code, f.Text = "webhook-ca-mismatch", fmt.Sprintf("webhook %s: %s%s", w.Name, w.Problem, harm)
			f.Remedy = "rancher-gmsa-webhook mends this by itself within seconds while it runs; its log says why it has not. With a certificate of yours, write its CA into the value certificates.provided.caBundle."
			namespace, _, _ := strings.Cut(w.Service, "/")
			f.Commands = append(f.Commands, command("kubectl", "logs", "--namespace", namespace, "--selector", "app.kubernetes.io/name="+inventory.WebhookChart, "--tail=50"))
		// Ours is renewed when a third of its time is left.
		case !expires.IsZero() && left < min(14*24*time.Hour, expires.Sub(begins)/4):
			f.Severity, f.Code = Warning, "webhook-certificate-expires"
			f.Text, f.Remedy = fmt.Sprintf("webhook %s: %s expires at %s", w.Name, which, expires.UTC().Format(time.RFC3339)), "Renew the webhook's certificate, or see in its log why it has not done so."
		case w.Endpoints != nil && w.Replicas != nil && *w.Endpoints < *w.Replicas:
			f.Severity, f.Code = Warning, "webhook-degraded"
			f.Text, f.Remedy = fmt.Sprintf("webhook %s: its Service %s has %d ready pods of %d", w.Name, w.Service, *w.Endpoints, *w.Replicas), "See why the others are not ready."
			namespace, _, _ := strings.Cut(w.Service, "/")
			f.Commands = []string{command("kubectl", "get", "pods", "--namespace", namespace, "-o", "wide")}
		default:
			continue
		}
		found = append(found, f)
	}
	if o.NoCRD {
		found = append(found, Finding{Severity: Warning, Code: "no-credential-specs", Object: "cluster", order: orderWebhooks,
			Text: inventory.ErrNoCredentialSpecs.Error(), Remedy: "Install the chart " + inventory.WebhookChart + ", which brings it.",
			Commands: []string{"kubectl get customresourcedefinition " + inventory.CredentialSpecResource}})
	}
	named := slices.ContainsFunc(o.Users, func(p corev1.Pod) bool {
		return slices.ContainsFunc(userSpecs(&p), func(u userSpec) bool { return u.name != "" })
	})
	if len(mutating) > 1 {
		found = append(found, Finding{Severity: Warning, Code: "webhook-twice", Object: "cluster", order: orderWebhooks,
			Text:     "more than one webhook copies credential specs into pods: " + strings.Join(mutating, ", ") + "; a pod is refused when either refuses it or is down",
			Remedy:   "Uninstall the one that you do not want. The CustomResourceDefinition and the GMSACredentialSpecs are to stay: see that the uninstall does not take them.",
			Commands: []string{"kubectl get mutatingwebhookconfigurations,validatingwebhookconfigurations"}})
	}
	if len(mutating) == 0 && (named || len(o.Specs) > 0) {
		found = append(found, Finding{Severity: Error, Code: "webhook-missing", Object: "cluster", order: orderWebhooks,
			Text:     "no admission webhook for gMSAs is configured, so that gmsaCredentialSpecName of a pod has no effect",
			Remedy:   "Install the chart " + inventory.WebhookChart + ".",
			Commands: []string{"kubectl get mutatingwebhookconfigurations,validatingwebhookconfigurations"}})
	}
	return found
}

// refusals: pods that do not exist because they were refused.
func refusals(o *Objects) []Finding {
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
		f := Finding{Severity: Error, Code: "pod-refused", Object: object, order: orderUse, Text: "its pods are refused: " + e.Message,
			Remedy:   "If it says that a ServiceAccount may not use a credential spec, bind it to a role that may; else the webhook's log says more.",
			Commands: []string{command("kubectl", "describe", strings.ToLower(e.InvolvedObject.Kind), e.InvolvedObject.Name, "--namespace", e.InvolvedObject.Namespace)}}
		found = append(found, f)
	}
	return found
}

func (o *Objects) isRelease(ref corev1.ObjectReference) bool {
	return slices.ContainsFunc(o.Releases, func(r inventory.Release) bool { return r.DaemonSet.Name == ref.Name && r.Namespace == ref.Namespace })
}

// uses: the ServiceAccount of each pod may use the credential spec that the pod names.
func uses(o *Objects) []Finding {
	var found []Finding
	for _, u := range o.Uses {
		if u.Allowed {
			continue
		}
		found = append(found, Finding{Severity: Error, Code: "use-forbidden", Object: fmt.Sprintf("ServiceAccount %s/%s", u.Namespace, u.ServiceAccount), order: orderUse,
			Text:   fmt.Sprintf("it may not use the GMSACredentialSpec %s that its pods name, so that a webhook refuses them", u.CredentialSpec),
			Remedy: "Let it use this credential spec and no other.",
			// kubectl create clusterrole refuses the verb.
			Commands: []string{command("echo", string(credspec.UseRBACManifest(u.CredentialSpec, u.Namespace, u.ServiceAccount))) + " | kubectl apply -f -"}})
	}
	return found
}

// few lists names, of many the first.
func few(names []string) string {
	const most = 5
	slices.Sort(names)
	if len(names) <= most {
		return strings.Join(names, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(names[:most], ", "), len(names)-most)
}
