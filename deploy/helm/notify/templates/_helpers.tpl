{{- define "notify.name" -}}
{{- if contains "notify" .Release.Name }}{{ .Release.Name | trunc 50 | trimSuffix "-" }}{{ else }}{{ printf "%s-notify" .Release.Name | trunc 50 | trimSuffix "-" }}{{ end }}
{{- end }}

{{- define "notify.nats" -}}
{{ include "notify.name" . }}-nats
{{- end }}

{{- define "notify.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{/* What a selector asks for: it can never change. Called with (list . "notify"). */}}
{{- define "notify.selector" -}}
app.kubernetes.io/name: {{ last . }}
app.kubernetes.io/instance: {{ (first .).Release.Name }}
{{- end }}

{{- define "notify.labels" -}}
{{ include "notify.selector" . }}
app.kubernetes.io/part-of: notify
app.kubernetes.io/version: {{ (first .).Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ (first .).Release.Service }}
helm.sh/chart: {{ (first .).Chart.Name }}-{{ (first .).Chart.Version }}
{{- end }}

{{/* The servers of NATS, as a TOML array: those of this chart by the names that the StatefulSet gives them. */}}
{{- define "notify.servers" -}}
{{- if .Values.nats.enabled }}
{{- $nats := include "notify.nats" . }}
{{- $scheme := ternary "tls" "nats" (ne .Values.nats.tls.existingSecret "") }}
{{- $servers := list }}
{{- range until 3 }}
{{- $servers = append $servers (printf "%s://%s-%d.%s:4222" $scheme $nats . $nats) }}
{{- end }}
{{- toJson $servers }}
{{- else }}
{{- toJson .Values.nats.servers }}
{{- end }}
{{- end }}

{{- define "notify.podSecurity" -}}
runAsNonRoot: true
runAsUser: {{ . }}
runAsGroup: {{ . }}
fsGroup: {{ . }}
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{- define "notify.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}
