{{/* What _windows.tpl asks of each chart, under the chart's name. */}}

{{- define "rancher-gmsa-plugin-installer.component" -}}
installer
{{- end -}}

{{- define "rancher-gmsa-plugin-installer.uninstallCommand" -}}
- ccg-plugin-installer.exe
- uninstall
- --log-level={{ .Values.log.level }}
- --log-format={{ .Values.log.format }}
{{- end -}}

{{/* What is wrong in this chart. */}}
{{- define "rancher-gmsa-plugin-installer.validate" -}}
{{- if lt (include "ccgrkc.seconds" .Values.plugin.interval | int) 1 -}}
{{- fail (printf "\n\nplugin.interval is %s: use 1s or more." .Values.plugin.interval) -}}
{{- end -}}
{{- end -}}
