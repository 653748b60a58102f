"""Images of a stack that are named by tag alone: what runs there may change from pull to pull."""

from __future__ import annotations

from ._models import Stack


def by_tag(stack: Stack) -> list[tuple[str, str]]:
    """(Field, image) of all that the stack runs and names without a digest."""
    images = [("release, image", stack.release.image)]
    if stack.gateway is not None and stack.gateway.kind == "proxy":
        images.append(("tollgate:gateway.image", stack.gateway.image))
    if stack.benchmark is not None:
        images.append(("tollgate:benchmark.image", stack.benchmark.image))
    return [(field, image) for field, image in images if "@sha256:" not in image]


def tag_warning(stack: Stack) -> str | None:
    """What is to be said of them, with what helps, in two lines; None where there are none, or nothing is pulled (local)."""
    named = ", ".join(f"{image} ({field})" for field, image in by_tag(stack))
    if not named or stack.target == "local":
        return None
    fix = "append @sha256:… as the registry shows it; serving.digests_only and the pipeline's digests_only insist on it"
    return f"named by tag alone, so that what runs may change unseen: {named}\n  fix: {fix}"
