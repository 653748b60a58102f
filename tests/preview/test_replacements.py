"""The table of what recreates what: the script that derives it reads Go as it is meant, the installed SDK knows every name."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

HERE = Path(__file__).resolve().parents[2]
TABLE = json.loads((HERE / "preview" / "replacements.json").read_text(encoding="utf-8"))["resources"]

GO = """
func ResourceThing() *schema.Resource {
	return &schema.Resource{
		CustomizeDiff: customdiff.All(
			customdiff.ForceNewIfChange("size", IsDiskShrinkage),
		),
		Schema: map[string]*schema.Schema{
			"zone": {
				Type:     schema.TypeString,
				ForceNew: true,
			},
			// "comment": { ForceNew: true }
			"words": {
				Type:        schema.TypeString,
				Description: `a brace { and ForceNew: true`,
			},
			"tags": {
				Type:     schema.TypeMap,
				ForceNew: true,
			},
			"open": {
				Type: schema.TypeBool,
			},
			"block": blockSchema(),
			"other": {
				Type: schema.TypeList,
				Elem: elements(),
			},
		},
	}
}

func blockSchema() *schema.Schema {
	return &schema.Schema{
		Type:     schema.TypeList,
		ForceNew: true,
		Elem: &schema.Resource{
			Schema: map[string]*schema.Schema{
				"inner": {
					Type:     schema.TypeInt,
					ForceNew: true,
				},
				"free": {
					Type:     schema.TypeInt,
					ForceNew: false,
				},
			},
		},
	}
}

func elements() *schema.Resource {
	return &schema.Resource{
		Schema: map[string]*schema.Schema{
			"deep": {
				Type:     schema.TypeInt,
				ForceNew: true,
			},
		},
	}
}
"""
KUBERNETES = """
func (k *kubeProvider) forceNewProperties(obj *unstructured.Unstructured) []string {
			if clients.IsSecret(obj) && (!k.enableSecretMutable || clients.IsImmutable(obj)) {
				props = append(props, properties{".type", ".data"}...)
			}
}

var forceNew = _groups{
	"apps": _versions{
		"v1beta1": _kinds{"Thing": old},
		"v1": _kinds{
			"Other": other,
			"Thing": thing},
	},
}

var core = _versions{
	"v1": _kinds{
		"Claim": append(
			properties{
				".spec.mode",
			},
			labelSelectorForceNewProperties(".spec.selector")...),
		"Secret": properties{
			".type",
		},
	},
}

var thing = append(
	properties{
		".spec.template",
	},
	labelSelectorForceNewProperties(".spec.selector")...,
)

var other = properties{
	".roleRef",
}
"""


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("preview_replacements", HERE / "docs" / "preview_replacements.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["preview_replacements"] = module
    spec.loader.exec_module(module)
    return module


def test_fields_that_force_another_resource_are_read_through_functions_and_not_out_of_comments(
    script: ModuleType,
) -> None:
    body = script.block(GO, GO.index("{\n"))
    assert dict(script.forced(GO, body)) == {
        "zone": False, "tags": True, "block": False, "block.inner": False, "other.deep": False,
    }  # fmt: skip


def test_kubernetes_own_list_is_read_by_kind(script: ModuleType) -> None:
    assert script.kubernetes(KUBERNETES, "apps", "Thing") == ["spec.selector.*", "spec.template.*"]
    assert script.kubernetes(KUBERNETES, "apps", "Other") == ["roleRef.*"]
    assert script.kubernetes(KUBERNETES, "", "Claim") == ["spec.mode.*", "spec.selector.*"]
    assert script.kubernetes(KUBERNETES, "", "Secret") == ["data.*", "type.*"]


def test_terraform_s_names_become_the_installed_sdk_s(script: ModuleType) -> None:
    pool = "gcp:container/nodePool:NodePool"
    path = "node_config.guest_accelerator.gpu_sharing_config.gpu_sharing_strategy"
    assert script.named(pool, path) == "nodeConfig.guestAccelerators.gpuSharingConfig.gpuSharingStrategy"
    assert script.named(pool, "node_config.metadata", whole=True) == "nodeConfig.metadata.*"
    assert script.named(pool, "node_config.no_such_field") is None


def test_the_installed_sdk_has_every_field_of_the_table(script: ModuleType) -> None:
    """An upgrade that renames one is seen here; derive the table anew then."""
    checked = 0
    for kind, entry in TABLE.items():
        if not kind.startswith("gcp:"):
            continue
        service, _, name = kind.removeprefix("gcp:").replace("/", ":").split(":")
        for field in [*entry["fields"], *entry.get("if", ())]:
            holder = f"{name}Args"
            for part in field.removesuffix(".*").split("."):
                known = script.inputs(service, holder)
                assert part in known, f"{kind} has no {field}"
                holder = known[part]
                checked += 1
    assert checked > 300


def test_what_google_documents_of_node_pools_is_what_the_table_says() -> None:
    pool = TABLE["gcp:container/nodePool:NodePool"]["fields"]
    recreated = {
        "nodeConfig.guestAccelerators.type",
        "nodeConfig.spot",
        "initialNodeCount",
        "placementPolicy",
        "location",
    }
    in_place = {
        "nodeConfig.machineType",
        "nodeConfig.diskType",
        "nodeConfig.diskSizeGb",
        "nodeConfig.labels",
        "nodeCount",
    }
    assert recreated <= set(pool)
    assert not in_place & set(pool)
