{{/* Generated from charts/shared/_shared.tpl. Change that file, then run "make charts". */}}
{{/*
Templates that all charts use. Their names begin with the chart's name, because all charts of an umbrella chart share
one set of template names.
*/}}

{{/* Arguments: root, suffix, hostname. Returns the name of an object: the release's name and the suffix. A release's
name has up to 53 characters and can contain dots. An object's name has at most 63 characters, and no dots if it becomes
a hostname, as the names of Pods and Jobs do. A name that does not fit is shortened, its dots are replaced, and a hash
makes it unique. */}}
{{- define "rancher-gmsa-webhook.objectName" -}}
{{- $release := .root.Release.Name -}}
{{- $suffix := .suffix | default "" -}}
{{- if or (gt (add (len $release) (len $suffix)) 63) (and .hostname (contains "." $release)) -}}
{{- $short := trunc (int (sub 54 (len $suffix))) $release | replace "." "-" | trimAll "-" -}}
{{- $release = printf "%s-%s" $short (sha256sum $release | trunc 8) -}}
{{- end -}}
{{- $release }}{{ $suffix -}}
{{- end -}}

{{- define "rancher-gmsa-webhook.image" -}}
{{- $registry := .Values.image.registry -}}
{{- $registry = dig "cattle" "systemDefaultRegistry" "" (.Values.global | default dict) | default $registry -}}
{{- with $registry }}{{ trimSuffix "/" . }}/{{ end -}}
{{- .Values.image.repository -}}
{{- with .Values.image.digest }}@{{ . }}{{ else }}:{{ $.Values.image.tag | default $.Chart.AppVersion }}{{ end -}}
{{- end -}}

{{/* The labels by which DaemonSets, Deployments and the uninstall Jobs select pods. They must never change: an upgrade
cannot change a selector. */}}
{{- define "rancher-gmsa-webhook.selector" -}}
app.kubernetes.io/name: {{ .root.Chart.Name | quote }}
app.kubernetes.io/instance: {{ .root.Release.Name | quote }}
app.kubernetes.io/component: {{ .component | quote }}
{{- end -}}

{{- define "rancher-gmsa-webhook.selectorText" -}}
{{- printf "app.kubernetes.io/name=%s,app.kubernetes.io/instance=%s,app.kubernetes.io/component=%s"
  .root.Chart.Name .root.Release.Name .component -}}
{{- end -}}

{{- define "rancher-gmsa-webhook.labels" -}}
{{ include "rancher-gmsa-webhook.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | replace "+" "_" | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
app.kubernetes.io/part-of: ccgrkc
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version
  | replace "+" "_" | trunc 63 | trimSuffix "-" | quote }}
{{- end -}}

{{/* Pod Security Standard "restricted", and a read-only root file system. */}}
{{- define "rancher-gmsa-webhook.linuxPodSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- define "rancher-gmsa-webhook.linuxContainerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}

{{/* A Go duration in seconds. Sprig has no function for this, but can add a duration to a date. */}}
{{- define "rancher-gmsa-webhook.seconds" -}}
{{- toDate "2006-01-02T15:04:05Z07:00" "1970-01-01T00:00:00Z" | mustDateModify . | unixEpoch -}}
{{- end -}}

{{/* Errors that every chart reports. The schema has already rejected wrong types, wrong formats and unknown keys. */}}
{{- define "rancher-gmsa-webhook.validateShared" -}}
{{- $uninstall := "-uninstall(-nodes|-stop|-wait)?$" -}}
{{- if regexMatch $uninstall .Release.Name -}}
{{- $other := regexReplaceAll $uninstall .Release.Name "" -}}
{{- fail (printf (cat
  "\n\nThe release name %s is not allowed, because the uninstall hook of a release %s creates objects with this name."
  "Choose a name that does not end with -uninstall.") .Release.Name $other) -}}
{{- end -}}
{{- range $key, $_ := .Values.podLabels -}}
{{- if hasKey (include "rancher-gmsa-webhook.labels" (dict "root" $ "component" "") | fromYaml) $key -}}
{{- fail (printf "\n\npodLabels: the chart itself sets the label %s. Use another label." $key) -}}
{{- end -}}
{{- end -}}
{{- end -}}
