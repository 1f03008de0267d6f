{{/* Folder of the source's files. Each source that is downloaded has its own, so that none is taken for another. */}}
{{- define "nemotron.source" -}}
{{- with .Values.model.source -}}
{{- $name := list .s3.url .s3.endpoint | toJson -}}
{{- with .huggingFace.repository }}{{ $name = $.Values.model.source.huggingFace | toJson }}{{ end -}}
{{ .path | default (printf "/models/sources/%s" ($name | sha256sum | trunc 8)) }}
{{- end -}}
{{- end -}}

{{/* The containers before the conversion: the download, and the comparison of all files with their hashes. */}}
{{- define "nemotron.fetch" -}}
{{- $source := .Values.model.source -}}
{{- $folder := include "nemotron.source" . -}}
{{- if not $source.path }}
- name: download
  {{- include "nemotron.container" . | nindent 2 }}
  {{- if $source.s3.url }}
  image: {{ $source.s3.image }}
  command: [aws, s3, sync]
  args:
    - {{ $source.s3.url }}
    - {{ $folder }}
    - --no-progress
    # Without these, a file of the same size is kept whatever it holds, and one that is gone stays.
    - --exact-timestamps
    - --delete
    {{- with $source.s3.endpoint }}
    - --endpoint-url={{ . }}
    {{- end }}
  {{- else }}
  image: {{ include "nemotron.imageOf" (list . "cpu") }}
  command: [hf, download]
  args:
    - {{ $source.huggingFace.repository }}
    - --revision={{ $source.huggingFace.revision }}
    - --local-dir={{ $folder }}
  {{- end }}
  {{- include "nemotron.fetchRest" . | nindent 2 }}
{{- end }}
{{- if $source.huggingFace.repository }}
- name: check-download
  {{- include "nemotron.container" . | nindent 2 }}
  image: {{ include "nemotron.imageOf" (list . "cpu") }}
  # In a folder of links without the notes of `hf download`, which are no files of the repository.
  command:
    - sh
    - -ec
    - >-
      rm -rf /tmp/download; cp -rs "$1/." /tmp/download; rm -rf /tmp/download/.cache; shift;
      exec hf cache verify "$@"
    - check
  args:
    - {{ $folder }}
    - {{ $source.huggingFace.repository }}
    - --revision={{ $source.huggingFace.revision }}
    - --local-dir=/tmp/download
    - --fail-on-missing-files
    - --fail-on-extra-files
  {{- include "nemotron.fetchRest" . | nindent 2 }}
{{- end }}
{{- with $source.checksums }}
- name: check-sums
  {{- include "nemotron.container" $ | nindent 2 }}
  image: {{ include "nemotron.image" $ }}
  # The source is a folder, or a file of one.
  command: [sh, -c, 'if [ -d "$1" ]; then cd "$1"; else cd "$(dirname "$1")"; fi && exec sha256sum --check --strict --quiet -- "$2"', check]
  args:
    - {{ $folder }}
    - {{ . | quote }}
  {{- include "nemotron.fetchRest" $ | nindent 2 }}
{{- end }}
{{- end -}}

{{- define "nemotron.fetchRest" -}}
{{- $source := .Values.model.source -}}
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
resources: {{ toYaml .Values.convert.resources | nindent 2 }}
{{- end -}}

{{- define "nemotron.convert" -}}
- name: convert
  image: {{ include "nemotron.image" . }}
  {{- include "nemotron.container" . | nindent 2 }}
  command: [nemotron, convert]
  args:
    - {{ include "nemotron.source" . }}
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
  resources: {{ toYaml .Values.convert.resources | nindent 4 }}
{{- end -}}

{{- define "nemotron.convertPod" -}}
metadata:
  labels:
    {{- include "nemotron.selector" (list . "convert") | nindent 4 }}
spec:
  {{- include "nemotron.pod" . | nindent 2 }}
  restartPolicy: OnFailure
  {{- with include "nemotron.fetch" . | trim }}
  initContainers:
    {{- . | nindent 4 }}
  {{- end }}
  containers:
    {{- include "nemotron.convert" . | nindent 4 }}
  volumes:
    {{- include "nemotron.volumes" . | nindent 4 }}
{{- end -}}

{{- define "nemotron.buildPod" -}}
metadata:
  labels:
    {{- include "nemotron.selector" (list . "build") | nindent 4 }}
spec:
  {{- include "nemotron.pod" . | nindent 2 }}
  restartPolicy: OnFailure
  {{- include "nemotron.spread" . | nindent 2 }}
  containers:
    -
      {{- include "nemotron.build" . | nindent 6 }}
  volumes:
    {{- include "nemotron.volumes" . | nindent 4 }}
{{- end -}}
