{{/* What _windows.tpl asks of each chart, under the chart's name. */}}

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

{{/* Name of the ServiceAccount by which the webhook sees that a release serves the Secret; empty if there is none. The name has
room for a Secret's name of 241 characters, and there is none in the place of one that somebody else made. */}}
{{- define "rancher-gmsa-account-provider.secretMarker" -}}
{{- $name := printf "gmsa-secret-%s" (include "rancher-gmsa-account-provider.secret" .) -}}
{{- if and .Values.webhook.serviceAccount (le (len $name) 253) -}}
{{- $there := lookup "v1" "ServiceAccount" .Release.Namespace $name -}}
{{- if or (not $there) (eq (dig "metadata" "labels" "app.kubernetes.io/component" "" $there) "secret-marker") -}}
{{- $name -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* The other release of this chart for the same Secret, by whose ServiceAccount the webhook knows of the Secret; empty if it is this one's. */}}
{{- define "rancher-gmsa-account-provider.secretMarkerOwner" -}}
{{- with include "rancher-gmsa-account-provider.secretMarker" . -}}
{{- $owner := dig "metadata" "annotations" "meta.helm.sh/release-name" $.Release.Name (lookup "v1" "ServiceAccount" $.Release.Namespace . | default dict) -}}
{{- if ne $owner $.Release.Name }}{{ $owner }}{{ end -}}
{{- end -}}
{{- end -}}

{{- define "rancher-gmsa-account-provider.account" -}}
- --namespace={{ .Release.Namespace }}
- --secret={{ include "rancher-gmsa-account-provider.secret" . }}
{{- end -}}

{{/* Name of the Secret with the certificate of one side, server or client; empty in mode embedded. */}}
{{- define "rancher-gmsa-account-provider.certificateSecret" -}}
{{- $certificates := .root.Values.certificates -}}
{{- if eq $certificates.mode "secrets" -}}
{{- get $certificates.secrets .side -}}
{{- else if eq $certificates.mode "certManager" -}}
{{- include "ccgrkc.name" (dict "root" .root "suffix" (printf "-%s" .side)) -}}
{{- end -}}
{{- end -}}

{{- define "rancher-gmsa-account-provider.probe" -}}
exec:
  command:
    - gmsa-account-provider.exe
    - healthcheck
    {{- include "rancher-gmsa-account-provider.account" .root | nindent 4 }}
    {{- if .thisPod }}
    - --this-pod
    {{- end }}
{{ toYaml .numbers }}
{{- end -}}

{{/* What is wrong in this chart. */}}
{{- define "rancher-gmsa-account-provider.validate" -}}
{{- if hasPrefix "gmsa-secret-" .Release.Name -}}
{{- fail (printf "\n\nThe release cannot be called %s: its ServiceAccount would have a name that stands for the Secret %s of another release. Choose a name that does not begin with gmsa-secret-." .Release.Name (trimPrefix "gmsa-secret-" .Release.Name)) -}}
{{- end -}}
{{- $c := .Values.certificates -}}
{{- if eq $c.mode "embedded" -}}
{{- if lt (include "ccgrkc.seconds" $c.lifetime | int) 10 -}}
{{- fail (printf "\n\ncertificates.lifetime is %s: use 10s or more." $c.lifetime) -}}
{{- end -}}
{{- else if eq $c.mode "secrets" -}}
{{- if or (not $c.secrets.server) (not $c.secrets.client) -}}
{{- fail "\n\ncertificates.mode is secrets: name the two Secrets in certificates.secrets.server and certificates.secrets.client." -}}
{{- end -}}
{{- if eq $c.secrets.server $c.secrets.client -}}
{{- fail "\n\ncertificates.secrets.server and certificates.secrets.client name the same Secret. Make two: a certificate is for the server or for the client, never for both." -}}
{{- end -}}
{{- else -}}
{{- if not (.Capabilities.APIVersions.Has "cert-manager.io/v1") -}}
{{- fail "\n\ncertificates.mode is certManager, but this cluster does not know cert-manager.io/v1. Install cert-manager with its CRDs first (https://cert-manager.io/docs/installation/), or use certificates.mode=embedded. With helm template add: --api-versions cert-manager.io/v1" -}}
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
{{- range $side := list "server" "client" -}}
{{- if eq (include "rancher-gmsa-account-provider.certificateSecret" (dict "root" $ "side" $side)) (include "rancher-gmsa-account-provider.secret" $) -}}
{{- fail (printf "\n\ncredentials.secretName is %s, which is the Secret of the %s's certificate. They must be different Secrets." $.Values.credentials.secretName $side) -}}
{{- end -}}
{{- end -}}
{{- end -}}
