{{/* The Service's name must be a DNS label, and what stands for the whole cluster is called like it. */}}
{{- define "rancher-gmsa-webhook.name" -}}
{{- include "ccgrkc.name" (dict "root" . "hostname" true) -}}
{{- end -}}

{{- define "rancher-gmsa-webhook.labels" -}}
{{- include "ccgrkc.labels" (dict "root" . "component" "webhook") -}}
{{- end -}}

{{/* Name of the Secret with the certificate. Each mode has its own: the webhook's goes with its release, and cert-manager's does not,
so that neither is in the other's way when the mode changes or is rolled back. */}}
{{- define "rancher-gmsa-webhook.secret" -}}
{{- if eq .Values.certificates.mode "provided" -}}
{{- .Values.certificates.provided.secretName -}}
{{- else -}}
{{- include "ccgrkc.name" (dict "root" . "hostname" true "suffix" (ternary "-tls" "-cert" (eq .Values.certificates.mode "self"))) -}}
{{- end -}}
{{- end -}}

{{/* Whether the webhook writes the CA into the two configurations; empty if not. */}}
{{- define "rancher-gmsa-webhook.injects" -}}
{{- if not (and (eq .Values.certificates.mode "provided") .Values.certificates.provided.caBundle) }}true{{ end -}}
{{- end -}}

{{/* Which namespaces are looked at: all but the webhook's own, whose pods must start while there is no webhook, and those with
the label that SIG-Windows' webhook has for this. */}}
{{- define "rancher-gmsa-webhook.namespaceSelector" -}}
matchExpressions:
  - key: kubernetes.io/metadata.name
    operator: NotIn
    values: [{{ .Release.Namespace | quote }}]
  - key: windows.k8s.io/disabled
    operator: NotIn
    values: ["true"]
{{- end -}}

{{/* The one condition of webhooks and policy: the gMSAs of a pod are not what they were, and before a CREATE there were none. So pods
without a gMSA never pass it, and of the others no update that leaves the gMSAs alone, such as that of a label or a finalizer: an
outage would stop all of these. oldObject is null in CREATE. A field that is empty counts as one that is absent. */}}
{{- define "rancher-gmsa-webhook.matchConditions" -}}
- name: gmsas-not-as-before
  expression: |-
    [[object, oldObject].map(pod, pod == null ? [] :
      [[dyn(""), pod.spec.?securityContext.?windowsOptions.?gmsaCredentialSpecName.orValue(""),
        pod.spec.?securityContext.?windowsOptions.?gmsaCredentialSpec.orValue("")]].filter(at, at[1] != "" || at[2] != "")
      {{- range list "containers" "initContainers" "ephemeralContainers" }}
      + pod.spec.?{{ . }}.orValue([]).filter(c,
        c.?securityContext.?windowsOptions.?gmsaCredentialSpecName.orValue("") != ""
        || c.?securityContext.?windowsOptions.?gmsaCredentialSpec.orValue("") != "").map(c, [dyn("{{ . }} " + c.name),
        c.?securityContext.?windowsOptions.?gmsaCredentialSpecName.orValue(""),
        c.?securityContext.?windowsOptions.?gmsaCredentialSpec.orValue("")])
      {{- end }}
    )].exists(gmsas, gmsas[0] != gmsas[1])
{{- end -}}

{{/* CEL: a text of the user's in quotes. A warning is a header of HTTP, which cannot have control characters, and quote() leaves most of
them. */}}
{{- define "rancher-gmsa-webhook.quoted" -}}
({{ . }}.matches(r'\p{Cc}') ? "a text with control characters" : strings.quote({{ . }}))
{{- end -}}

{{/* Argument: the weight. */}}
{{- define "rancher-gmsa-webhook.testAnnotations" -}}
helm.sh/hook: test
helm.sh/hook-weight: {{ . | quote }}
helm.sh/hook-delete-policy: before-hook-creation,hook-succeeded
{{- end -}}

{{/* The CustomResourceDefinition if it is this release's to make; empty if it is somebody else's. */}}
{{- define "rancher-gmsa-webhook.crdOwner" -}}
{{- $there := lookup "apiextensions.k8s.io/v1" "CustomResourceDefinition" "" "gmsacredentialspecs.windows.k8s.io" | default dict -}}
{{- $annotations := dig "metadata" "annotations" dict $there | default dict -}}
{{- if not $there -}}
this release
{{- else if and (eq (get $annotations "meta.helm.sh/release-name") .Release.Name) (eq (get $annotations "meta.helm.sh/release-namespace") .Release.Namespace) -}}
this release
{{- else if get $annotations "meta.helm.sh/release-name" -}}
release {{ get $annotations "meta.helm.sh/release-namespace" }}/{{ get $annotations "meta.helm.sh/release-name" }}
{{- else -}}
no release of Helm
{{- end -}}
{{- end -}}

