{{/*
What the charts have in common. The file is the same in all, and a test keeps it so. All names begin with "ccgrkc.": in
an umbrella chart the templates of all charts share one set of names.
*/}}

{{/* The name of an object: the release's name and a suffix. A release's name has up to 53 characters and dots. Kubernetes wants
at most 63, and of a Pod or Job, whose name becomes a hostname (argument hostname), no dots. What does not fit is cut or replaced,
and made unique by a hash. */}}
{{- define "ccgrkc.name" -}}
{{- $release := .root.Release.Name -}}
{{- $suffix := .suffix | default "" -}}
{{- if or (gt (add (len $release) (len $suffix)) 63) (and .hostname (contains "." $release)) -}}
{{- $release = printf "%s-%s" (trunc (int (sub 54 (len $suffix))) $release | replace "." "-" | trimAll "-") (sha256sum $release | trunc 8) -}}
{{- end -}}
{{- $release }}{{ $suffix -}}
{{- end -}}

{{- define "ccgrkc.image" -}}
{{- $registry := .Values.image.registry -}}
{{- $registry = dig "cattle" "systemDefaultRegistry" "" (.Values.global | default dict) | default $registry -}}
{{- with $registry }}{{ trimSuffix "/" . }}/{{ end -}}
{{- .Values.image.repository -}}
{{- with .Values.image.digest }}@{{ . }}{{ else }}:{{ $.Values.image.tag | default $.Chart.AppVersion }}{{ end -}}
{{- end -}}

{{/* What DaemonSets and Deployments select their pods by, and what the jobs of an uninstall find them by. It never changes: a
selector cannot be changed in an upgrade. */}}
{{- define "ccgrkc.selector" -}}
app.kubernetes.io/name: {{ .root.Chart.Name | quote }}
app.kubernetes.io/instance: {{ .root.Release.Name | quote }}
app.kubernetes.io/component: {{ .component | quote }}
{{- end -}}

{{- define "ccgrkc.selectorText" -}}
app.kubernetes.io/name={{ .root.Chart.Name }},app.kubernetes.io/instance={{ .root.Release.Name }},app.kubernetes.io/component={{ .component }}
{{- end -}}

{{- define "ccgrkc.labels" -}}
{{ include "ccgrkc.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | replace "+" "_" | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
app.kubernetes.io/part-of: ccgrkc
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" | quote }}
{{- end -}}

{{/* The least that a pod on a Linux node can have: Pod Security level restricted, and no file that it could write. */}}
{{- define "ccgrkc.linuxPodSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- define "ccgrkc.linuxContainerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}

{{/* A Go duration in seconds. Sprig has no function for it, but can add a duration to a date. */}}
{{- define "ccgrkc.seconds" -}}
{{- toDate "2006-01-02T15:04:05Z07:00" "1970-01-01T00:00:00Z" | mustDateModify . | unixEpoch -}}
{{- end -}}

{{/* What is wrong in any chart. The schema has seen types, forms and unknown keys before. */}}
{{- define "ccgrkc.validate" -}}
{{- if regexMatch "-uninstall(-nodes|-stop|-wait)?$" .Release.Name -}}
{{- fail (printf "\n\nThe release cannot be called %s: the uninstall of a release %s would take its objects for its own. Choose a name that does not end with -uninstall." .Release.Name (regexReplaceAll "-uninstall(-nodes|-stop|-wait)?$" .Release.Name "")) -}}
{{- end -}}
{{- range $key, $_ := .Values.podLabels -}}
{{- if hasKey (include "ccgrkc.labels" (dict "root" $ "component" "") | fromYaml) $key -}}
{{- fail (printf "\n\npodLabels: the chart sets %s itself. Use another label." $key) -}}
{{- end -}}
{{- end -}}
{{- end -}}
