{{/* The pod that clients connect to: a pod of the StatefulSet, or the leader of a LeaderWorkerSet group. */}}
{{- define "nemotron.serverPod" -}}
{{- $gateway := and .Values.gateway.enabled (eq .Values.gateway.placement "beside") -}}
{{- $profile := include "nemotron.profile" . | fromYaml -}}
{{- $name := printf "%s-server" (include "nemotron.name" .) -}}
{{- $nodes := dig "split" "nodes" 1 $profile | int -}}
{{- $separate := .Values.server.engine.separate -}}
{{- $socket := "/run/nemotron/engine/engine.sock" -}}
metadata:
  labels:
    {{- include "nemotron.selector" (list . "server") | nindent 4 }}
  annotations:
    # The server reads its profile only at the start, so a changed profile must restart the pods.
    checksum/profile: {{ include "nemotron.profile" . | sha256sum }}
    {{- if and $gateway .Values.gateway.settings }}
    checksum/gateway: {{ toJson .Values.gateway.settings | sha256sum }}
    {{- end }}
spec:
  {{- include "nemotron.pod" . | nindent 2 }}
  # Time for preStop, for running requests, and 30 s for Triton's shutdown with a margin.
  terminationGracePeriodSeconds: {{ add .Values.server.preStopSeconds $profile.timeouts.drain 30 }}
  {{- include "nemotron.spread" . | nindent 2 }}
  initContainers:
    {{- if and .Values.convert.enabled (eq .Values.convert.place "server") }}
    {{- with include "nemotron.fetch" . | trim }}{{ . | nindent 4 }}{{ end }}
    {{- include "nemotron.convert" . | nindent 4 }}
    {{- end }}
    -
      {{- include "nemotron.build" . | nindent 6 }}
  containers:
    {{- if $separate }}
    # Started and watched by the kubelet instead of `nemotron serve`, which finds it by its socket.
    - name: engine
      image: {{ include "nemotron.engineImage" . }}
      {{- include "nemotron.container" . | nindent 6 }}
      command: [{{ dig "engine" "python" "" $profile | default "python3" }}, -m, nemotron_engine]
      args:
        - --lane={{ $profile.lane }}
        - --socket={{ $socket }}
        - {{ include "nemotron.engine" . }}
      env:
        - {name: HOME, value: /tmp}
      startupProbe:
        exec: {command: [python3, -m, nemotron_engine.probe, {{ $socket }}, {{ $profile.timeouts.stall | quote }}]}
        periodSeconds: 10
        timeoutSeconds: {{ add $profile.timeouts.stall 5 }}
        failureThreshold: {{ divf (add $profile.timeouts.startup $profile.timeouts.stall 60) 10 | ceil | int }}
      # Checks that the engine answers between two steps.
      readinessProbe:
        exec: {command: [python3, -m, nemotron_engine.probe, {{ $socket }}, {{ $profile.timeouts.stall | quote }}]}
        periodSeconds: 10
        timeoutSeconds: {{ add $profile.timeouts.stall 5 }}
      livenessProbe:
        exec: {command: [python3, -m, nemotron_engine.probe, {{ $socket }}, {{ $profile.timeouts.stall | quote }}]}
        periodSeconds: 30
        timeoutSeconds: {{ add $profile.timeouts.stall 5 }}
        failureThreshold: 2
      lifecycle:
        # SIGTERM, on which the engine refuses new requests, comes only when Triton refuses them already.
        preStop:
          exec: {command: [sleep, {{ add .Values.server.preStopSeconds 5 | quote }}]}
      volumeMounts:
        - {name: models, mountPath: /models, readOnly: true}
        - {name: tmp, mountPath: /tmp}
        - {name: shm, mountPath: /dev/shm}
        - {name: engine, mountPath: /run/nemotron}
      resources:
        {{- include "nemotron.gpuResources" (list . .Values.server.engine.resources) | nindent 8 }}
    {{- end }}
    - name: server
      image: {{ $separate | ternary (include "nemotron.imageOf" (list . "triton")) (include "nemotron.image" .) }}
      {{- include "nemotron.container" . | nindent 6 }}
      command: [nemotron, serve]
      args:
        - {{ include "nemotron.engine" . }}
        - --profile=/etc/nemotron/profile.yaml
        - --log-file=/tmp/triton.log
        {{- if not $gateway }}
        - --no-gateway
        {{- else if .Values.gateway.settings }}
        - --gateway-settings=/etc/nemotron-gateway/settings.yaml
        {{- end }}
        {{- if $separate }}
        - --engine-socket={{ $socket }}
        {{- end }}
        {{- if gt $nodes 1 }}
        - --hosts=localhost{{ range $i := until $nodes }}{{ if $i }},$(POD_NAME)-{{ $i }}.{{ $name }}{{ end }}{{ end }}
        {{- end }}
      env:
        - {name: HOME, value: /tmp}
        {{- if gt $nodes 1 }}
        - name: POD_NAME
          valueFrom: {fieldRef: {fieldPath: metadata.name}}
        # Open MPI 4 reads the first variable, Open MPI 5 the second.
        - {name: OMPI_MCA_plm_rsh_agent, value: ssh -F /etc/nemotron-ssh/client}
        - {name: PRTE_MCA_plm_ssh_agent, value: ssh -F /etc/nemotron-ssh/client}
        {{- end }}
        {{- if and $gateway .Values.gateway.apiKeysSecret }}
        - {name: NEMOTRON_API_KEYS_FILE, value: /etc/nemotron-keys/keys}
        {{- end }}
      ports:
        - {name: http, containerPort: {{ $profile.ports.http }}}
        - {name: grpc, containerPort: {{ $profile.ports.grpc }}}
        - {name: metrics, containerPort: {{ $profile.ports.metrics }}}
        - {name: health, containerPort: {{ $profile.ports.health }}}
        {{- if $gateway }}
        - {name: gateway, containerPort: {{ $profile.ports.gateway }}}
        {{- end }}
      # Longer than the server's own limit, so that the probe never kills a server that is loading.
      startupProbe:
        httpGet: {path: /health/ready, port: health}
        periodSeconds: 10
        timeoutSeconds: 5
        failureThreshold: {{ divf (add $profile.timeouts.startup $profile.timeouts.stall 60) 10 | ceil | int }}
      # Checks that the engine generates tokens. The server ends by itself when the engine is dead.
      readinessProbe:
        httpGet: {path: /health/ready, port: health}
        periodSeconds: 2
        timeoutSeconds: 2
        failureThreshold: 2
      livenessProbe:
        httpGet: {path: /health/live, port: health}
        periodSeconds: 10
        timeoutSeconds: 5
        failureThreshold: 6
      lifecycle:
        # SIGTERM follows, on which the server drains.
        preStop:
          exec: {command: [sleep, {{ .Values.server.preStopSeconds | quote }}]}
      volumeMounts:
        - {name: models, mountPath: /models, readOnly: true}
        - {name: profile, mountPath: /etc/nemotron}
        - {name: tmp, mountPath: /tmp}
        - {name: shm, mountPath: /dev/shm}
        {{- if gt $nodes 1 }}
        - {name: ssh, mountPath: /etc/nemotron-ssh}
        {{- end }}
        {{- if $separate }}
        - {name: engine, mountPath: /run/nemotron}
        {{- end }}
        {{- if $gateway }}
        {{- include "nemotron.gatewayMounts" . | nindent 8 }}
        {{- end }}
      {{- if $separate }}
      resources: {{ toYaml .Values.server.resources | nindent 8 }}
      {{- else }}
      resources:
        {{- include "nemotron.gpuResources" (list . .Values.server.resources) | nindent 8 }}
      {{- end }}
  volumes:
    {{- include "nemotron.volumes" . | nindent 4 }}
    {{- if gt $nodes 1 }}
    {{- include "nemotron.sshVolume" . | nindent 4 }}
    {{- end }}
    {{- if $separate }}
    - {name: engine, emptyDir: {medium: Memory, sizeLimit: 16Mi}}
    {{- end }}
    {{- if $gateway }}
    {{- include "nemotron.gatewayVolumes" . | nindent 4 }}
    {{- end }}
{{- end -}}

