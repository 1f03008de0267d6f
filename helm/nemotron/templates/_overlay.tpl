{{/* A pod's template with the values that every kind of pod has, and with its podOverlay. Takes (list . values template). */}}
{{- define "nemotron.podTemplate" -}}
{{- $values := index . 1 -}}
{{- $pod := index . 2 | fromYaml -}}
{{- with $pod.Error }}{{ fail . }}{{ end -}}
{{- $place := dict -}}
{{- range $name := list "nodeSelector" "tolerations" "affinity" "priorityClassName" "runtimeClassName" -}}
{{- with get $values $name }}{{ $_ := set $place $name . }}{{ end -}}
{{- end -}}
{{- with $values.extraVolumes }}{{ $_ := set $place "volumes" . }}{{ end -}}
{{- $more := dict "env" $values.env "envFrom" $values.envFrom "volumeMounts" $values.extraVolumeMounts -}}
{{- range $kind := list "initContainers" "containers" -}}
{{- range $container := get $pod.spec $kind | default list -}}
{{- range $name, $items := $more -}}
{{- with $items }}{{ $_ := set $container $name (concat (get $container $name | default list) .) }}{{ end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- $metadata := dict "labels" $values.podLabels -}}
{{- with $values.annotations }}{{ $_ := set $metadata "annotations" . }}{{ end -}}
{{- $own := dict "metadata" $metadata "spec" $place -}}
{{- $selected := deepCopy $pod.metadata.labels -}}
{{- range $over := list $own $values.podOverlay -}}
{{- $pod = include "nemotron.merged" (list $pod $over) | fromYaml -}}
{{- end -}}
{{- range $name, $text := $selected -}}
{{- if ne $text (get $pod.metadata.labels $name) }}{{ fail (printf "podLabels, podOverlay: the label %s selects the pods and cannot be changed" $name) }}{{ end -}}
{{- end -}}
{{- toYaml $pod -}}
{{- end -}}

{{/* A map with another merged into it. Items of lists are matched by mountPath or name; others are added. Takes (list map other). */}}
{{- define "nemotron.merged" -}}
{{- $base := deepCopy (index . 0) -}}
{{- range $key, $value := index . 1 -}}
{{- $old := get $base $key -}}
{{- if and $old (kindIs "map" $value) -}}
{{- $_ := set $base $key (include "nemotron.merged" (list $old $value) | fromYaml) -}}
{{- else if and $old (kindIs "slice" $value) (kindIs "map" (first $value)) -}}
{{- $_ := set $base $key (include "nemotron.mergedList" (list $old $value) | fromYamlArray) -}}
{{- else -}}
{{- $_ := set $base $key $value -}}
{{- end -}}
{{- end -}}
{{- toYaml $base -}}
{{- end -}}

{{- define "nemotron.mergedList" -}}
{{- $items := list -}}
{{- $over := index . 1 -}}
{{- $used := dict -}}
{{- range $old := index . 0 -}}
{{- range $new := $over -}}
{{- $key := $new.mountPath | default $new.name -}}
{{- if and $key (eq $key ($old.mountPath | default $old.name)) -}}
{{- $old = include "nemotron.merged" (list $old $new) | fromYaml -}}
{{- $_ := set $used $key true -}}
{{- end -}}
{{- end -}}
{{- $items = append $items $old -}}
{{- end -}}
{{- range $new := $over -}}
{{- if not (get $used ($new.mountPath | default $new.name | default "")) }}{{ $items = append $items $new }}{{ end -}}
{{- end -}}
{{- toYaml $items -}}
{{- end -}}
