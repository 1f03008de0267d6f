{{- define "nemotron.gatewayPod" -}}
{{- $profile := include "nemotron.profile" . | fromYaml -}}
{{- $name := include "nemotron.name" . -}}
metadata:
  labels:
    {{- include "nemotron.selector" (list . "gateway") | nindent 4 }}
  {{- with .Values.gateway.settings }}
  annotations:
    # The gateway reads its settings only at the start.
    checksum/settings: {{ toJson . | sha256sum }}
  {{- end }}
spec:
  {{- include "nemotron.pod" . | nindent 2 }}
  # Time for preStop, for running requests, and a margin.
  terminationGracePeriodSeconds: {{ add .Values.gateway.preStopSeconds $profile.timeouts.drain 10 }}
  topologySpreadConstraints:
    - topologyKey: kubernetes.io/hostname
      maxSkew: 1
      whenUnsatisfiable: ScheduleAnyway
      labelSelector:
        matchLabels:
          {{- include "nemotron.selector" (list . "gateway") | nindent 10 }}
  containers:
    - name: gateway
      image: {{ include "nemotron.imageOf" (list . "cpu") }}
      {{- include "nemotron.container" . | nindent 6 }}
      command: [nemotron, gateway]
      args:
        - --triton={{ $name }}-triton:{{ $profile.ports.http }}
        - {{ printf "--address=%s" .Values.address | quote }}
        - --port={{ $profile.ports.gateway }}
        - --request-timeout={{ $profile.timeouts.request }}
        - --drain-timeout={{ $profile.timeouts.drain }}
        {{- if .Values.gateway.apiKeysSecret }}
        - --api-keys-file=/etc/nemotron-keys/keys
        {{- end }}
        {{- if .Values.gateway.settings }}
        - --settings=/etc/nemotron-gateway/settings.yaml
        {{- end }}
      env:
        - {name: HOME, value: /tmp}
      ports:
        - {name: gateway, containerPort: {{ $profile.ports.gateway }}}
      startupProbe:
        httpGet: {path: /health/live, port: gateway}
        periodSeconds: 2
        failureThreshold: 60
      # Checks that an engine generates tokens: without a ready server no gateway is ready.
      readinessProbe:
        httpGet: {path: /health/ready, port: gateway}
        periodSeconds: 10
        timeoutSeconds: 10
      livenessProbe:
        httpGet: {path: /health/live, port: gateway}
        periodSeconds: 10
        timeoutSeconds: 5
        failureThreshold: 6
      lifecycle:
        preStop:
          exec: {command: [sleep, {{ .Values.gateway.preStopSeconds | quote }}]}
      volumeMounts:
        # The tokenizer is here, at the path that Triton reports; `PUT /generate` needs it.
        - {name: models, mountPath: /models, readOnly: true}
        - {name: tmp, mountPath: /tmp}
        {{- include "nemotron.gatewayMounts" . | nindent 8 }}
      resources: {{ toYaml .Values.gateway.resources | nindent 8 }}
  volumes:
    {{- include "nemotron.modelsVolume" . | nindent 4 }}
    - {name: tmp, emptyDir: {}}
    {{- include "nemotron.gatewayVolumes" . | nindent 4 }}
{{- end -}}
