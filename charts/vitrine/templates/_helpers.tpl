{{/*
Shared pieces. Most take (dict "root" $ "component" "operator").
Names of objects are fixed: the operator and the policies it writes refer to them.
*/}}

{{/* Labels that select a component's pods. Immutable in a Deployment: do not add to them. */}}
{{- define "vitrine.selectorLabels" -}}
app.kubernetes.io/name: vitrine
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{- define "vitrine.labels" -}}
{{ include "vitrine.selectorLabels" . }}
app.kubernetes.io/part-of: vitrine
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- end }}

{{/* Labels of a pod: no chart version, so that a chart release without changes restarts nothing. */}}
{{- define "vitrine.podLabels" -}}
{{ include "vitrine.selectorLabels" . }}
app.kubernetes.io/part-of: vitrine
{{- end }}

{{- define "vitrine.image" -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- end }}

{{/*
The pod-level half of "restricted", and where the pod runs.
token: whether this part talks to the API. Every ServiceAccount of the chart says no; the pod alone says yes.
*/}}
{{- define "vitrine.podSpec" -}}
serviceAccountName: vitrine-{{ .serviceAccount }}
automountServiceAccountToken: {{ .token }}
enableServiceLinks: false
securityContext:
  runAsNonRoot: true
  runAsUser: 65532
  runAsGroup: 65532
  {{- with .fsGroup }}
  fsGroup: {{ . }}
  {{- end }}
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

