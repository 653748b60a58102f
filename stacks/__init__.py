"""What is to run where: the typed stack, release and pipeline files, and the errors every room raises."""

from ._buckets import BUCKET_SCHEMES, bucket, bucket_failures, bucket_words, obstore
from ._canonical import canonical_json, digest
from ._disk import sync, write_whole
from ._errors import InputError, TollgateError
from ._fleet import Disk, Fleet, Nodes, Sharing, Taint, Upgrade
from ._ground import (
    Cache,
    Candidate,
    Capability,
    Dns,
    Gateway,
    Gke,
    Group,
    Maintenance,
    Serving,
    Shift,
)
from ._images import by_tag, tag_warning
from ._load import (
    load_pipeline,
    load_release,
    load_stack,
    project_root,
    release_names,
    stack_names,
    stack_path,
)
from ._models import (
    OBJECTIVES,
    Accelerator,
    Benchmark,
    Criteria,
    Objectives,
    Parallelism,
    Pipeline,
    Prefix,
    Promotion,
    Release,
    Stack,
    Stage,
    Tokens,
    Traffic,
)
from ._names import CLUSTER_NAME_CHARS, cluster_name, fit
from ._packed import unpacked
from ._scaling import Autoscaling, Query
from ._visitors import foreign
from ._yaml import line_of, read_mapping

__all__ = [
    "BUCKET_SCHEMES",
    "CLUSTER_NAME_CHARS",
    "OBJECTIVES",
    "Accelerator",
    "Autoscaling",
    "Benchmark",
    "Cache",
    "Candidate",
    "Capability",
    "Criteria",
    "Disk",
    "Dns",
    "Fleet",
    "Gateway",
    "Gke",
    "Group",
    "InputError",
    "Maintenance",
    "Nodes",
    "Objectives",
    "Parallelism",
    "Pipeline",
    "Prefix",
    "Promotion",
    "Query",
    "Release",
    "Serving",
    "Sharing",
    "Shift",
    "Stack",
    "Stage",
    "Taint",
    "Tokens",
    "TollgateError",
    "Traffic",
    "Upgrade",
    "bucket",
    "bucket_failures",
    "bucket_words",
    "by_tag",
    "canonical_json",
    "cluster_name",
    "digest",
    "fit",
    "foreign",
    "line_of",
    "load_pipeline",
    "load_release",
    "load_stack",
    "obstore",
    "project_root",
    "read_mapping",
    "release_names",
    "stack_names",
    "stack_path",
    "sync",
    "tag_warning",
    "unpacked",
    "write_whole",
]
