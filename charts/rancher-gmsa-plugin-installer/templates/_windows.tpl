{{/*
What the charts that run on Windows nodes have in common, beside _shared.tpl. The file is the same in all of them, and a test keeps
it so.
*/}}

{{- define "ccgrkc.nodes" -}}
{{- $chosen := list -}}
{{- range $key, $value := .Values.nodeSelector }}{{ $chosen = append $chosen (printf "%s=%s" $key $value) }}{{ end -}}
{{- if $chosen }}the Windows nodes with {{ join ", " $chosen }}{{ else }}all Windows nodes{{ end -}}
{{- end -}}

{{/* kubectl refuses "rollout status" with OnDelete. */}}
{{- define "ccgrkc.seePods" -}}
kubectl {{ if eq .Values.updateStrategy.type "OnDelete" }}get{{ else }}rollout status{{ end }} daemonset/{{ include "ccgrkc.name" (dict "root" .) }} --namespace {{ .Release.Namespace }}
{{- end -}}

{{- define "ccgrkc.ifNoPod" -}}
If there are no pods, "kubectl describe daemonset/{{ include "ccgrkc.name" (dict "root" .) }} --namespace {{ .Release.Namespace }}" tells why. The namespace must admit privileged
pods (label pod-security.kubernetes.io/enforce=privileged).
{{- end -}}

{{/* What every pod on a Windows node has. SYSTEM: docs/security.md says why it is no smaller identity. */}}
{{- define "ccgrkc.windowsPod" -}}
os:
  name: windows
hostNetwork: true
enableServiceLinks: false
securityContext:
  windowsOptions:
    hostProcess: true
    runAsUserName: "NT AUTHORITY\\SYSTEM"
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.priorityClassName }}
priorityClassName: {{ . | quote }}
{{- end }}
{{- end -}}

{{/* What is wrong in any chart for Windows nodes. */}}
{{- define "ccgrkc.validateWindows" -}}
{{- $uninstall := include "ccgrkc.name" (dict "root" . "suffix" "-uninstall") -}}
{{- if lookup "apps/v1" "DaemonSet" .Release.Namespace $uninstall -}}
{{- fail (printf "\n\nDaemonSet %s of an uninstall that was cut off still exists. It would undo this install on every node. Remove it, then try again:\n\n  kubectl delete daemonset %s --namespace %s" $uninstall $uninstall .Release.Namespace) -}}
{{- end -}}
{{- $os := get (.Values.nodeSelector | default dict) "kubernetes.io/os" | default "windows" -}}
{{- if ne $os "windows" -}}
{{- fail (printf "\n\nnodeSelector: kubernetes.io/os is %s, but this chart's DaemonSet runs on Windows nodes only. Leave kubernetes.io/os out." $os) -}}
{{- end -}}
{{- $rolling := .Values.updateStrategy.rollingUpdate | default dict -}}
{{- if eq .Values.updateStrategy.type "RollingUpdate" -}}
{{- $surge := get $rolling "maxSurge" | toString | trimSuffix "%" | int -}}
{{- $unavailable := get $rolling "maxUnavailable" | toString | trimSuffix "%" | int -}}
{{- if eq (gt $surge 0) (gt $unavailable 0) -}}
{{- fail (printf "\n\nupdateStrategy.rollingUpdate: of maxSurge (%v) and maxUnavailable (%v) exactly one must be 0. That is Kubernetes' rule for DaemonSets." (get $rolling "maxSurge" | default 0) (get $rolling "maxUnavailable" | default 0)) -}}
{{- end -}}
{{- end -}}
{{- if .Values.uninstall.enabled -}}
{{- $seconds := include "ccgrkc.seconds" .Values.uninstall.timeout | int -}}
{{- if or (lt $seconds 10) (gt $seconds 86400) -}}
{{- fail (printf "\n\nuninstall.timeout is %s: use 10s to 24h." .Values.uninstall.timeout) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/*
The uninstall, which "helm uninstall" runs before it removes anything itself. If a step fails, the release stays, and "helm
uninstall" can be run again.

  -10  a ServiceAccount with the few rights that the jobs need
    0  a Job stops the DaemonSet, so that nothing heals or serves what is cleaned up next
    5  a DaemonSet cleans up on all Windows nodes: an earlier nodeSelector may have reached nodes that today's does not
   10  a Job waits until that is done everywhere, or names the nodes where it is not
*/}}
{{- define "ccgrkc.uninstallAnnotations" -}}
helm.sh/hook: pre-delete
helm.sh/hook-weight: {{ .weight | quote }}
helm.sh/hook-delete-policy: before-hook-creation,hook-succeeded
{{- end -}}

