{{/* The pod that clients connect to: a pod of the StatefulSet, or the leader of a LeaderWorkerSet group. */}}
{{- define "nemotron.serverPod" -}}
{{- $gateway := and .Values.gateway.enabled (eq .Values.gateway.placement "beside") -}}
{{- $profile := include "nemotron.profile" . | fromYaml -}}
{{- $name := printf "%s-server" (include "nemotron.name" .) -}}
{{- $nodes := dig "split" "nodes" 1 $profile | int -}}
metadata:
  labels:
    {{- include "nemotron.selector" (list . "server") | nindent 4 }}
  annotations:
    # The server reads its profile only at the start, so a changed profile must restart the pods.
    checksum/profile: {{ include "nemotron.profile" . | sha256sum }}
    {{- with .Values.server.annotations }}{{ toYaml . | nindent 4 }}{{ end }}
spec:
  {{- include "nemotron.pod" . | nindent 2 }}
  # Time for preStop, for running requests, and 30 s for Triton's shutdown with a margin.
  terminationGracePeriodSeconds: {{ add .Values.server.preStopSeconds $profile.timeouts.drain 30 }}
  {{- include "nemotron.serverPlace" . | nindent 2 }}
  initContainers:
    -
      {{- include "nemotron.build" . | nindent 6 }}
  containers:
    - name: server
      image: {{ include "nemotron.image" . }}
      {{- include "nemotron.container" . | nindent 6 }}
      command: [nemotron, serve]
      args:
        - {{ include "nemotron.engine" . }}
        - --profile=/etc/nemotron/profile.yaml
        - --log-file=/tmp/triton.log
        {{- if not $gateway }}
        - --no-gateway
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
        {{- with .Values.server.env }}{{ toYaml . | nindent 8 }}{{ end }}
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
        {{- if and $gateway .Values.gateway.apiKeysSecret }}
        - {name: keys, mountPath: /etc/nemotron-keys, readOnly: true}
        {{- end }}
      resources:
        {{- include "nemotron.gpuResources" (list . .Values.server.resources) | nindent 8 }}
  volumes:
    {{- include "nemotron.volumes" . | nindent 4 }}
    {{- if gt $nodes 1 }}
    {{- include "nemotron.sshVolume" . | nindent 4 }}
    {{- end }}
    {{- if and $gateway .Values.gateway.apiKeysSecret }}
    - name: keys
      secret: {secretName: {{ .Values.gateway.apiKeysSecret }}, defaultMode: 0440}
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
  {{- include "nemotron.serverPlace" . | nindent 2 }}
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

{{- define "nemotron.serverPlace" -}}
{{- with .Values.server.nodeSelector }}
nodeSelector: {{ toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.server.tolerations }}
tolerations: {{ toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.server.affinity }}
affinity: {{ toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.server.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
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
