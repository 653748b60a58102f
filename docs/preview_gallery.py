"""The gallery of docs/preview-gallery.md: one pull request that changes seven stacks, one kind of change each.

`python docs/preview_gallery.py` writes the comments, their pictures (needs Chromium) and the JSON Schemas into docs/preview/.
The tests hold the numbers against arithmetic by hand.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parents[1]
OUT = Path(__file__).resolve().parent / "preview"

_RELEASE = """engine: {engine}
version: {version}
image: {image}
model: gemma-3-4b-it
source: {source}
quantization: {quantization}
context_tokens: 2048
parallelism: {{slots: {slots}}}
kv_cache: {kv}
accelerator: {accelerator}
chart: engine
"""
_STACK = """config:
  tollgate:target: gke
  tollgate:project: my-project
  tollgate:cluster: {name}
  tollgate:release: {release}
  tollgate:fleet:
    machine_type: {machine}
    regions: [{regions}]
    nodes: {nodes}
{more}  tollgate:traffic:
    arrival: closed
    users: {users}
    prompt_tokens: 128
    output_tokens: 128
  tollgate:objectives:
    e2e_p95_seconds: {latency}
"""


def release(slots: int | str = "auto", accelerator: str = "{gpu: nvidia-l4}", engine: str = "vllm") -> str:
    """A release file of Gemma 3 4B."""
    ollama = engine == "ollama"
    return _RELEASE.format(
        engine=engine,
        version="0.17.4" if ollama else "0.32.0",
        image="ollama/ollama:0.17.4" if ollama else "vllm/vllm-openai:v0.32.0",
        source="gemma3:4b" if ollama else "google/gemma-3-4b-it",
        quantization="q4-k-m" if ollama else "bf16",
        slots=slots,
        kv="f16" if ollama else "bf16",
        accelerator=accelerator,
    )


def stack(
    name: str,
    *,
    release: str,
    machine: str = "g2-standard-8",
    regions: str = "us-central1",
    nodes: str = "{min: 10, max: 10}",
    users: int = 50,
    latency: float = 12,
    more: str = "",
) -> str:
    """A stack file on GKE."""
    return _STACK.format(
        name=name,
        release=release,
        machine=machine,
        regions=regions,
        nodes=nodes,
        users=users,
        latency=latency,
        more=more,
    )


@dataclass(frozen=True, kw_only=True)
class Case:
    """A stack before and after. `extra`: other files, before and after."""

    name: str
    title: str
    before: str
    after: str
    extra: tuple[tuple[str, str, str], ...] = ()


_SHARED = {"vllm": release(), "ollama-8": release(8, engine="ollama")}
_MIG = "{gpu: nvidia-tesla-a100, mig_profile: 3g.20gb}"
CASES = (
    Case(
        name="slots-doubled",
        title="Slots doubled",
        before=stack("slots-doubled", release="chat", users=120),
        after=stack("slots-doubled", release="chat", users=120),
        extra=(("stacks/releases/chat.yaml", release(8, engine="ollama"), release(16, engine="ollama")),),
    ),
    Case(
        name="l4-to-mig",
        title="From L4 to slices of an A100",
        before=stack("l4-to-mig", release="vllm", nodes="{min: 4, max: 4}"),
        after=stack("l4-to-mig", release="vllm-mig", machine="a2-highgpu-1g", nodes="{min: 2, max: 2}"),
        extra=(("stacks/releases/vllm-mig.yaml", release(accelerator=_MIG), release(accelerator=_MIG)),),
    ),
    Case(
        name="max-raised",
        title="Maximum of nodes raised",
        before=stack("max-raised", release="vllm", nodes="{min: 2, max: 6}", latency=6),
        after=stack("max-raised", release="vllm", nodes="{min: 2, max: 12}", latency=6),
    ),
    Case(
        name="region-added",
        title="A region added",
        before=stack("region-added", release="vllm", nodes="{min: 4, max: 4}"),
        after=stack("region-added", release="vllm", nodes="{min: 8, max: 8}", regions="us-central1, us-west1"),
    ),
    Case(
        name="pool-recreated",
        title="A pool that would be recreated",
        before=stack("pool-recreated", release="vllm", nodes="{min: 4, max: 4}"),
        after=stack("pool-recreated", release="vllm", nodes="{min: 4, max: 4}", more="    spot: true\n"),
    ),
    Case(
        name="unchanged",
        title="Nothing changed",
        before=stack("unchanged", release="vllm"),
        after="# Only a comment.\n" + stack("unchanged", release="vllm"),
    ),
    Case(
        name="h200",
        title="A machine without a price",
        before=stack("h200", release="vllm", nodes="{min: 4, max: 4}"),
        after=stack(
            "h200",
            release="vllm-h200",
            machine="a3-ultragpu-8g",
            regions="us-east4",
            nodes="{min: 1, max: 1}",
        ),
        extra=(
            (
                "stacks/releases/vllm-h200.yaml",
                release(accelerator="{gpu: nvidia-h200-141gb}"),
                release(accelerator="{gpu: nvidia-h200-141gb}"),
            ),
        ),
    ),
)


def build(root: Path) -> Path:
    """A repository at `root`: one commit with every case before, and the working tree with every case after."""
    (root / "stacks" / "releases").mkdir(parents=True)
    for name in ("Pulumi.yaml", "__main__.py"):
        shutil.copy(HERE / name, root)
    stages = "".join(f"  - stack: {case.name}\n" for case in CASES)
    _put(root, "stacks/pipeline.yaml", f"stages:\n{stages}")
    for name, text in _SHARED.items():
        _put(root, f"stacks/releases/{name}.yaml", text)
    for case in CASES:
        _put(root, f"stacks/Pulumi.{case.name}.yaml", case.before)
        for path, before, _ in case.extra:
            _put(root, path, before)
    commit(root)
    for case in CASES:
        _put(root, f"stacks/Pulumi.{case.name}.yaml", case.after)
        for path, _, after in case.extra:
            _put(root, path, after)
    return root


def commit(root: Path) -> None:
    """Everything, as the first commit of a repository of its own."""
    for arguments in (
        ["init", "--quiet"],
        ["add", "--all"],
        ["-c", "user.name=gallery", "-c", "user.email=gallery@localhost", "commit", "--quiet", "-m", "base"],
    ):
        subprocess.run(["git", *arguments], cwd=root, check=True, capture_output=True)


def _put(root: Path, name: str, text: str) -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(text, encoding="utf-8")


_PAGE = """<!doctype html><meta charset="utf-8"><style>
body {{ margin: 0; padding: 20px; width: 900px; box-sizing: border-box; background: #fff; color: #1f2328;
  font: 14px/1.5 -apple-system, "Segoe UI", "Noto Sans", Helvetica, Arial, sans-serif; }}