{{/* What is wrong in this chart. */}}
{{- define "rancher-gmsa-webhook.validate" -}}
{{- if not (regexMatch "^[a-z]" .Release.Name) -}}
{{- fail (printf "\n\nThe release cannot be called %s: its Service has that name, and a Service's name begins with a letter. Call it rancher-gmsa-webhook." .Release.Name) -}}
{{- end -}}
{{- range (lookup "admissionregistration.k8s.io/v1" "ValidatingWebhookConfiguration" "" "" | default dict).items -}}
{{- if eq (dig "metadata" "labels" "app.kubernetes.io/name" "" .) $.Chart.Name -}}
{{- $release := dig "metadata" "annotations" "meta.helm.sh/release-name" "" . -}}
{{- $namespace := dig "metadata" "annotations" "meta.helm.sh/release-namespace" "" . -}}
{{- if and $release (or (ne $release $.Release.Name) (ne $namespace $.Release.Namespace)) -}}
{{- fail (printf "\n\nThis chart is installed already, as release %s in namespace %s, and a cluster needs it once. Upgrade that release, or uninstall it first:\n\n  helm uninstall %s --namespace %s" $release $namespace $release $namespace) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- $os := get (.Values.nodeSelector | default dict) "kubernetes.io/os" | default "linux" -}}
{{- if ne $os "linux" -}}
{{- fail (printf "\n\nnodeSelector: kubernetes.io/os is %s, but this chart's Deployment runs on Linux nodes only. Leave kubernetes.io/os out." $os) -}}
{{- end -}}
{{- $c := .Values.certificates -}}
{{- if lt (include "ccgrkc.seconds" $c.settle | int) 1 -}}
{{- fail (printf "\n\ncertificates.settle is %s: use 1s or more." $c.settle) -}}
{{- end -}}
{{- if eq $c.mode "self" -}}
{{- if lt (include "ccgrkc.seconds" $c.lifetime | int) (mul 6 (include "ccgrkc.seconds" $c.settle | int)) -}}
{{- fail (printf "\n\ncertificates.lifetime is %s: use six times certificates.settle (%s) or more, so that a new CA has settled well before the old certificate ends." $c.lifetime $c.settle) -}}
{{- end -}}
{{- else if eq $c.mode "provided" -}}
{{- if not $c.provided.secretName -}}
{{- fail "\n\ncertificates.mode is provided: name the Secret in certificates.provided.secretName." -}}
{{- end -}}
{{- else -}}
{{- if not (.Capabilities.APIVersions.Has "cert-manager.io/v1") -}}
{{- fail "\n\ncertificates.mode is certManager, but this cluster does not know cert-manager.io/v1. Install cert-manager with its CRDs first (https://cert-manager.io/docs/installation/), or use certificates.mode=self. With helm template add: --api-versions cert-manager.io/v1" -}}
{{- end -}}
{{- $duration := include "ccgrkc.seconds" $c.certManager.duration | int -}}
{{- if lt $duration 3600 -}}
{{- fail (printf "\n\ncertificates.certManager.duration is %s: cert-manager needs 1h or more." $c.certManager.duration) -}}
{{- end -}}
{{- with $c.certManager.renewBefore -}}
{{- $before := include "ccgrkc.seconds" . | int -}}
{{- if or (lt $before 300) (ge $before $duration) -}}
{{- fail (printf "\n\ncertificates.certManager.renewBefore is %s: cert-manager needs 5m or more, and less than the duration of %s. Leave it empty for a third." . $c.certManager.duration) -}}
{{- end -}}
{{- end -}}
{{- if lt (include "ccgrkc.seconds" $c.certManager.caDuration | int) (mul 3 $duration) -}}
{{- fail (printf "\n\ncertificates.certManager.caDuration is %s: use three times the duration of %s or more: cert-manager renews the CA at two thirds of its life, and the CA must outlive what it signed last." $c.certManager.caDuration $c.certManager.duration) -}}
{{- end -}}
{{- end -}}
{{- if and .Values.apiServer.clientName (not .Values.apiServer.clientCAConfigMap) -}}
{{- fail "\n\napiServer.clientName is set, but no CA says whose it is: name the ConfigMap with the CA in apiServer.clientCAConfigMap." -}}
{{- end -}}
{{- end -}}
