{{/* The labels of every object. */}}
{{- define "weft.labels" -}}
app.kubernetes.io/name: weft
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{/* What selects the pods of one component: (list $ "agent"). */}}
{{- define "weft.selector" -}}
app.kubernetes.io/name: weft
app.kubernetes.io/component: {{ index . 1 }}
{{- end }}

{{/* The labels of a component's pods: (list $ "agent"). weft's own pods are never in the mesh. */}}
{{- define "weft.podLabels" -}}
{{ include "weft.selector" . }}
{{ include "weft.labels" (index . 0) | replace "app.kubernetes.io/name: weft\n" "" }}
istio.io/dataplane-mode: none
sidecar.istio.io/inject: "false"
{{- end }}

{{- define "weft.image" -}}
{{- with .Values.image -}}
{{- if .digest -}}
{{ .repository }}@{{ .digest }}
{{- else -}}
{{ .repository }}:{{ .tag | default $.Chart.AppVersion }}
{{- end -}}
{{- end -}}
{{- end }}

{{- define "weft.pullSecrets" -}}
{{- with .Values.image.pullSecrets -}}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end -}}
{{- end }}

{{/* host:port with an address that may be IPv6: (list "::" 15020). */}}
{{- define "weft.address" -}}
{{- $host := index . 0 -}}
{{ ternary (printf "[%s]" $host) $host (contains ":" $host) }}:{{ index . 1 }}
{{- end }}

{{/* RuntimeDefault, Unconfined or Localhost/PROFILE. */}}
{{- define "weft.seccomp" -}}
{{- if hasPrefix "Localhost/" . -}}
type: Localhost
localhostProfile: {{ trimPrefix "Localhost/" . }}
{{- else -}}
type: {{ . }}
{{- end -}}
{{- end }}

{{/* Whether Gateways become waypoints: not empty where they do. */}}
{{- define "weft.waypoints" -}}
{{- if and .Values.controller.enabled .Values.waypoints.enabled -}}
yes
{{- end -}}
{{- end }}

{{/* Whether pods of a system priority class need a quota that names it: not empty where they do. */}}
{{- define "weft.priorityQuota" -}}
{{- $wanted := .Values.priorityQuota | toString -}}
{{- if or (eq $wanted "true") (and (eq $wanted "auto") (contains "-gke." .Capabilities.KubeVersion.Version)) -}}
yes
{{- end -}}
{{- end }}

{{- define "weft.caSecret" -}}
{{ .Values.ca.existingSecret | default "weft-ca" }}
{{- end }}

{{/* The security context of a container that does nothing with its node. */}}
{{- define "weft.unprivileged" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}

{{/*
What an agent, and whatever ends its work, may do. Never SYS_RESOURCE: since Linux 5.11 the memory of maps is charged to
the container. Running as root is what gives it these at all, and what lets it read the node's own files.
*/}}
{{- define "weft.nodeContainer" -}}
runAsUser: 0
runAsGroup: 0
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
  add:
    # Loads eBPF programs and makes their maps.
    - BPF
    # Attaches programs to network namespaces; ends sockets.
    - NET_ADMIN
    # Enters the network namespaces of pods, and attaches programs to cgroups.
    - SYS_ADMIN
    # Opens the namespaces of processes that run as other users.
    - SYS_PTRACE
{{- end }}

{{/* The security context of a pod with such a container. */}}
{{- define "weft.nodePod" -}}
seccompProfile:
  {{- include "weft.seccomp" .Values.agent.seccompProfile | nindent 2 }}
# AppArmor's usual profile lets no one open the namespaces of another container.
appArmorProfile:
  type: Unconfined
{{- with .Values.agent.seLinuxOptions }}
seLinuxOptions:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "weft.nodeVolumes" -}}
- name: cgroup
  hostPath:
    path: {{ .Values.agent.node.cgroupPath }}
    type: Directory
- name: bpffs
  hostPath:
    path: {{ .Values.agent.node.bpffsPath }}
    type: Directory
{{- end }}

{{/* The variable that says where an agent has its pins. NODE_NAME must stand before it. */}}
{{- define "weft.pinDir" -}}
- name: WEFT_PIN_DIR
  value: {{ printf "%s/%s" .Values.agent.node.bpffsPath .Values.agent.node.pinFolder | quote }}
{{- end }}

{{/* What waypoints' pods have besides what the controller gives them, as JSON. */}}
{{- define "weft.waypointPod" -}}
{{- $pod := dict "tolerations" .Values.waypoints.tolerations "nodeSelector" .Values.waypoints.nodeSelector "affinity" .Values.waypoints.affinity -}}
{{- with .Values.waypoints.priorityClassName -}}
{{- $_ := set $pod "priorityClassName" . -}}
{{- end -}}
{{- $secrets := list -}}
{{- range .Values.image.pullSecrets -}}
{{- $secrets = append $secrets (dict "name" .) -}}
{{- end -}}
{{- with $secrets -}}
{{- $_ := set $pod "imagePullSecrets" . -}}
{{- end -}}
{{- toJson $pod -}}
{{- end }}