{{- define "ccgrkc.uninstall" -}}
{{- $name := include "ccgrkc.name" (dict "root" . "suffix" "-uninstall") -}}
{{- $nodes := include "ccgrkc.name" (dict "root" . "suffix" "-uninstall-nodes") -}}
{{- $labels := include "ccgrkc.labels" (dict "root" . "component" "uninstall") -}}
apiVersion: v1
kind: ServiceAccount
metadata:
  name: {{ $name | quote }}
  namespace: {{ .Release.Namespace | quote }}
  labels:
    {{- $labels | nindent 4 }}
  annotations:
    {{- include "ccgrkc.uninstallAnnotations" (dict "weight" "-10") | nindent 4 }}
automountServiceAccountToken: false
---
# A kubelet may get a token of any ServiceAccount that a pod on its node runs as, mounted or not. So what runs on every Windows
# node runs as one without rights.
apiVersion: v1
kind: ServiceAccount
metadata:
  name: {{ $nodes | quote }}
  namespace: {{ .Release.Namespace | quote }}
  labels:
    {{- $labels | nindent 4 }}
  annotations:
    {{- include "ccgrkc.uninstallAnnotations" (dict "weight" "-10") | nindent 4 }}
automountServiceAccountToken: false
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata:
  name: {{ $name | quote }}
  namespace: {{ .Release.Namespace | quote }}
  labels:
    {{- $labels | nindent 4 }}
  annotations:
    {{- include "ccgrkc.uninstallAnnotations" (dict "weight" "-10") | nindent 4 }}
rules:
  - apiGroups: [apps]
    resources: [daemonsets]
    resourceNames: [{{ include "ccgrkc.name" (dict "root" .) | quote }}]
    verbs: [delete]
  - apiGroups: [apps]
    resources: [daemonsets]
    resourceNames: [{{ $name | quote }}]
    verbs: [get]
  # A list cannot be narrowed to some pods by name.
  - apiGroups: [""]
    resources: [pods]
    verbs: [list]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata:
  name: {{ $name | quote }}
  namespace: {{ .Release.Namespace | quote }}
  labels:
    {{- $labels | nindent 4 }}
  annotations:
    {{- include "ccgrkc.uninstallAnnotations" (dict "weight" "-10") | nindent 4 }}
roleRef:
  apiGroup: rbac.authorization.k8s.io
  kind: Role
  name: {{ $name | quote }}
subjects:
  - kind: ServiceAccount
    name: {{ $name | quote }}
    namespace: {{ .Release.Namespace | quote }}
---
{{ include "ccgrkc.uninstallJob" (dict "root" . "step" "stop" "weight" "0" "timeout" "1m" "daemonset" (include "ccgrkc.name" (dict "root" .)) "component" (include (printf "%s.component" .Chart.Name) .)) }}
---
apiVersion: apps/v1
kind: DaemonSet
metadata:
  name: {{ $name | quote }}
  namespace: {{ .Release.Namespace | quote }}
  labels:
    {{- $labels | nindent 4 }}
  annotations:
    {{- include "ccgrkc.uninstallAnnotations" (dict "weight" "5") | nindent 4 }}