{{/* A pod that only runs ranks: its sshd waits for the leader's mpirun to start them. */}}
{{- define "nemotron.workerPod" -}}
{{- $profile := include "nemotron.profile" . | fromYaml -}}
metadata:
  labels:
    {{- include "nemotron.selector" (list . "worker") | nindent 4 }}
  annotations:
    checksum/profile: {{ include "nemotron.profile" . | sha256sum }}
spec:
  {{- include "nemotron.pod" . | nindent 2 }}
  terminationGracePeriodSeconds: {{ add .Values.server.preStopSeconds $profile.timeouts.drain 30 }}
  {{- include "nemotron.spread" . | nindent 2 }}
  containers:
    - name: worker
      image: {{ include "nemotron.image" . }}
      {{- include "nemotron.container" . | nindent 6 }}
      command: [/usr/sbin/sshd]
      args: [-D, -e, -f, /etc/nemotron-ssh/daemon]
      env:
        - {name: HOME, value: /tmp}
      ports:
        - {name: ssh, containerPort: 2222}
      readinessProbe:
        tcpSocket: {port: ssh}
      livenessProbe:
        tcpSocket: {port: ssh}
        failureThreshold: 6
      lifecycle:
        # The ranks must outlive the running requests; they end together with those of the leader.
        preStop:
          exec: {command: [sleep, {{ add .Values.server.preStopSeconds $profile.timeouts.drain 20 | quote }}]}
      volumeMounts:
        - {name: models, mountPath: /models, readOnly: true}
        - {name: profile, mountPath: /etc/nemotron}
        - {name: tmp, mountPath: /tmp}
        - {name: shm, mountPath: /dev/shm}
        - {name: ssh, mountPath: /etc/nemotron-ssh}
      resources:
        {{- include "nemotron.gpuResources" (list . .Values.server.resources) | nindent 8 }}
  volumes:
    {{- include "nemotron.volumes" . | nindent 4 }}
    {{- include "nemotron.sshVolume" . | nindent 4 }}
{{- end -}}

