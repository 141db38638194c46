{{/* Labels of everything. */}}
{{- define "linkspan.labels" -}}
app.kubernetes.io/part-of: linkspan
{{- end -}}

{{/* What selects the pods of a part; the argument is its name. */}}
{{- define "linkspan.selector" -}}
app.kubernetes.io/component: {{ . }}
app.kubernetes.io/name: linkspan
{{- end -}}

{{/* The controller as a subject of a binding. */}}
{{- define "linkspan.subjects" -}}
- kind: ServiceAccount
  name: linkspan-controller
  namespace: {{ .Release.Namespace }}
{{- end -}}

{{/* An address with brackets where it needs them. */}}
{{- define "linkspan.bind" -}}
{{- if contains ":" .Values.bind }}[{{ .Values.bind }}]{{ else }}{{ .Values.bind }}{{ end }}
{{- end -}}

{{/* cluster.yaml, which both programs read. */}}
{{- define "linkspan.cluster" -}}
{{- $bind := include "linkspan.bind" . -}}
{{- $name := required "cluster.name is missing: peers know the cluster by it, as in --set cluster.name=east" .Values.cluster.name -}}
apiVersion: linkspan.io/v1alpha1
kind: Cluster
metadata:
  name: {{ $name | quote }}
spec:
  trustDomain: {{ .Values.cluster.trustDomain | default (printf "%s.linkspan.internal" $name) | quote }}
  namespace: {{ .Release.Namespace }}
  gateway:
    listen: {{ printf "%s:4143" $bind | quote }}
    tcp: {{ .Values.gateway.tcp }}
    {{- with .Values.gateway.advertise }}
    advertise:
      {{- toYaml . | nindent 6 }}
    {{- end }}
    mtlsListen: {{ printf "%s:4193" $bind | quote }}
    adminListen: {{ printf "%s:4191" $bind | quote }}
    ports:
      first: 10000
      last: 32767
    service: linkspan-gateway
    linkService: linkspan-link
    drainSeconds: 10
  controller:
    address: {{ printf "linkspan-controller.%s.svc:4192" .Release.Namespace | quote }}
    listen: {{ printf "%s:4192" $bind | quote }}
    adminListen: {{ printf "%s:4191" $bind | quote }}
  dns:
    listen: {{ printf "%s:5353" $bind | quote }}
  {{- $mirrors := dict }}
  {{- range $key, $list := merge (dict "namespaces" .Values.imports.namespaces) .Values.mirrors }}
  {{- if $list }}{{- $_ := set $mirrors $key $list }}{{- end }}
  {{- end }}
  {{- with $mirrors }}
  mirrors:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  stateDir: /var/lib/linkspan
{{- end -}}

{{/* Any address but link-local ones, where clouds hand out credentials to whoever asks; and any pod. */}}
{{- define "linkspan.anywhere" -}}
- ipBlock: { cidr: 0.0.0.0/0, except: [169.254.0.0/16] }
- ipBlock: { cidr: "::/0", except: ["fe80::/10", "fd00:ec2::254/128"] }
- namespaceSelector: {}
{{- end -}}

{{/* Who may read an admin port. */}}
{{- define "linkspan.admin" -}}
- namespaceSelector: { matchLabels: { linkspan.io/metrics: "true" } }
{{- range .Values.networkPolicy.apiServerNetworks }}
- ipBlock: { cidr: {{ . | quote }} }
{{- end }}
{{- end -}}

{{/* Metadata of a pod, from the part's name. */}}
{{- define "linkspan.podMetadata" -}}
labels:
  {{- include "linkspan.selector" .part | nindent 2 }}
  {{- include "linkspan.labels" .root | nindent 2 }}
annotations:
  # The programs read their configuration once.
  linkspan.io/configuration: {{ include "linkspan.cluster" .root | fromYaml | toJson | sha256sum }}
  # Not to be taken into a mesh: the gateway has its own identity and its own ports.
  linkerd.io/inject: disabled
  sidecar.istio.io/inject: "false"
  {{- with .root.Values.podAnnotations }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end -}}

{{/* What both pods have in common. */}}
{{- define "linkspan.pod" -}}
enableServiceLinks: false
securityContext:
  runAsNonRoot: true
  runAsUser: 65532
  runAsGroup: 65532
  fsGroup: 65532
  seccompProfile: { type: RuntimeDefault }
topologySpreadConstraints:
  {{- range $key := list "kubernetes.io/hostname" "topology.kubernetes.io/zone" }}
  - maxSkew: 1
    topologyKey: {{ $key }}
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels:
        {{- include "linkspan.selector" $.part | nindent 8 }}
    matchLabelKeys: [pod-template-hash]
  {{- end }}
{{- with .root.Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .root.Values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .root.Values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .root.Values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .root.Values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* What both containers have in common. No probe looks at a peer, at the link or at the API server. */}}
{{- define "linkspan.container" -}}
{{- with .root.Values.imagePullPolicy }}
imagePullPolicy: {{ . }}
{{- end }}
args:
  - --kubernetes
  - --config
  - /etc/linkspan/cluster.yaml
  - --pod-name
  - $(POD_NAME)
  - --pod-ip
  - $(POD_IP)
  - --log-format
  - json
env:
  - name: POD_NAME
    valueFrom: { fieldRef: { fieldPath: metadata.name } }
  - name: POD_IP
    valueFrom: { fieldRef: { fieldPath: status.podIP } }
readinessProbe:
  httpGet: { path: /ready, port: admin }
  periodSeconds: 2
  timeoutSeconds: 2
  failureThreshold: 2
livenessProbe:
  httpGet: { path: /live, port: admin }
  periodSeconds: 10
  timeoutSeconds: 2
  failureThreshold: 6
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: { drop: [ALL] }
{{- end -}}
