{{/* Names have the form release-nemotron-component. A pod's name is also its host name, which has at most 63 characters. */}}
{{- define "nemotron.name" -}}
{{- if gt (len .Release.Name) 35 }}{{ fail "the release's name is longer than 35 letters" }}{{ end -}}
{{- .Release.Name -}}
{{- if not (contains "nemotron" .Release.Name) }}-nemotron{{ end -}}
{{- end -}}

{{/* Labels that never change, because an upgrade cannot change a selector. Takes (list . component). */}}
{{- define "nemotron.selector" -}}
app.kubernetes.io/name: nemotron
app.kubernetes.io/instance: {{ (index . 0).Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end -}}

{{- define "nemotron.labels" -}}
{{ include "nemotron.selector" . }}
app.kubernetes.io/version: {{ (index . 0).Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ (index . 0).Release.Service }}
helm.sh/chart: {{ (index . 0).Chart.Name }}-{{ (index . 0).Chart.Version }}
{{- end -}}

{{/* The profile as the server reads it: the shipped file, with a startup time that allows for reading the weights, the Triton of its image, and with profileOverride. */}}
{{- define "nemotron.profile" -}}
{{- $profile := .Files.Get (printf "profiles/%s.yaml" .Values.profile) | fromYaml -}}
{{- $size := mulf .Values.model.sizeGiB (ternary 0.5 1.0 (eq $profile.dtype "fp8")) -}}
{{- $share := divf $size (dig "split" "nodes" 1 $profile) -}}
{{- $reading := divf $share .Values.server.readGiBPerSecond | ceil | int -}}
{{- $_ := set $profile.timeouts "startup" (add $profile.timeouts.startup $reading) -}}
{{- $_ := set $profile "address" .Values.address -}}
{{- if .Values.server.engine.separate -}}{{- $_ := set $profile "triton" "/opt/tritonserver" -}}{{- end -}}
{{- mustMergeOverwrite $profile .Values.profileOverride | toYaml -}}
{{- end -}}

{{/* Path of this release's checkpoint. Each source, format and split has its own. */}}
{{- define "nemotron.checkpoint" -}}
{{- $source := .Values.model.source -}}
{{- $made := list $source.path $source.s3.url $source.huggingFace.repository $source.huggingFace.revision .Values.convert.options -}}
{{- if and $source.path (not (hasPrefix "/models/" $source.path)) -}}{{- $made = append $made (include "nemotron.image" .) -}}{{- end -}}
/models/checkpoints/{{ include "nemotron.convertOptions" . | replace "--" "" | replace " " "-" }}-{{ $made | toJson | sha256sum | trunc 8 }}
{{- end -}}

{{- define "nemotron.convertOptions" -}}
{{- $profile := include "nemotron.profile" . | fromYaml -}}
{{- if has $profile.lane (list "pytorch" "vllm") -}}
--format hf --dtype {{ $profile.dtype }} --kv-cache-dtype {{ $profile.kv_cache_dtype }}
{{- else if eq $profile.lane "tensorrt" -}}
--tp {{ $profile.split.tp }} --pp {{ $profile.split.pp }} --dtype {{ $profile.dtype }} --kv-cache-dtype {{ $profile.kv_cache_dtype }}
{{- else -}}
--tp 1 --dtype bf16
{{- end -}}
{{- end -}}

{{/* Path of this release's engine. Each checkpoint, build and version has its own, so that an upgrade keeps the old engine for a rollback. */}}
{{- define "nemotron.engine" -}}
{{- $profile := include "nemotron.profile" . | fromYaml -}}
{{- $built := omit $profile "address" "engine" "ports" "triton" "triton_args" "timeouts" -}}
{{- $made := list $built $profile.timeouts.request (include "nemotron.checkpoint" .) (include "nemotron.engineImage" .) -}}
/models/engines/{{ .Values.profile }}-{{ $made | toJson | sha256sum | trunc 8 }}
{{- end -}}

{{- define "nemotron.image" -}}
{{- $profile := include "nemotron.profile" . | fromYaml -}}
{{- include "nemotron.imageOf" (list . $profile.lane) -}}
{{- end -}}

{{/* The image whose tag ends in the given word. Takes (list . ending). */}}
{{- define "nemotron.imageOf" -}}
{{- $root := index . 0 -}}
{{- with $root.Values.image -}}
{{ .repository }}:{{ .version | default $root.Chart.AppVersion }}-{{ index $ 1 }}{{ with get .digests (index $ 1) }}@{{ . }}{{ end }}
{{- end -}}
{{- end -}}

