{{/* Generated from charts/shared/_windows.tpl. Change that file, then run "make charts". */}}
{{/* Templates that the charts for Windows nodes use, in addition to _shared.tpl. */}}

{{- define "rancher-gmsa-plugin-installer.nodes" -}}
{{- $chosen := list -}}
{{- range $key, $value := .Values.nodeSelector }}{{ $chosen = append $chosen (printf "%s=%s" $key $value) }}{{ end -}}
{{- if $chosen }}the Windows nodes with {{ join ", " $chosen }}{{ else }}all Windows nodes{{ end -}}
{{- end -}}

{{/* kubectl rejects "rollout status" with OnDelete. */}}
{{- define "rancher-gmsa-plugin-installer.podsCommand" -}}
kubectl {{ ternary "get" "rollout status" (eq .Values.updateStrategy.type "OnDelete") }}
{{- " " -}}
daemonset/{{ include "rancher-gmsa-plugin-installer.objectName" (dict "root" .) }} --namespace {{ .Release.Namespace }}
{{- end -}}

{{- define "rancher-gmsa-plugin-installer.noPodsHelp" -}}
If there are no pods, check the events of the DaemonSet. The namespace must allow privileged pods (label
pod-security.kubernetes.io/enforce=privileged).

  kubectl describe daemonset/{{ include "rancher-gmsa-plugin-installer.objectName" (dict "root" .) }} --namespace {{ .Release.Namespace }}
{{- end -}}

{{/* Fields of all pods on Windows nodes. docs/security.md explains why they run as SYSTEM. */}}
{{- define "rancher-gmsa-plugin-installer.windowsPod" -}}
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

{{/* Errors that every chart for Windows nodes reports. */}}
{{- define "rancher-gmsa-plugin-installer.validateWindows" -}}
{{- $uninstall := include "rancher-gmsa-plugin-installer.objectName" (dict "root" . "suffix" "-uninstall") -}}
{{- if lookup "apps/v1" "DaemonSet" .Release.Namespace $uninstall -}}
{{- fail (printf (cat
  "\n\nThe DaemonSet %[1]s of an interrupted uninstall still exists. It would clean up the nodes while this release is"
  "installed. Delete it, then try again:\n\n  kubectl delete daemonset %[1]s --namespace %[2]s")
  $uninstall .Release.Namespace) -}}
{{- end -}}
{{- $os := get (.Values.nodeSelector | default dict) "kubernetes.io/os" | default "windows" -}}
{{- if ne $os "windows" -}}
{{- fail (printf (cat
  "\n\nnodeSelector: kubernetes.io/os is %s, but the DaemonSet of this chart runs only on Windows nodes."
  "Remove kubernetes.io/os from nodeSelector.") $os) -}}
{{- end -}}
{{- $rolling := .Values.updateStrategy.rollingUpdate | default dict -}}
{{- if eq .Values.updateStrategy.type "RollingUpdate" -}}
{{- $surge := get $rolling "maxSurge" | toString | trimSuffix "%" | int -}}
{{- $unavailable := get $rolling "maxUnavailable" | toString | trimSuffix "%" | int -}}
{{- if eq (gt $surge 0) (gt $unavailable 0) -}}
{{- fail (printf (cat
  "\n\nupdateStrategy.rollingUpdate: maxSurge is %v and maxUnavailable is %v, but Kubernetes requires that"
  "exactly one of them is 0. Change one of them.")
  (get $rolling "maxSurge" | default 0) (get $rolling "maxUnavailable" | default 0)) -}}
{{- end -}}
{{- end -}}
{{- if .Values.uninstall.enabled -}}
{{- $seconds := include "rancher-gmsa-plugin-installer.seconds" .Values.uninstall.timeout | int -}}
{{- if or (lt $seconds 10) (gt $seconds 86400) -}}
{{- fail (printf "\n\nuninstall.timeout is %s, but must be 10s to 24h." .Values.uninstall.timeout) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/*
The uninstall hook. "helm uninstall" runs it before it deletes anything. If a step fails, Helm keeps the release, and
"helm uninstall" can run again. The steps by weight:

  -10  A ServiceAccount with the permissions of the Jobs.
    0  A Job deletes the DaemonSet of the release, so that its pods do not repair or publish again what is cleaned up.
    5  A DaemonSet cleans up all Windows nodes: an earlier nodeSelector can have selected other nodes.
   10  A Job waits until all nodes are clean, or lists the nodes that are not.
*/}}
{{- define "rancher-gmsa-plugin-installer.uninstallAnnotations" -}}
helm.sh/hook: pre-delete
helm.sh/hook-weight: {{ .weight | quote }}
helm.sh/hook-delete-policy: before-hook-creation,hook-succeeded
{{- end -}}