spec:
  selector:
    matchLabels:
      {{- include "ccgrkc.selector" (dict "root" . "component" "uninstall") | nindent 6 }}
  updateStrategy:
    type: RollingUpdate
    rollingUpdate:
      maxUnavailable: "100%"
  template:
    metadata:
      labels:
        {{- $labels | nindent 8 }}
    spec:
      {{- include "ccgrkc.windowsPod" . | nindent 6 }}
      serviceAccountName: {{ $nodes | quote }}
      automountServiceAccountToken: false
      nodeSelector:
        kubernetes.io/os: windows
      tolerations:
        - operator: Exists
      terminationGracePeriodSeconds: 5
      initContainers:
        - name: clean-up
          image: {{ include "ccgrkc.image" . | quote }}
          imagePullPolicy: {{ .Values.image.pullPolicy | quote }}
          command:
            {{- include (printf "%s.uninstallCommand" .Chart.Name) . | nindent 12 }}
          # What it said last is how the wait job explains a node that is not clean.
          terminationMessagePolicy: FallbackToLogsOnError
          resources:
            {{- toYaml .Values.resources | nindent 12 }}
      containers:
        # A DaemonSet's pod must go on to run. That it runs tells that the node is clean.
        - name: cleaned-up
          image: {{ include "ccgrkc.image" . | quote }}
          imagePullPolicy: {{ .Values.image.pullPolicy | quote }}
          command:
            {{- include (printf "%s.uninstallCommand" .Chart.Name) . | nindent 12 }}
            - --stay
          terminationMessagePolicy: FallbackToLogsOnError
          resources:
            {{- toYaml .Values.resources | nindent 12 }}
---
{{ include "ccgrkc.uninstallJob" (dict "root" . "step" "wait" "weight" "10" "timeout" .Values.uninstall.timeout "daemonset" $name "component" "uninstall") }}
{{- end -}}

{{/* root, step, weight, timeout, daemonset, component (of that DaemonSet) */}}
{{- define "ccgrkc.uninstallJob" -}}
{{- $component := printf "uninstall-%s" .step -}}
apiVersion: batch/v1
kind: Job
metadata:
  name: {{ include "ccgrkc.name" (dict "root" .root "hostname" true "suffix" (printf "-uninstall-%s" .step)) | quote }}
  namespace: {{ .root.Release.Namespace | quote }}
  labels:
    {{- include "ccgrkc.labels" (dict "root" .root "component" $component) | nindent 4 }}
  annotations:
    {{- include "ccgrkc.uninstallAnnotations" . | nindent 4 }}
    # Helm prints which nodes it was that failed.
    helm.sh/hook-output-log-policy: hook-failed
spec:
  backoffLimit: 0
  # Over the program's own timeout, so that it is the program that says what is wrong. The rest is for the image.
  activeDeadlineSeconds: {{ add (include "ccgrkc.seconds" .timeout) 45 }}
  # After a failure the Job stays, to be looked at. Nobody needs to remove it.
  ttlSecondsAfterFinished: 86400
  template:
    metadata:
      labels:
        {{- include "ccgrkc.labels" (dict "root" .root "component" $component) | nindent 8 }}
    spec:
      os:
        name: linux
      restartPolicy: Never
      serviceAccountName: {{ include "ccgrkc.name" (dict "root" .root "suffix" "-uninstall") | quote }}
      automountServiceAccountToken: true
      enableServiceLinks: false
      {{- with .root.Values.imagePullSecrets }}
      imagePullSecrets:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      nodeSelector:
        kubernetes.io/os: linux
      {{- with .root.Values.uninstall.tolerations }}
      tolerations:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      securityContext:
        {{- include "ccgrkc.linuxPodSecurity" . | nindent 8 }}
      containers:
        - name: {{ .step | quote }}
          image: {{ include "ccgrkc.image" .root | quote }}
          imagePullPolicy: {{ .root.Values.image.pullPolicy | quote }}
          command:
            - /uninstall-hook
            - {{ .step }}
            - --namespace={{ .root.Release.Namespace }}
            - --daemonset={{ .daemonset }}
            - --selector={{ include "ccgrkc.selectorText" . }}
            {{- if eq .step "wait" }}
            {{- $component := include (printf "%s.component" .root.Chart.Name) .root }}
            - --stopped-daemonset={{ include "ccgrkc.name" (dict "root" .root) }}
            - --stopped-selector={{ include "ccgrkc.selectorText" (dict "root" .root "component" $component) }}
            {{- end }}
            - --timeout={{ .timeout }}
          securityContext:
            {{- include "ccgrkc.linuxContainerSecurity" . | nindent 12 }}
          resources:
            {{- toYaml .root.Values.uninstall.resources | nindent 12 }}
{{- end -}}