.comment {{ border: 1px solid #d1d9e0; border-radius: 6px; }} .who {{ background: #f6f8fa; border-bottom: 1px solid #d1d9e0;
  padding: 8px 16px; color: #59636e; border-radius: 6px 6px 0 0; }} .body {{ padding: 4px 16px 12px; }}
h3 {{ font-size: 17px; margin: 12px 0; }} table {{ border-collapse: collapse; margin: 12px 0; display: block; overflow-x: auto; }}
th, td {{ border: 1px solid #d1d9e0; padding: 5px 12px; }} tr:nth-child(2n) {{ background: #f6f8fa; }}
blockquote {{ margin: 12px 0; padding: 2px 14px; border-left: 4px solid; }} blockquote ul {{ padding-left: 20px; margin: 6px 0; }}
blockquote.c {{ border-color: #cf222e; }} blockquote.c b {{ color: #cf222e; }} blockquote.w {{ border-color: #9a6700; }}
blockquote.w b {{ color: #9a6700; }} sub {{ color: #59636e; }} details {{ margin: 8px 0; }}
code {{ background: #eff1f3; padding: 2px 5px; border-radius: 5px; }} pre {{ background: #f6f8fa; padding: 10px; }}
</style><div class="comment"><div class="who"><b>github-actions</b> bot commented</div>
<div class="body">{body}</div></div>"""


def picture(markdown: str, path: Path) -> None:
    """The comment as GitHub shows it, near enough, by headless Chromium."""
    from markdown_it import MarkdownIt

    body = MarkdownIt("commonmark", {"html": True}).enable("table").render(markdown)
    for kind, letter, word in (("CAUTION", "c", "Caution"), ("WARNING", "w", "Warning")):
        body = body.replace(f"<blockquote>\n<p>[!{kind}]</p>", f'<blockquote class="{letter}"><b>{word}</b>')
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "page.html"
        page.write_text(_PAGE.format(body=body), encoding="utf-8")
        screenshot(page, path)


def screenshot(page: Path, path: Path, width: int = 900) -> None:
    """A picture of the whole page, as high as it is."""
    measured = page.with_name("measured.html")
    script = "<script>document.title = document.documentElement.scrollHeight</script>"
    measured.write_text(page.read_text(encoding="utf-8") + script, encoding="utf-8")
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    dom = subprocess.run(
        [*command, f"--window-size={width},200", "--dump-dom", measured.as_uri()],
        check=True, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    measured.unlink()
    height = re.findall(r"<title>(\d+)</title>", dom.stdout)[-1]
    command += [f"--window-size={width},{height}", f"--screenshot={path}", page.as_uri()]
    subprocess.run(command, check=True, capture_output=True, timeout=120)


def schemas() -> dict[str, str]:
    """File name -> JSON Schema, of what `--json` writes and of `stacks/preview.yaml`."""
    import preview

    found = {"report.schema.json": preview.report_schema(), "limits.schema.json": preview.limits_schema()}
    return {name: json.dumps(schema, indent=1, sort_keys=True) + "\n" for name, schema in found.items()}


def main() -> None:
    """Write the schemas, every case's comment and picture, and the page of two of them."""
    import preview
    from tollgate.commands.preview import collect

    OUT.mkdir(exist_ok=True)
    for name, text in schemas().items():
        (OUT / name).write_text(text, encoding="utf-8")
    with tempfile.TemporaryDirectory() as folder:
        root = build(Path(folder) / "project")
        report = collect(root, [], "HEAD")
        few = collect(root, ["l4-to-mig", "max-raised"], "HEAD")
    for case in CASES:
        chosen = tuple(one for one in report.stacks if one.stack == case.name)
        part = report.model_copy(
            update={"stacks": chosen, "headline": chosen[0].headline, "findings": (), "base": "main"}
        )
        text = preview.markdown(part)
        (OUT / f"{case.name}.md").write_text(text, encoding="utf-8")
        picture(text, OUT / f"{case.name}.png")
    page = OUT / "page.html"
    page.write_text(preview.page(few.model_copy(update={"base": "main"})), encoding="utf-8")
    screenshot(page, OUT / "page.png", 900)


if __name__ == "__main__":
    sys.exit(main())