{{/* Image and the container-level half of "restricted". */}}
{{- define "vitrine.container" -}}
image: {{ include "vitrine.image" . }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities:
    drop: [ALL]
{{- end }}

{{- define "vitrine.logEnv" -}}
- name: RUST_LOG
  value: {{ .Values.logLevel | quote }}
- name: VITRINE_LOG_FORMAT
  value: json
{{- end }}

{{/* For the parts that talk to the API: where they are, and who they are (the leader lease's holder). */}}
{{- define "vitrine.identityEnv" -}}
- name: POD_NAMESPACE
  valueFrom:
    fieldRef:
      fieldPath: metadata.namespace
- name: POD_NAME
  valueFrom:
    fieldRef:
      fieldPath: metadata.name
{{- end }}

{{/* All of IPv4 in two halves: some networks treat 0.0.0.0/0 as "every address, in-cluster ones in particular". */}}
{{- define "vitrine.anyAddress" -}}
- ipBlock:
    cidr: 0.0.0.0/1
- ipBlock:
    cidr: 128.0.0.0/1
{{- end }}

{{/* A rule to the API servers. By address, since no selector names them. */}}
{{- define "vitrine.egressToApi" -}}
- to:
    {{- range .Values.networkPolicy.apiServerCidrs }}
    - ipBlock:
        cidr: {{ . }}
    {{- else }}
    {{- include "vitrine.anyAddress" . | nindent 4 }}
    {{- end }}
  ports:
    {{- range .Values.networkPolicy.apiServerPorts }}
    - protocol: TCP
      port: {{ int . }}
    {{- end }}
{{- end }}

{{/*
What the schema cannot say, because it does not see the namespace of the release. Called once, by the policy it is about.
*/}}
{{- define "vitrine.checkNamespaces" -}}
{{- if or (eq .Release.Namespace "default") (hasPrefix "kube-" .Release.Namespace) -}}
{{- fail (printf "refusing to install into namespace %q: the chart denies all traffic of its namespace by default and would cut off what else runs there; use --namespace vitrine-system --create-namespace" .Release.Namespace) -}}
{{- end -}}
{{- if eq .Release.Namespace .Values.slots.namespace -}}
{{- fail (printf "slots.namespace is %q, the namespace of the release: slots need a namespace of their own, in which only the operator writes" .Values.slots.namespace) -}}
{{- end -}}
{{- if or (eq .Release.Namespace .Values.receipts.namespace) (eq .Values.slots.namespace .Values.receipts.namespace) -}}
{{- fail (printf "receipts.namespace is %q, which has another purpose: receipts need a namespace of their own, in which only the operator writes" .Values.receipts.namespace) -}}
{{- end -}}
{{- end }}

{{/* Called once, by the operator's Deployment. */}}
{{- define "vitrine.checkReceipts" -}}
{{- if and (eq .Values.profile "Production") (not .Values.receipts.keySecret) -}}
{{- fail (printf "receipts.keySecret is required in Production: make a key with `openssl genpkey -algorithm ed25519 -out key.pem` and a Secret with `kubectl -n %s create secret generic vitrine-receipt-key --from-file=key.pem`, and set receipts.keySecret=vitrine-receipt-key; or set profile=Development to try" .Release.Namespace) -}}
{{- end -}}
{{- if and (eq .Values.profile "Production") .Values.previewPolicy.create (not .Values.previewPolicy.images.repositories) -}}
{{- fail "previewPolicy.images.repositories is required in Production: previews run only what was copied into a repository of yours after it was verified; give its name, or the folder of several, like mirror.example/verified; or set profile=Development to try" -}}
{{- end -}}
{{- if and (hasPrefix "http" .Values.receipts.sink.url) (not .Values.receipts.sink.egress) -}}
{{- fail "receipts.sink.egress is required with an HTTP sink: the operator's NetworkPolicy lets it reach nothing that is not named; give the rules by which it reaches the sink" -}}
{{- end -}}
{{- if and .Values.receipts.sink.tokenSecret (not (hasPrefix "https" .Values.receipts.sink.url)) -}}
{{- fail "receipts.sink.tokenSecret is for an https sink: a token is sent over https only" -}}
{{- end -}}
{{- if and (hasPrefix "file:" .Values.receipts.sink.url) (gt (int .Values.operator.replicas) 1) -}}
{{- fail "a file sink needs operator.replicas=1: its volume is on one node at a time; use an HTTP sink for more" -}}
{{- end -}}
{{- if and (hasPrefix "https" .Values.receipts.sink.url) (not .Values.receipts.sink.caConfigMap) -}}
{{- fail "receipts.sink.caConfigMap is required with an https sink: Vitrine's image holds no certificate authorities; give a ConfigMap with the sink's as ca.crt" -}}
{{- end -}}
{{- end }}

{{/* Who asks for what, for the admission policies. Break-glass is a group that nobody is in until somebody needs it. */}}
{{- define "vitrine.admissionVariables" -}}
- name: user
  expression: {{ include "vitrine.admission.user" . }}
- name: groups
  expression: {{ include "vitrine.admission.groups" . | quote }}
- name: operator
  expression: variables.user == {{ include "vitrine.admission.operator" . }}
- name: breakGlass
  expression: "'vitrine:break-glass' in variables.groups"
- name: what
  expression: {{ include "vitrine.admission.what" . | quote }}
{{- end }}
{{- define "vitrine.admission.user" -}}request.userInfo.username{{- end }}
{{- define "vitrine.admission.groups" -}}has(request.userInfo.groups) ? request.userInfo.groups : []{{- end }}
{{- define "vitrine.admission.operator" -}}'system:serviceaccount:{{ .Release.Namespace }}:vitrine-operator'{{- end }}
{{- define "vitrine.admission.what" -}}
request.resource.resource + (has(request.subResource) && request.subResource != '' ? '/' + request.subResource : '')
{{- end }}

{{/*
A match condition out of an expression that uses these variables, which only validations have. What is allowed without a doubt belongs
here: the API server converts an object once for the match conditions of a policy, and then for its validations, its messages and its
audit annotations once more each; with all of it in validations that was a sixth of the API server's time.
Takes (dict "root" $ "condition" "...").
*/}}
{{- define "vitrine.admissionCondition" -}}
{{- $groups := printf "(%s)" (include "vitrine.admission.groups" .root) -}}
{{- regexReplaceAll "\\s+" (trim .condition) " "
  | replace "variables.operator" (printf "(variables.user == %s)" (include "vitrine.admission.operator" .root))
  | replace "variables.breakGlass" "('vitrine:break-glass' in variables.groups)"
  | replace "variables.groups" $groups
  | replace "variables.user" (include "vitrine.admission.user" .root)
  | replace "variables.what" (printf "(%s)" (include "vitrine.admission.what" .root)) -}}
{{- end }}
