{{- define "nemotron.convertJob" -}}
{{- $source := .Values.model.source -}}
metadata:
  labels:
    {{- include "nemotron.selector" (list . "convert") | nindent 4 }}
spec:
  {{- include "nemotron.pod" . | nindent 2 }}
  restartPolicy: OnFailure
  {{- with .Values.convert.nodeSelector }}
  nodeSelector: {{ toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.convert.tolerations }}
  tolerations: {{ toYaml . | nindent 4 }}
  {{- end }}
  {{- if not $source.path }}
  initContainers:
    {{- /* Both commands skip files that are already downloaded. A YAML comment here would change the Job's name. */}}
    - name: download
      {{- include "nemotron.container" . | nindent 6 }}
      {{- if $source.s3.url }}
      image: {{ $source.s3.image }}
      command: [aws, s3, sync]
      args:
        - {{ $source.s3.url }}
        - /models/source
        - --no-progress
        {{- with $source.s3.endpoint }}
        - --endpoint-url={{ . }}
        {{- end }}
      {{- else }}
      image: {{ include "nemotron.image" . }}
      command: [hf, download]
      args:
        - {{ $source.huggingFace.repository }}
        - --revision={{ $source.huggingFace.revision }}
        - --local-dir=/models/source
      {{- end }}
      env:
        - {name: HOME, value: /tmp}
        {{- with $source.huggingFace.endpoint }}
        - {name: HF_ENDPOINT, value: {{ . | quote }}}
        {{- end }}
        - {name: HF_HUB_DISABLE_TELEMETRY, value: "1"}
      {{- with $source.s3.secret | default $source.huggingFace.secret }}
      envFrom:
        - secretRef: {name: {{ . }}}
      {{- end }}
      volumeMounts:
        - {name: models, mountPath: /models}
        - {name: tmp, mountPath: /tmp}
      resources: {{ toYaml .Values.convert.resources | nindent 8 }}
  {{- end }}
  containers:
    - name: convert
      image: {{ include "nemotron.image" . }}
      {{- include "nemotron.container" . | nindent 6 }}
      command: [nemotron, convert]
      args:
        - {{ $source.path | default "/models/source" }}
        - --output={{ include "nemotron.checkpoint" . }}
        {{- range splitList " " (include "nemotron.convertOptions" .) }}
        - {{ . | quote }}
        {{- end }}
        - --reuse
        - --wait={{ .Values.build.wait }}
        {{- range .Values.convert.options }}
        - {{ . | quote }}
        {{- end }}
      env:
        - {name: HOME, value: /tmp}
      volumeMounts:
        - {name: models, mountPath: /models}
        - {name: tmp, mountPath: /tmp}
      resources: {{ toYaml .Values.convert.resources | nindent 8 }}
  volumes:
    {{- include "nemotron.volumes" . | nindent 4 }}
{{- end -}}

{{- define "nemotron.buildJob" -}}
metadata:
  labels:
    {{- include "nemotron.selector" (list . "build") | nindent 4 }}
spec:
  {{- include "nemotron.pod" . | nindent 2 }}
  restartPolicy: OnFailure
  {{- include "nemotron.serverPlace" . | nindent 2 }}
  containers:
    -
      {{- include "nemotron.build" . | nindent 6 }}
  volumes:
    {{- include "nemotron.volumes" . | nindent 4 }}
{{- end -}}
