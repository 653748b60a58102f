{{- define "engine.selector" -}}
app.kubernetes.io/name: {{ .Values.engine }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "engine.labels" -}}
{{ include "engine.selector" . }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{- /* Only the pod that answers: in a group, the leader. */}}
{{- define "engine.serving" -}}
{{ include "engine.selector" . }}
{{- if and (gt (int .Values.group.size) 1) (eq .Values.controller "lws") }}
leaderworkerset.sigs.k8s.io/worker-index: "0"
{{- else if gt (int .Values.group.size) 1 }}
ray.io/node-type: head
{{- end }}
{{- end }}

{{- define "engine.securityContext" -}}
seccompProfile: {type: RuntimeDefault}
{{- if eq .Values.podSecurity "restricted" }}
runAsNonRoot: true
runAsUser: 1000
runAsGroup: 1000
{{- end }}
fsGroup: 1000
{{- end }}

{{- define "engine.containerSecurityContext" -}}
allowPrivilegeEscalation: false
{{- if eq .Values.podSecurity "restricted" }}
capabilities: {drop: [ALL]}
{{- end }}
{{- end }}

{{- define "engine.modelsVolume" -}}
name: models
{{- $cache := .Values.cache }}
{{- if eq $cache.kind "pvc" }}
persistentVolumeClaim: {claimName: {{ .Release.Name }}-models}
{{- else if eq $cache.kind "hostpath" }}
hostPath: {path: {{ $cache.path | quote }}, type: DirectoryOrCreate}
{{- else if eq $cache.kind "gcs" }}
csi:
  driver: gcsfuse.csi.storage.gke.io
  volumeAttributes:
    bucketName: {{ $cache.bucket | quote }}
    mountOptions: implicit-dirs,uid=1000,gid=1000
{{- else }}
emptyDir: {}
{{- end }}
{{- end }}

{{- define "engine.environment" -}}
{{- range .Values.server.env }}
- {name: {{ .name }}, value: {{ .value | quote }}}
{{- end }}
- {name: HOME, value: /home/engine}
- {name: USER, value: engine}
{{- if .Values.secret.huggingFaceToken }}
- name: HF_TOKEN
  valueFrom: {secretKeyRef: {name: {{ .Values.secret.name }}, key: hugging-face-token}}
{{- end }}
{{- end }}
