"""The engines behind their one interface, what surrounds them, and what autoscales them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

import components
import stacks
import values
from components.engines import SERVICES, waiting_metric
from tests.components.recording import Recording, record

HERE = Path(__file__).resolve().parents[2]


def given(name: str, release: str | None = None, **changes: Any) -> stacks.Stack:
    stack = stacks.load_stack(name, HERE)
    found = stacks.Stack.model_validate({**stack.model_dump(by_alias=True), **changes})
    return found if release is None else found.model_copy(update={"release": stacks.load_release(release, HERE)})


def made(stack: stacks.Stack, *, enforce: bool = False, **options: Any) -> Recording:
    def program() -> None:
        components.Platform("platform", components.PlatformArgs(stack=stack, root=HERE, enforce=enforce))

    return record(program, **options)


@pytest.mark.parametrize(
    ("release", "kind"),
    [
        ("gemma-3-4b-ollama-8", "OllamaService"),
        ("gemma-3-4b-vllm", "VllmService"),
        ("qwen3-8b-sglang", "SglangService"),
    ],
)
def test_every_engine_is_the_same_component_with_other_values(release: str, kind: str) -> None:
    recording = made(given("staging", release, benchmark=None))
    service = recording.one(kind)
    helm = recording.one("Release", "engine-us-central1")
    assert helm.parent == service.name == "engine-us-central1"
    assert helm.inputs["chart"] == "./charts/engine"
    assert helm.inputs["values"]["engine"] == service.inputs["serves"]
    assert helm.inputs["values"]["replicas"] == 4
    assert helm.inputs["atomic"] is True
    assert recording.outputs["engine-us-central1"]["url"] == "http://engine.staging.svc:80"


def test_engines_are_found_by_themselves() -> None:
    assert set(SERVICES) == {"ollama", "vllm", "sglang", "simulator"}
    folder = Path(components.__file__).parent / "engines"
    assert {path.stem for path in folder.glob("*.py")} - {"__init__", "service"} == set(SERVICES)


@pytest.mark.parametrize(
    ("release", "dialect"),
    [("gemma-3-4b-ollama-8", "ollama"), ("gemma-3-4b-vllm", "vllm"), ("qwen3-8b-sglang", "vllm")],
)
def test_the_simulator_takes_an_engines_place_and_asks_for_no_gpu(release: str, dialect: str) -> None:
    stack = given("local-dev", release, benchmark=None, serving={"simulate": True})
    recording = made(stack)
    assert recording.one("SimulatorService").inputs["serves"] == "simulator"
    values_given = recording.one("Release", "engine").inputs["values"]
    assert values_given["engine"] == dialect
    assert values_given["gpu"]["count"] == 0
    assert values_given["image"].startswith("ghcr.io/tollgate/bench")
    assert values_given["server"]["command"][:4] == ["python3", "-m", "bench.simulator", dialect]
    environment = {entry["name"]: entry["value"] for entry in values_given["server"]["env"]}
    assert environment["TOLLGATE_ACCELERATOR"] == "nvidia-l4"


def test_an_existing_cluster_needs_nothing_of_google_and_its_own_labels_place_the_pods() -> None:
    stack = given("staging", "gemma-3-4b-vllm", benchmark=None, gateway=None, serving={}).model_copy(
        update={"target": "kubernetes", "cluster": "kind-llm"}
    )
    recording = made(stack)
    assert not [one for one in recording.made if one.type.startswith("gcp:")]
    assert not recording.of("Node")
    assert recording.one("kubernetes").inputs["context"] == "kind-llm"
    helm = recording.one("Release", "engine").inputs["values"]
    assert helm["fleetSelector"] == {}
    assert helm["nodeSelector"] == {"cloud.google.com/gke-accelerator": "nvidia-l4"}
    own = stack.model_copy(update={"fleet": stack.fleet.model_copy(update={"labels": {"gpu": "l4"}})})
    assert made(own).one("Release", "engine").inputs["values"]["nodeSelector"] == {"gpu": "l4"}


def test_an_upstream_chart_is_one_setting_and_pinned() -> None:
    stack = given("staging", "qwen3-8b-vllm", benchmark=None, gateway=None, serving={})
    upstream = stack.model_copy(update={"release": stack.release.model_copy(update={"chart": "upstream"})})
    helm = made(upstream).one("Release", "engine-us-central1").inputs
    assert helm["chart"] == "vllm-stack"
    assert helm["version"] == "0.1.12"
    assert helm["repositoryOpts"] == {"repo": "https://vllm-project.github.io/production-stack"}
    assert values.release_digest(stack.release) != values.release_digest(upstream.release)


def test_pods_are_restricted_by_their_namespace() -> None:
    (namespace,) = made(given("staging", benchmark=None)).of("Namespace")
    assert namespace.inputs["metadata"]["labels"] == {"pod-security.kubernetes.io/enforce": "restricted"}


def test_keys_are_secrets_of_the_stack_and_stay_secret() -> None:
    stack = given("prod", serving={"api_key": True, "hugging_face_token": True})
    recording = made(stack, enforce=False, config={"secrets:apiKey": "sk-1", "secrets:huggingFaceToken": "hf-1"})
    secret = recording.one("Secret", "secrets-us-west1")
    assert "stringData" in secret.secret
    assert set(secret.inputs["stringData"]) == {"api-key", "hugging-face-token"}
    helm = recording.one("Release", "engine-us-west1").inputs["values"]
    assert helm["secret"] == {"name": "engine-keys", "apiKey": True, "huggingFaceToken": True}
    assert "sk-1" not in str(helm)


def test_an_existing_secret_is_named_and_not_made() -> None:
    recording = made(given("llama-70b"))
    assert not recording.of("Secret")
    assert recording.one("Release", "engine-us-central1").inputs["values"]["secret"]["name"] == "hugging-face"


def test_a_missing_key_is_named_with_the_command_that_sets_it(tmp_path: Path) -> None:
    from components.site import SiteArgs, _secret

    args = SiteArgs(
        stack=given("prod"),
        plan=None,
        release_digest="",
        root=HERE,  # type: ignore[arg-type]
    )

    def program() -> None:
        _secret("apiKey", args)

    with pytest.raises(stacks.InputError, match="pulumi config set --secret secrets:apiKey -s prod"):
        record(program)


def test_pods_read_the_bucket_as_themselves_without_a_key() -> None:
    recording = made(given("staging", benchmark=None))
    grant = recording.one("BucketIAMMember").inputs
    assert grant["bucket"] == "my-project-models"
    assert grant["role"] == "roles/storage.objectUser"
    assert grant["member"] == (
        "principal://iam.googleapis.com/projects/1234567890/locations/global/workloadIdentityPools/"
        "my-project.svc.id.goog/subject/ns/staging/sa/engine"
    )
    assert recording.one("ServiceAccount").inputs["metadata"]["name"] == "engine"
    assert not recording.of("Key")


def test_a_priority_is_the_stacks_own_and_the_pods_name_it() -> None:
    recording = made(given("prod"))
    priority = recording.one("PriorityClass", "priority-us-west1").inputs
    assert (priority["metadata"]["name"], priority["value"]) == ("prod-engine", 100000)
    assert recording.one("Release", "engine-us-west1").inputs["values"]["priorityClassName"] == "prod-engine"


def test_replicas_belong_to_the_autoscaler_where_there_is_one() -> None:
    recording = made(given("prod"))
    assert recording.one("Release", "engine-us-west1").inputs["values"].get("replicas") is None
    scaled = recording.one("ScaledObject", "autoscaler-us-west1").inputs["spec"]
    assert (scaled["minReplicaCount"], scaled["maxReplicaCount"]) == (2, 6)
    query = scaled["triggers"][0]["metadata"]["query"]
    assert query == 'sum(vllm:num_requests_waiting{namespace="prod"})'
    assert scaled["cooldownPeriod"] >= 300


def test_sglang_scales_on_its_own_metric_and_its_simulation_on_the_simulators() -> None:
    stack = given("prod", "qwen3-8b-sglang")
    assert waiting_metric(stack) == "sglang:num_queue_reqs"
    simulated = stack.model_copy(update={"serving": stacks.Serving(simulate=True)})
    assert waiting_metric(simulated) == "vllm:num_requests_waiting"


def test_groups_are_scaled_as_groups() -> None:
    stack = given("grok-1", serving={})
    stack = stack.model_copy(
        update={
            "fleet": stack.fleet.model_copy(update={"nodes": stacks.Nodes(min=2, max=8)}),
        }
    )
    recording = made(stack)
    spec = recording.one("ScaledObject").inputs["spec"]
    assert spec["scaleTargetRef"] == {
        "name": "engine",
        "apiVersion": "leaderworkerset.x-k8s.io/v1",
        "kind": "LeaderWorkerSet",
    }
    assert (spec["minReplicaCount"], spec["maxReplicaCount"]) == (1, 4)


def test_a_candidate_gets_its_share_of_replicas_and_of_requests() -> None:
    stack = given(
        "staging",
        benchmark=None,
        gateway={"candidate": {"release": "qwen3-8b-sglang", "percent": 25}},
    )
    recording = made(stack)
    engines = {one.name.removesuffix("-us-central1"): one.inputs for one in recording.of("Release")}
    assert engines["engine"]["values"]["replicas"] == 3
    assert engines["candidate"]["values"]["replicas"] == 1
    assert engines["candidate"]["name"] == "engine-candidate"
    assert recording.one("SglangService").name == "candidate-us-central1"
    config = recording.one("ConfigMap", "gateway-us-central1-config").inputs["data"]["haproxy.cfg"]
    assert "use_backend engine-candidate if { rand(10000) lt 2500 } has_engine-candidate" in config
    # The gate is asked about both.
    assert len(recording.of("PromotionCheck")) == 2


@pytest.mark.parametrize(("replicas", "percent", "wanted"), [(2, 1, 1), (10, 10, 1), (10, 34, 3), (4, 100, 3)])
def test_a_candidate_has_at_least_one_replica_and_leaves_one(replicas: int, percent: float, wanted: int) -> None:
    from components.preflight import candidate_replicas

    assert candidate_replicas(replicas, percent) == wanted


def test_the_benchmark_goes_through_the_gateway_as_users_do() -> None:
    import json

    recording = Recording()
    # The Job that is made here measures nothing, so that its result is missing.
    with pytest.raises(stacks.TollgateError, match="holds no result"):
        made(given("staging"), into=recording)
    (config,) = (one for one in recording.of("ConfigMap") if one.name.startswith("benchmark-config"))
    assert json.loads(config.inputs["data"]["bench.json"])["url"] == "http://gateway.staging.svc:80"


def test_the_gateway_drains_checks_and_survives_a_node() -> None:
    recording = made(given("prod"))
    pod = recording.one("Deployment", "gateway-us-west1-proxy").inputs["spec"]
    assert pod["replicas"] == 3
    spec = pod["template"]["spec"]
    hook = spec["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][-1]
    assert spec["terminationGracePeriodSeconds"] > 15 + 120
    assert hook.startswith("sleep 15")
    assert recording.one("PodDisruptionBudget", "gateway-us-west1-budget").inputs["spec"]["maxUnavailable"] == 1
    service = recording.one("Service", "gateway-us-west1-service").inputs["spec"]
    assert (service["type"], service["loadBalancerIP"]) == ("LoadBalancer", "203.0.113.9")


def test_the_proxy_balances_by_open_requests_and_takes_out_after_three_failed_checks() -> None:
    recording = made(given("staging", benchmark=None))
    config = recording.one("ConfigMap", "gateway-us-central1-config").inputs["data"]["haproxy.cfg"]
    assert "balance leastconn" in config
    assert "fall 3" in config
    assert "option httpchk GET /health" in config
    assert "engine-pods.staging.svc.cluster.local:8000" in config
    assert "retry-on conn-failure" in config


def test_sessions_stay_with_their_replica() -> None:
    recording = made(given("prod"))
    config = recording.one("ConfigMap", "gateway-us-west1-config").inputs["data"]["haproxy.cfg"]
    assert "balance hdr(x-session-id)" in config
    assert "hash-type consistent" in config
    assert "leastconn" not in config


def test_the_inference_extension_weighs_two_pools_in_one_route() -> None:
    stack = given(
        "staging",
        benchmark=None,
        has=["inference-extension"],
        gateway={
            "kind": "inference-extension",
            "gateway": "external",
            "candidate": {"release": "qwen3-8b-sglang", "percent": 10},
        },
    )
    recording = made(stack)
    route = recording.one("HTTPRoute").inputs["spec"]
    assert route["parentRefs"] == [{"name": "external"}]
    assert [(ref["name"], ref["weight"]) for ref in route["rules"][0]["backendRefs"]] == [
        ("engine-pool", 9000),
        ("engine-candidate-pool", 1000),
    ]
    pool = recording.one("Release", "gateway-us-central1-engine-pool").inputs
    assert pool["values"]["inferencePool"]["targetPorts"] == [{"number": 8000}]
    gke = next(one for one in recording.of("Cluster") if one.type.startswith("gcp:"))
    assert gke.inputs["gatewayApiConfig"] == {"channel": "CHANNEL_STANDARD"}


def test_the_plugin_of_the_components_names_its_runtime() -> None:
    plugin = yaml.safe_load((HERE / "components" / "PulumiPlugin.yaml").read_text())
    assert plugin["runtime"] == "python"
