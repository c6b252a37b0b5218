{{/* Name of the Service, which must be a DNS label, and of the cluster-scoped objects. */}}
{{- define "rancher-gmsa-webhook.name" -}}
{{- include "rancher-gmsa-webhook.objectName" (dict "root" . "hostname" true) -}}
{{- end -}}

{{- define "rancher-gmsa-webhook.webhookLabels" -}}
{{- include "rancher-gmsa-webhook.labels" (dict "root" . "component" "webhook") -}}
{{- end -}}

{{/* Name of the Secret with the serving certificate or, in mode self, with the CA. It differs between the modes self and certManager, because Helm
deletes the former and not the latter: a change of the mode or a rollback must not find the other mode's Secret. */}}
{{- define "rancher-gmsa-webhook.secret" -}}
{{- if eq .Values.certificates.mode "provided" -}}
{{- .Values.certificates.provided.secretName -}}
{{- else -}}
{{- $suffix := ternary "-tls" "-cert" (eq .Values.certificates.mode "self") -}}
{{- include "rancher-gmsa-webhook.objectName" (dict "root" . "hostname" true "suffix" $suffix) -}}
{{- end -}}
{{- end -}}

{{/* "true" if the webhook writes the CA bundle of the webhook configurations, else empty. */}}
{{- define "rancher-gmsa-webhook.injects" -}}
{{- if not (and (eq .Values.certificates.mode "provided") .Values.certificates.provided.caBundle) }}true{{ end -}}
{{- end -}}

{{/* Excludes the webhook's own namespace, whose pods must start while the webhook is unavailable, and namespaces with
the label that SIG Windows' webhook also uses. */}}
{{- define "rancher-gmsa-webhook.namespaceSelector" -}}
matchExpressions:
  - key: kubernetes.io/metadata.name
    operator: NotIn
    values: [{{ .Release.Namespace | quote }}]
  - key: windows.k8s.io/disabled
    operator: NotIn
    values: ["true"]
{{- end -}}

{{/* The condition of the webhooks and the policy: the request sets or changes a gMSA field of the pod. It is false for
pods without a gMSA and for updates of other fields, such as labels or finalizers, because these must work while the
webhook is unavailable. oldObject is null in CREATE. An empty field is the same as an absent one. */}}
{{- define "rancher-gmsa-webhook.matchConditions" -}}
- name: gmsa-set-or-changed
  expression: |-
    [[object, oldObject].map(pod, pod == null ? [] :
      [[dyn(""), pod.spec.?securityContext.?windowsOptions.?gmsaCredentialSpecName.orValue(""),
        pod.spec.?securityContext.?windowsOptions.?gmsaCredentialSpec.orValue("")]]
        .filter(fields, fields[1] != "" || fields[2] != "")
      {{- range list "containers" "initContainers" "ephemeralContainers" }}
      + pod.spec.?{{ . }}.orValue([]).filter(c,
        c.?securityContext.?windowsOptions.?gmsaCredentialSpecName.orValue("") != ""
        || c.?securityContext.?windowsOptions.?gmsaCredentialSpec.orValue("") != "").map(c, [dyn("{{ . }} " + c.name),
        c.?securityContext.?windowsOptions.?gmsaCredentialSpecName.orValue(""),
        c.?securityContext.?windowsOptions.?gmsaCredentialSpec.orValue("")])
      {{- end }}
    )].exists(gmsas, gmsas[0] != gmsas[1])
{{- end -}}

{{/* Manifest that grants the "use" permission, as in the webhook's denials: package credspec, UseRBACManifest. Arguments:
spec, namespace, account. */}}
{{- define "rancher-gmsa-webhook.grant" -}}
{"apiVersion":"v1","items":[{"apiVersion":"rbac.authorization.k8s.io/v1","kind":"ClusterRole","metadata":{"name":"gmsa-{{ .spec }}"},"rules":[{"apiGroups":["windows.k8s.io"],"resourceNames":["{{ .spec }}"],"resources":["gmsacredentialspecs"],"verbs":["use"]}]},{"apiVersion":"rbac.authorization.k8s.io/v1","kind":"RoleBinding","metadata":{"name":"gmsa-{{ .spec }}:{{ .account }}","namespace":"{{ .namespace }}"},"roleRef":{"apiGroup":"rbac.authorization.k8s.io","kind":"ClusterRole","name":"gmsa-{{ .spec }}"},"subjects":[{"kind":"ServiceAccount","name":"{{ .account }}","namespace":"{{ .namespace }}"}]}],"kind":"List"}
{{- end -}}

{{/* CEL: the user's text in quotes. A warning is an HTTP header, which must not contain control characters, and quote()
retains most of them. */}}
{{- define "rancher-gmsa-webhook.quoted" -}}
({{ . }}.matches(r'\p{Cc}') ? "a text with control characters" : strings.quote({{ . }}))
{{- end -}}

{{/* Argument: hook weight. */}}
{{- define "rancher-gmsa-webhook.testAnnotations" -}}
helm.sh/hook: test
helm.sh/hook-weight: {{ . | quote }}
helm.sh/hook-delete-policy: before-hook-creation,hook-succeeded
{{- end -}}

