{{/*
Shared pieces. Most take (dict "root" $ "component" "api"). Names of objects are fixed: one shop a namespace.
*/}}

{{/* Labels that select a component's pods. Immutable in a Deployment: do not add to them. */}}
{{- define "shop.selectorLabels" -}}
app.kubernetes.io/name: vitrine-shop
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{- define "shop.labels" -}}
{{ include "shop.selectorLabels" . }}
app.kubernetes.io/part-of: vitrine
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- end }}

{{/* Labels of a pod: no chart version, so that a chart release without changes restarts nothing. */}}
{{- define "shop.podLabels" -}}
{{ include "shop.selectorLabels" . }}
app.kubernetes.io/part-of: vitrine
{{- end }}

{{/*
The pod-level half of "restricted", and where the pod runs.
account: none of them may do anything but the catalogue's, and its pod alone has a token.
*/}}
{{- define "shop.podSpec" -}}
serviceAccountName: {{ .account }}
automountServiceAccountToken: {{ .token }}
enableServiceLinks: false
securityContext:
  runAsNonRoot: true
  runAsUser: 65532
  runAsGroup: 65532
  fsGroup: 65532
  seccompProfile:
    type: RuntimeDefault
{{- with .root.Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .root.Values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .root.Values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .root.Values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- end }}

{{/* Image and the container-level half of "restricted". Takes (dict "root" $ "program" "api"). */}}
{{- define "shop.container" -}}
image: {{ .root.Values.image.repository }}@{{ .root.Values.image.digest }}
imagePullPolicy: {{ .root.Values.image.pullPolicy }}
command: [/vitrine-{{ .program }}]
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities:
    drop: [ALL]
{{- end }}

{{/* Takes (dict "root" $ "database" "api" "traces" true): spans are of those alone who answer somebody. */}}
{{- define "shop.env" -}}
- name: RUST_LOG
  value: {{ .root.Values.logLevel | quote }}
- name: VITRINE_LOG_FORMAT
  value: json
- name: SSL_CERT_FILE
  value: /etc/vitrine/authorities/ca.crt
- name: DATABASE_URL
  valueFrom:
    secretKeyRef:
      name: {{ index .root.Values.databases .database }}
      key: url
{{- if and .traces .root.Values.traces.endpoint }}
- name: OTEL_EXPORTER_OTLP_ENDPOINT
  value: {{ .root.Values.traces.endpoint | quote }}
{{- end }}
{{- end }}

{{- define "shop.probes" -}}
startupProbe:
  httpGet: {path: /healthz, port: metrics}
  periodSeconds: 1
  failureThreshold: 60
livenessProbe:
  httpGet: {path: /healthz, port: metrics}
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 3
readinessProbe:
  httpGet: {path: /readyz, port: metrics}
  periodSeconds: 2
  timeoutSeconds: 5
  failureThreshold: 2
{{- end }}

{{- define "shop.authorities" -}}
- name: authorities
  configMap: {name: {{ .Values.caConfigMap }}, items: [{key: ca.crt, path: ca.crt}]}
{{- end }}
{{- define "shop.authoritiesMount" -}}
- {name: authorities, mountPath: /etc/vitrine/authorities, readOnly: true}
{{- end }}

{{/* Where Finance is, and how its receipts are known. */}}
{{- define "shop.financeArgs" -}}
- --finance={{ .Values.finance.url | default "http://vitrine-finance:8080" }}
- --finance-token=/etc/vitrine/finance/token
{{- range .Values.keys.finance }}
- --finance-key={{ . }}
{{- end }}
{{- end }}
{{- define "shop.financeToken" -}}
- name: finance
  secret: {secretName: {{ .Values.finance.tokenSecret }}, defaultMode: 0440, items: [{key: token, path: token}]}
{{- end }}

{{- define "shop.egressToDns" -}}
- ports:
    {{- range .Values.networkPolicy.dnsPorts }}
    - protocol: UDP
      port: {{ int . }}
    - protocol: TCP
      port: {{ int . }}
    {{- end }}
{{- end }}

{{/* Takes (dict "root" $ "components" (list "api")). */}}
{{- define "shop.from" -}}
- from:
    {{- range .components }}
    - podSelector:
        matchLabels:
          {{- include "shop.selectorLabels" (dict "root" $.root "component" .) | nindent 10 }}
    {{- end }}
  ports:
    - protocol: TCP
      port: 8080
{{- end }}
{{- define "shop.to" -}}
- to:
    {{- range .components }}
    - podSelector:
        matchLabels:
          {{- include "shop.selectorLabels" (dict "root" $.root "component" .) | nindent 10 }}
    {{- end }}
  ports:
    - protocol: TCP
      port: 8080
{{- end }}
{{- define "shop.metrics" -}}
- ports:
    - protocol: TCP
      port: 9090
{{- end }}

{{/* What the schema cannot say, because it does not see the namespace of the release, or several values at once. Called once. */}}
{{- define "shop.check" -}}
{{- if or (eq .Release.Namespace "default") (hasPrefix "kube-" .Release.Namespace) -}}
{{- fail (printf "refusing to install into namespace %q: the chart denies all traffic of its namespace by default and would cut off what else runs there; use --namespace vitrine-shop --create-namespace" .Release.Namespace) -}}
{{- end -}}
{{- if and (not .Values.finance.url) (or (not .Values.finance.keySecret) (not .Values.databases.finance)) -}}
{{- fail "finance.keySecret and databases.finance are required for the Finance of this chart; or set finance.url to another one's address" -}}
{{- end -}}
{{- if and .Values.traces.endpoint (not .Values.networkPolicy.traces) -}}
{{- fail "networkPolicy.traces is required with traces.endpoint: without a way there all spans are lost" -}}
{{- end -}}
{{- end }}