{{- define "rancher-gmsa-plugin-installer.uninstall" -}}
{{- $name := include "rancher-gmsa-plugin-installer.objectName" (dict "root" . "suffix" "-uninstall") -}}
{{- $nodes := include "rancher-gmsa-plugin-installer.objectName" (dict "root" . "suffix" "-uninstall-nodes") -}}
{{- $labels := include "rancher-gmsa-plugin-installer.labels" (dict "root" . "component" "uninstall") -}}
apiVersion: v1
kind: ServiceAccount
metadata:
  name: {{ $name | quote }}
  namespace: {{ .Release.Namespace | quote }}
  labels:
    {{- $labels | nindent 4 }}
  annotations:
    {{- include "rancher-gmsa-plugin-installer.uninstallAnnotations" (dict "weight" "-10") | nindent 4 }}
automountServiceAccountToken: false
---
# A kubelet can request a token of the ServiceAccount of any pod on its node, even if the pod does not mount one. So the
# pods on the Windows nodes use a ServiceAccount without permissions.
apiVersion: v1
kind: ServiceAccount
metadata:
  name: {{ $nodes | quote }}
  namespace: {{ .Release.Namespace | quote }}
  labels:
    {{- $labels | nindent 4 }}
  annotations:
    {{- include "rancher-gmsa-plugin-installer.uninstallAnnotations" (dict "weight" "-10") | nindent 4 }}
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
    {{- include "rancher-gmsa-plugin-installer.uninstallAnnotations" (dict "weight" "-10") | nindent 4 }}
rules:
  - apiGroups: [apps]
    resources: [daemonsets]
    resourceNames: [{{ include "rancher-gmsa-plugin-installer.objectName" (dict "root" .) | quote }}]
    verbs: [delete]
  - apiGroups: [apps]
    resources: [daemonsets]
    resourceNames: [{{ $name | quote }}]
    verbs: [get]
  # RBAC cannot limit list to certain pods.
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
    {{- include "rancher-gmsa-plugin-installer.uninstallAnnotations" (dict "weight" "-10") | nindent 4 }}
roleRef:
  apiGroup: rbac.authorization.k8s.io
  kind: Role
  name: {{ $name | quote }}
subjects:
  - kind: ServiceAccount
    name: {{ $name | quote }}
    namespace: {{ .Release.Namespace | quote }}
---
{{ include "rancher-gmsa-plugin-installer.uninstallJob" (dict "root" . "step" "stop" "weight" "0" "timeout" "1m"
  "daemonset" (include "rancher-gmsa-plugin-installer.objectName" (dict "root" .)) "component" (include "rancher-gmsa-plugin-installer.component" .)) }}
---
apiVersion: apps/v1
kind: DaemonSet
metadata:
  name: {{ $name | quote }}
  namespace: {{ .Release.Namespace | quote }}
  labels:
    {{- $labels | nindent 4 }}
  annotations:
    {{- include "rancher-gmsa-plugin-installer.uninstallAnnotations" (dict "weight" "5") | nindent 4 }}