{{/* Owner of the CustomResourceDefinition. "this release" if it does not exist. */}}
{{- define "rancher-gmsa-webhook.crdOwner" -}}
{{- $existing := lookup "apiextensions.k8s.io/v1" "CustomResourceDefinition" "" "gmsacredentialspecs.windows.k8s.io"
  | default dict -}}
{{- $annotations := dig "metadata" "annotations" dict $existing | default dict -}}
{{- $name := get $annotations "meta.helm.sh/release-name" -}}
{{- $namespace := get $annotations "meta.helm.sh/release-namespace" -}}
{{- if not $existing -}}
this release
{{- else if and (eq $name .Release.Name) (eq $namespace .Release.Namespace) -}}
this release
{{- else if $name -}}
release {{ $namespace }}/{{ $name }}
{{- else -}}
no Helm release
{{- end -}}
{{- end -}}

{{/* Errors that only this chart reports. */}}
{{- define "rancher-gmsa-webhook.validate" -}}
{{- if not (regexMatch "^[a-z]" .Release.Name) -}}
{{- fail (printf (cat
  "\n\nThe release name %s is not allowed, because the Service has the same name and must begin with a letter."
  "Use the name rancher-gmsa-webhook.") .Release.Name) -}}
{{- end -}}
{{- range (lookup "admissionregistration.k8s.io/v1" "ValidatingWebhookConfiguration" "" "" | default dict).items -}}
{{- if eq (dig "metadata" "labels" "app.kubernetes.io/name" "" .) $.Chart.Name -}}
{{- $release := dig "metadata" "annotations" "meta.helm.sh/release-name" "" . -}}
{{- $namespace := dig "metadata" "annotations" "meta.helm.sh/release-namespace" "" . -}}
{{- if and $release (or (ne $release $.Release.Name) (ne $namespace $.Release.Namespace)) -}}
{{- fail (printf (cat
  "\n\nThis chart is already installed as release %[1]s in namespace %[2]s. Only one release per cluster is possible."
  "Upgrade that release, or uninstall it first:\n\n  helm uninstall %[1]s --namespace %[2]s") $release $namespace) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- $os := get (.Values.nodeSelector | default dict) "kubernetes.io/os" | default "linux" -}}
{{- if ne $os "linux" -}}
{{- fail (printf (cat
  "\n\nnodeSelector: kubernetes.io/os is %s, but the Deployment of this chart runs only on Linux nodes."
  "Remove kubernetes.io/os from nodeSelector.") $os) -}}
{{- end -}}
{{- $c := .Values.certificates -}}
{{- $delay := $c.propagationDelay -}}
{{- if lt (include "rancher-gmsa-webhook.seconds" $delay | int) 1 -}}
{{- fail (printf "\n\ncertificates.propagationDelay is %s, which is too short. Set 1s or more." $delay) -}}
{{- end -}}
{{- if eq $c.mode "self" -}}
{{- $lifetime := include "rancher-gmsa-webhook.seconds" $c.caLifetime | int -}}
{{- if lt $lifetime (mul 18 (include "rancher-gmsa-webhook.seconds" $delay | int)) -}}
{{- fail (printf (cat
  "\n\ncertificates.caLifetime is %s, but must be at least 18 times certificates.propagationDelay (%s). Otherwise a"
  "certificate can expire before all API servers trust the next CA.") $c.caLifetime $delay) -}}
{{- end -}}
{{- else if eq $c.mode "provided" -}}
{{- if not $c.provided.secretName -}}
{{- fail (cat
  "\n\ncertificates.mode is provided, but the name of the Secret is missing. Set certificates.provided.secretName.") -}}
{{- end -}}
{{- else -}}
{{- if not (.Capabilities.APIVersions.Has "cert-manager.io/v1") -}}
{{- fail (cat
  "\n\ncertificates.mode is certManager, but the cluster does not have the API cert-manager.io/v1. Install cert-manager"
  "with its CRDs (https://cert-manager.io/docs/installation/), or set certificates.mode=self."
  "For \"helm template\", add --api-versions cert-manager.io/v1.") -}}
{{- end -}}
{{- $duration := include "rancher-gmsa-webhook.seconds" $c.certManager.duration | int -}}
{{- if lt $duration 3600 -}}
{{- fail (printf
  "\n\ncertificates.certManager.duration is %s, but cert-manager requires at least 1h. Set 1h or more."
  $c.certManager.duration) -}}
{{- end -}}
{{- with $c.certManager.renewBefore -}}
{{- $before := include "rancher-gmsa-webhook.seconds" . | int -}}
{{- if or (lt $before 300) (ge $before $duration) -}}
{{- fail (printf (cat
  "\n\ncertificates.certManager.renewBefore is %s, but cert-manager requires at least 5m and less than the duration %s."
  "Change it, or leave it empty for a third of the duration.") . $c.certManager.duration) -}}
{{- end -}}
{{- end -}}
{{- if lt (include "rancher-gmsa-webhook.seconds" $c.certManager.caDuration | int) (mul 3 $duration) -}}
{{- fail (printf (cat
  "\n\ncertificates.certManager.caDuration is %s, but must be at least three times the duration %s. cert-manager renews"
  "the CA after two thirds of its lifetime, and the CA must remain valid longer than the certificates that it signed.")
  $c.certManager.caDuration $c.certManager.duration) -}}
{{- end -}}
{{- end -}}
{{- if and .Values.apiServer.clientName (not .Values.apiServer.clientCAConfigMap) -}}
{{- fail "\n\napiServer.clientName is set, but the CA is missing. Set apiServer.clientCAConfigMap." -}}
{{- end -}}
{{- end -}}
