"""What is to run where: the typed stack, release and pipeline files, and the errors every room raises."""

from ._canonical import canonical_json, digest
from ._errors import InputError, TollgateError
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
    Fleet,
    Nodes,
    Objectives,
    Parallelism,
    Pipeline,
    Promotion,
    Release,
    Stack,
    Stage,
    Tokens,
    Traffic,
)

__all__ = [
    "OBJECTIVES",
    "Accelerator",
    "Benchmark",
    "Criteria",
    "Fleet",
    "InputError",
    "Nodes",
    "Objectives",
    "Parallelism",
    "Pipeline",
    "Promotion",
    "Release",
    "Stack",
    "Stage",
    "Tokens",
    "TollgateError",
    "Traffic",
    "canonical_json",
    "digest",
    "load_pipeline",
    "load_release",
    "load_stack",
    "project_root",
    "release_names",
    "stack_names",
    "stack_path",
]