spec:
  selector:
    matchLabels:
      {{- include "rancher-gmsa-plugin-installer.selector" (dict "root" . "component" "uninstall") | nindent 6 }}
  updateStrategy:
    type: RollingUpdate
    rollingUpdate:
      maxUnavailable: "100%"
  template:
    metadata:
      labels:
        {{- $labels | nindent 8 }}
    spec:
      {{- include "rancher-gmsa-plugin-installer.windowsPod" . | nindent 6 }}
      serviceAccountName: {{ $nodes | quote }}
      automountServiceAccountToken: false
      nodeSelector:
        kubernetes.io/os: windows
      tolerations:
        - operator: Exists
      terminationGracePeriodSeconds: 5
      initContainers:
        - name: clean-up
          image: {{ include "rancher-gmsa-plugin-installer.image" . | quote }}
          imagePullPolicy: {{ .Values.image.pullPolicy | quote }}
          command:
            {{- include "rancher-gmsa-plugin-installer.uninstallCommand" . | nindent 12 }}
          # The wait Job reports the last log lines of a node that is not clean.
          terminationMessagePolicy: FallbackToLogsOnError
          resources:
            {{- toYaml .Values.resources | nindent 12 }}
      containers:
        # The containers of a DaemonSet must keep running. A running container means that the node is clean.
        - name: cleaned-up
          image: {{ include "rancher-gmsa-plugin-installer.image" . | quote }}
          imagePullPolicy: {{ .Values.image.pullPolicy | quote }}
          command:
            {{- include "rancher-gmsa-plugin-installer.uninstallCommand" . | nindent 12 }}
            - --keep-running
          terminationMessagePolicy: FallbackToLogsOnError
          resources:
            {{- toYaml .Values.resources | nindent 12 }}
---
{{ include "rancher-gmsa-plugin-installer.uninstallJob" (dict "root" . "step" "wait" "weight" "10" "timeout" .Values.uninstall.timeout
  "daemonset" $name "component" "uninstall") }}
{{- end -}}

{{/* Arguments: root, step, weight, timeout, daemonset, component (of that DaemonSet). */}}
{{- define "rancher-gmsa-plugin-installer.uninstallJob" -}}
{{- $component := printf "uninstall-%s" .step -}}
apiVersion: batch/v1
kind: Job
metadata:
  name: {{ include "rancher-gmsa-plugin-installer.objectName" (dict "root" .root "hostname" true
    "suffix" (printf "-uninstall-%s" .step)) | quote }}
  namespace: {{ .root.Release.Namespace | quote }}
  labels:
    {{- include "rancher-gmsa-plugin-installer.labels" (dict "root" .root "component" $component) | nindent 4 }}
  annotations:
    {{- include "rancher-gmsa-plugin-installer.uninstallAnnotations" . | nindent 4 }}
    # Helm prints the log, which lists the nodes that are not clean.
    helm.sh/hook-output-log-policy: hook-failed
spec:
  backoffLimit: 0
  # Longer than the program's own timeout, so that the program can report the error, and the node can pull the image.
  activeDeadlineSeconds: {{ add (include "rancher-gmsa-plugin-installer.seconds" .timeout) 45 }}
  # Keeps a failed Job for inspection.
  ttlSecondsAfterFinished: 86400
  template:
    metadata:
      labels:
        {{- include "rancher-gmsa-plugin-installer.labels" (dict "root" .root "component" $component) | nindent 8 }}
    spec:
      os:
        name: linux
      restartPolicy: Never
      serviceAccountName: {{ include "rancher-gmsa-plugin-installer.objectName" (dict "root" .root "suffix" "-uninstall") | quote }}
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
        {{- include "rancher-gmsa-plugin-installer.linuxPodSecurity" . | nindent 8 }}
      containers:
        - name: {{ .step | quote }}
          image: {{ include "rancher-gmsa-plugin-installer.image" .root | quote }}
          imagePullPolicy: {{ .root.Values.image.pullPolicy | quote }}
          command:
            - /uninstall-hook
            - {{ .step }}
            - --namespace={{ .root.Release.Namespace }}
            - --daemonset={{ .daemonset }}
            - --selector={{ include "rancher-gmsa-plugin-installer.selectorText" . }}
            {{- if eq .step "wait" }}
            {{- $component := include "rancher-gmsa-plugin-installer.component" .root }}
            - --stopped-daemonset={{ include "rancher-gmsa-plugin-installer.objectName" (dict "root" .root) }}
            - --stopped-selector={{ include "rancher-gmsa-plugin-installer.selectorText" (dict "root" .root "component" $component) }}
            {{- end }}
            - --timeout={{ .timeout }}
          securityContext:
            {{- include "rancher-gmsa-plugin-installer.linuxContainerSecurity" . | nindent 12 }}
          resources:
            {{- toYaml .root.Values.uninstall.resources | nindent 12 }}
{{- end -}}
