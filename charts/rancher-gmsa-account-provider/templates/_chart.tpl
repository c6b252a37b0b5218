{{/* Templates that _windows.tpl requires. */}}

{{- define "rancher-gmsa-account-provider.component" -}}
provider
{{- end -}}

{{- define "rancher-gmsa-account-provider.uninstallCommand" -}}
- gmsa-account-provider.exe
- cleanup
{{ include "rancher-gmsa-account-provider.account" . }}
{{- end -}}

{{- define "rancher-gmsa-account-provider.secret" -}}
{{- .Values.credentials.secretName | default (printf "%s-creds" .Release.Name) -}}
{{- end -}}

{{/* Name of the ServiceAccount that shows the webhook that a release uses the Secret. Empty if the Secret's name has
more than 241 characters, or if a ServiceAccount of this name exists that this chart did not create. */}}
{{- define "rancher-gmsa-account-provider.secretMarker" -}}
{{- $name := printf "gmsa-secret-%s" (include "rancher-gmsa-account-provider.secret" .) -}}
{{- if and .Values.webhook.serviceAccount (le (len $name) 253) -}}
{{- $existing := lookup "v1" "ServiceAccount" .Release.Namespace $name -}}
{{- if or (not $existing) (eq (dig "metadata" "labels" "app.kubernetes.io/component" "" $existing) "secret-marker") -}}
{{- $name -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Name of another release with the same Secret that owns this ServiceAccount. Empty if this release owns it. */}}
{{- define "rancher-gmsa-account-provider.secretMarkerOwner" -}}
{{- with include "rancher-gmsa-account-provider.secretMarker" . -}}
{{- $owner := dig "metadata" "annotations" "meta.helm.sh/release-name" $.Release.Name
  (lookup "v1" "ServiceAccount" $.Release.Namespace . | default dict) -}}
{{- if ne $owner $.Release.Name }}{{ $owner }}{{ end -}}
{{- end -}}
{{- end -}}

{{- define "rancher-gmsa-account-provider.account" -}}
- --namespace={{ .Release.Namespace }}
- --secret={{ include "rancher-gmsa-account-provider.secret" . }}
{{- end -}}

{{/* Arguments: root, side (server or client). Name of the Secret with the certificate of this side. Empty in mode
embedded. */}}
{{- define "rancher-gmsa-account-provider.certificateSecret" -}}
{{- $certificates := .root.Values.certificates -}}
{{- if eq $certificates.mode "secrets" -}}
{{- get $certificates.secrets .side -}}
{{- else if eq $certificates.mode "certManager" -}}
{{- include "rancher-gmsa-account-provider.objectName" (dict "root" .root "suffix" (printf "-%s" .side)) -}}
{{- end -}}
{{- end -}}

{{- define "rancher-gmsa-account-provider.probe" -}}
exec:
  command:
    - container-probe.exe
    {{- if .acceptOther }}
    - --accept-other
    {{- end }}
{{ toYaml .numbers }}
{{- end -}}

{{/* Errors that only this chart reports. */}}
{{- define "rancher-gmsa-account-provider.validate" -}}
{{- if hasPrefix "gmsa-secret-" .Release.Name -}}
{{- fail (printf (cat
  "\n\nThe release name %s is not allowed, because a release with Secret %s creates a ServiceAccount with this name."
  "Choose a name that does not begin with gmsa-secret-.") .Release.Name (trimPrefix "gmsa-secret-" .Release.Name)) -}}
{{- end -}}
{{- $c := .Values.certificates -}}
{{- if eq $c.mode "embedded" -}}
{{- if lt (include "rancher-gmsa-account-provider.seconds" $c.lifetime | int) 10 -}}
{{- fail (printf "\n\ncertificates.lifetime is %s, which is too short. Set 10s or more." $c.lifetime) -}}
{{- end -}}
{{- else if eq $c.mode "secrets" -}}
{{- if or (not $c.secrets.server) (not $c.secrets.client) -}}
{{- fail (cat
  "\n\ncertificates.mode is secrets, but the names of the Secrets are missing. Set certificates.secrets.server and"
  "certificates.secrets.client.") -}}
{{- end -}}
{{- if eq $c.secrets.server $c.secrets.client -}}
{{- fail (cat
  "\n\ncertificates.secrets.server and certificates.secrets.client specify the same Secret. Create two Secrets: each"
  "certificate must be valid either for the server or for the client.") -}}
{{- end -}}
{{- else -}}
{{- if not (.Capabilities.APIVersions.Has "cert-manager.io/v1") -}}
{{- fail (cat
  "\n\ncertificates.mode is certManager, but the cluster does not have the API cert-manager.io/v1. Install cert-manager"
  "with its CRDs (https://cert-manager.io/docs/installation/), or set certificates.mode=embedded."
  "For \"helm template\", add --api-versions cert-manager.io/v1.") -}}
{{- end -}}
{{- $duration := include "rancher-gmsa-account-provider.seconds" $c.certManager.duration | int -}}
{{- if lt $duration 3600 -}}
{{- fail (printf
  "\n\ncertificates.certManager.duration is %s, but cert-manager requires at least 1h. Set 1h or more."
  $c.certManager.duration) -}}
{{- end -}}
{{- with $c.certManager.renewBefore -}}
{{- $before := include "rancher-gmsa-account-provider.seconds" . | int -}}
{{- if or (lt $before 300) (ge $before $duration) -}}
{{- fail (printf (cat
  "\n\ncertificates.certManager.renewBefore is %s, but cert-manager requires at least 5m and less than the duration %s."
  "Change it, or leave it empty for a third of the duration.") . $c.certManager.duration) -}}
{{- end -}}
{{- end -}}
{{- if lt (include "rancher-gmsa-account-provider.seconds" $c.certManager.caDuration | int) (mul 3 $duration) -}}
{{- fail (printf (cat
  "\n\ncertificates.certManager.caDuration is %s, but must be at least three times the duration %s. cert-manager renews"
  "the CA after two thirds of its lifetime, and the CA must remain valid longer than the certificates that it signed.")
  $c.certManager.caDuration $c.certManager.duration) -}}
{{- end -}}
{{- end -}}
{{- $secret := include "rancher-gmsa-account-provider.secret" . -}}
{{- range $side := list "server" "client" -}}
{{- if eq (include "rancher-gmsa-account-provider.certificateSecret" (dict "root" $ "side" $side)) $secret -}}
{{- fail (printf (cat
  "\n\ncredentials.secretName is %s, which is also the Secret with the %s certificate. Specify different Secrets.")
  $.Values.credentials.secretName $side) -}}
{{- end -}}
{{- end -}}
{{- end -}}
