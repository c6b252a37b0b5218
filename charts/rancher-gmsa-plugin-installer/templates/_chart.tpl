{{/* Templates that _windows.tpl requires. */}}

{{- define "rancher-gmsa-plugin-installer.component" -}}
installer
{{- end -}}

{{- define "rancher-gmsa-plugin-installer.uninstallCommand" -}}
- ccg-plugin-installer.exe
- uninstall
- --log-level={{ .Values.log.level }}
- --log-format={{ .Values.log.format }}
{{- end -}}

{{/* Errors that only this chart reports. */}}
{{- define "rancher-gmsa-plugin-installer.validate" -}}
{{- if lt (include "rancher-gmsa-plugin-installer.seconds" .Values.plugin.interval | int) 1 -}}
{{- fail (printf "\n\nplugin.interval is %s, which is too short. Set 1s or more." .Values.plugin.interval) -}}
{{- end -}}
{{- end -}}