{{/* The image of the engine's process, which also builds the engine. */}}
{{- define "nemotron.engineImage" -}}
{{- $image := include "nemotron.image" . -}}
{{- with .Values.server.engine -}}{{ .separate | ternary (.image | default $image) $image }}{{- end -}}
{{- end -}}

{{- define "nemotron.serviceAccount" -}}
{{ .Values.serviceAccount.name | default (include "nemotron.name" .) }}
{{- end -}}

{{/* Fields of every pod; nemotron.container has those of every container. */}}
{{- define "nemotron.pod" -}}
serviceAccountName: {{ include "nemotron.serviceAccount" . }}
automountServiceAccountToken: false
enableServiceLinks: false
securityContext: {{ toYaml .Values.podSecurityContext | nindent 2 }}
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- end -}}

{{- define "nemotron.container" -}}
imagePullPolicy: {{ .Values.image.pullPolicy }}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: {drop: [ALL]}
{{- end -}}

{{/* The given resources with the GPUs of one node added. Takes (list . resources). */}}
{{- define "nemotron.gpuResources" -}}
{{- $root := index . 0 -}}
{{- $profile := include "nemotron.profile" $root | fromYaml -}}
{{- $resources := deepCopy (index . 1) -}}
{{- if hasKey $profile "split" -}}
{{- $own := dict $root.Values.server.gpuResource $profile.split.gpus_per_node -}}
{{- with $root.Values.server.multiNode -}}
{{- if and .rdmaResource (gt (int $profile.split.nodes) 1) -}}{{- $_ := set $own .rdmaResource .rdmaCount -}}{{- end -}}
{{- end -}}
{{- $resources = mustMergeOverwrite $resources (dict "limits" $own "requests" $own) -}}
{{- end -}}
{{- toYaml $resources -}}
{{- end -}}

{{/* The container after which the engine is complete: it builds it, waits for another pod that does, or finds it. */}}
{{- define "nemotron.build" -}}
name: build
image: {{ include "nemotron.engineImage" . }}
{{ include "nemotron.container" . }}
command: [nemotron, build]
args:
  - {{ include "nemotron.checkpoint" . }}
  - --output={{ include "nemotron.engine" . }}
  - --profile=/etc/nemotron/profile.yaml
  - --reuse
  - --wait={{ .Values.build.wait }}
env:
  - {name: HOME, value: /tmp}
volumeMounts:
  - {name: models, mountPath: /models}
  - {name: profile, mountPath: /etc/nemotron}
  - {name: tmp, mountPath: /tmp}
  - {name: shm, mountPath: /dev/shm}
resources:
  {{- include "nemotron.gpuResources" (list . .Values.build.resources) | nindent 2 }}
{{- end -}}

{{- define "nemotron.modelsVolume" -}}
- name: models
  persistentVolumeClaim:
    claimName: {{ .Values.storage.existingClaim | default (printf "%s-models" (include "nemotron.name" .)) }}
{{- end -}}

{{- define "nemotron.volumes" -}}
{{ include "nemotron.modelsVolume" . }}
- name: profile
  configMap:
    name: {{ include "nemotron.name" . }}-profile
- {name: tmp, emptyDir: {}}
- name: shm
  emptyDir: {medium: Memory, sizeLimit: {{ .Values.server.sharedMemory }}}
{{- end -}}

{{/*
An autoscaler owns the number of servers. A number that simply went from the manifest would become
Kubernetes' default of one, so an upgrade repeats the number that the cluster has.
*/}}
{{- define "nemotron.replicas" -}}
{{- if eq .Values.autoscaling.kind "none" }}
replicas: {{ .Values.server.replicas }}
{{- else }}
{{- $profile := include "nemotron.profile" . | fromYaml -}}
{{- $group := gt (dig "split" "nodes" 1 $profile | int) 1 -}}
{{- $api := ternary "leaderworkerset.x-k8s.io/v1" "apps/v1" $group -}}
{{- $kind := ternary "LeaderWorkerSet" "StatefulSet" $group -}}
{{- /* Helm fails at a kind that the cluster does not know, which preflight says more clearly. */}}
{{- $known := .Capabilities.APIVersions.Has (printf "%s/%s" $api $kind) }}
{{- with and $known (lookup $api $kind .Release.Namespace (printf "%s-server" (include "nemotron.name" .))) }}
replicas: {{ .spec.replicas }}
{{- end }}
{{- end }}
{{- end -}}