{{- define "nemotron.sshVolume" -}}
- name: ssh
  projected:
    defaultMode: 0440
    sources:
      - configMap: {name: {{ include "nemotron.name" . }}-ssh}
      - secret: {name: {{ .Values.server.multiNode.sshSecret }}}
{{- end -}}

{{- define "nemotron.spread" -}}
{{- with .Values.server.spreadOver }}
topologySpreadConstraints:
  - topologyKey: {{ . }}
    maxSkew: 1
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels:
        {{- include "nemotron.selector" (list $ "server") | nindent 8 }}
{{- end }}
{{- end -}}

{{/* What a gateway reads, as volumes and as their mounts. */}}
{{- define "nemotron.gatewayVolumes" -}}
{{- with .Values.gateway.apiKeysSecret }}
- name: keys
  secret: {secretName: {{ . }}, defaultMode: 0440}
{{- end }}
{{- if .Values.gateway.settings }}
- name: gateway
  configMap: {name: {{ include "nemotron.name" . }}-gateway}
{{- end }}
{{- end -}}

{{- define "nemotron.gatewayMounts" -}}
{{- if .Values.gateway.apiKeysSecret }}
- {name: keys, mountPath: /etc/nemotron-keys, readOnly: true}
{{- end }}
{{- if .Values.gateway.settings }}
- {name: gateway, mountPath: /etc/nemotron-gateway, readOnly: true}
{{- end }}
{{- end -}}
