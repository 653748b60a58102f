{{- /*
A pod of the engine. Takes a dict: root, role (server, leader, worker), podGroup (name or empty).
A worker of a group has the same container but neither probes nor hooks: its leader answers for the whole group.
*/}}
{{- define "engine.pod" -}}
{{- $v := .root.Values }}
{{- $grouped := ne .role "server" }}
{{- $serves := ne .role "worker" }}
metadata:
  labels:
    {{- include "engine.selector" .root | nindent 4 }}
    {{- with .podGroup }}
    scheduling.x-k8s.io/pod-group: {{ . }}
    {{- end }}
    {{- with $v.podLabels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- $annotations := dict }}
  {{- if and $v.server.metricsPath $serves }}
  {{- $annotations = merge $annotations (dict "prometheus.io/scrape" "true" "prometheus.io/port" (toString $v.server.port) "prometheus.io/path" $v.server.metricsPath) }}
  {{- end }}
  {{- if eq $v.cache.kind "gcs" }}
  {{- $annotations = merge $annotations (dict "gke-gcsfuse/volumes" "true") }}
  {{- end }}
  {{- with $annotations }}
  annotations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
spec:
  automountServiceAccountToken: false
  enableServiceLinks: false
  {{- with $v.cache.serviceAccount }}
  serviceAccountName: {{ . }}
  {{- end }}
  {{- with $v.priorityClassName }}
  priorityClassName: {{ . }}
  {{- end }}
  {{- if .podGroup }}
  schedulerName: {{ $v.gang.scheduler }}
  {{- end }}
  nodeSelector:
    {{- toYaml (merge (dict) $v.nodeSelector $v.fleetSelector) | nindent 4 }}
  tolerations:
    - {key: nvidia.com/gpu, operator: Exists, effect: NoSchedule}
    {{- if hasPrefix "nvidia.com/mig-" $v.gpu.resource }}
    - {key: {{ $v.gpu.resource }}, operator: Exists, effect: NoSchedule}
    {{- end }}
    {{- with $v.tolerations }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- if not $grouped }}
  topologySpreadConstraints:
    {{- range list "topology.kubernetes.io/zone" "kubernetes.io/hostname" }}
    - topologyKey: {{ . }}
      maxSkew: 1
      # Capacity decides where GPUs are: a zone without any must not stop the others.
      whenUnsatisfiable: ScheduleAnyway
      labelSelector:
        matchLabels:
          {{- include "engine.selector" $.root | nindent 10 }}
    {{- end }}
  {{- end }}
  # The hook, then the engine's own drain, then a little: a pod that is killed earlier drops its streams.
  terminationGracePeriodSeconds: {{ add $v.preStopSeconds $v.drainSeconds 10 }}
  securityContext:
    {{- include "engine.securityContext" .root | nindent 4 }}
  containers:
    - name: {{ $v.engine }}
      image: {{ $v.image | quote }}
      securityContext:
        {{- include "engine.containerSecurityContext" .root | nindent 8 }}
      {{- with $v.server.command }}
      command:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      args:
        {{- toYaml $v.server.args | nindent 8 }}
        {{- with $v.server.drainFlag }}
        - {{ . }}={{ $v.drainSeconds }}
        {{- end }}
        {{- if and $v.secret.apiKey $v.server.apiKeyFlag }}
        - {{ $v.server.apiKeyFlag }}=$({{ $v.server.apiKeyVariable }})
        {{- end }}
        {{- if $grouped }}
        {{- with $v.group.args }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
        {{- end }}
        {{- if not $serves }}
        {{- with $v.group.workerArgs }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
        {{- end }}
      env:
        {{- include "engine.environment" .root | nindent 8 }}
        {{- if and $v.secret.apiKey $v.server.apiKeyVariable }}
        - name: {{ $v.server.apiKeyVariable }}
          valueFrom: {secretKeyRef: {name: {{ $v.secret.name }}, key: api-key}}
        {{- end }}
      {{- if $serves }}
      ports:
        - {name: http, containerPort: {{ $v.server.port }}}
      lifecycle:
        {{- with $v.postStart }}
        postStart:
          exec:
            command:
              {{- toYaml . | nindent 14 }}
        {{- end }}
        # Long enough for the endpoint to leave every load balancer; what is in flight is finished after SIGTERM.
        preStop:
          exec: {command: [/bin/sh, -c, sleep {{ $v.preStopSeconds }}]}
      startupProbe:
        {{- toYaml $v.probes.startup | nindent 8 }}
        periodSeconds: 1
        timeoutSeconds: 5
        failureThreshold: {{ max 30 (int $v.loadSeconds) }}
      readinessProbe:
        {{- /* What names the loaded model asks for the API key where there is one, and probes have none. */}}
        {{- toYaml (ternary $v.probes.startup $v.probes.readiness (and $v.secret.apiKey (ne $v.server.apiKeyVariable ""))) | nindent 8 }}
        periodSeconds: 5
        # A busy engine answers late; taking it out of the Service for that would make the others busier.
        timeoutSeconds: 5
        failureThreshold: 3
      livenessProbe:
        {{- toYaml $v.probes.liveness | nindent 8 }}
        periodSeconds: 10
        timeoutSeconds: 5
        failureThreshold: 6
      {{- end }}
      resources:
        requests: {cpu: {{ $v.resources.cpu | quote }}, memory: {{ $v.resources.memory | quote }}}
        {{- if gt (int $v.gpu.count) 0 }}
        limits: { {{ $v.gpu.resource }}: {{ $v.gpu.count }} }
        {{- end }}
      volumeMounts:
        - {name: models, mountPath: /models}
        - {name: home, mountPath: /home/engine}
        {{- if $v.shm }}
        - {name: shm, mountPath: /dev/shm}
        {{- end }}
  volumes:
    - {{- include "engine.modelsVolume" .root | nindent 6 }}
    - {name: home, emptyDir: {}}
    {{- with $v.shm }}
    # Tensor parallel ranks talk through shared memory; a container's default of 64 MiB is too small for that.
    - {name: shm, emptyDir: {medium: Memory, sizeLimit: {{ . }}}}
    {{- end }}
{{- end }}
