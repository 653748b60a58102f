"""The real engine over plugins that only write down what they are asked."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parents[2]
PLUGIN = Path(__file__).with_name("recording_plugin.py")
UNKNOWN = "04da6b54-80e4-46f7-96ec-b56ff0331ba9"


def edit(project: Path, stack: str, old: str, new: str) -> None:
    """Replace one text of a stack's file."""
    path = project / "stacks" / f"Pulumi.{stack}.yaml"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))


@dataclass
class Engine:
    """The real `pulumi` in `root`; `recorded` is what the plugins were asked."""

    root: Path
    plugins: Path
    environment: dict[str, str] = field(default_factory=dict)

    def run(self, *arguments: str, fails: bool = False, seconds: float = 300) -> subprocess.CompletedProcess[str]:
        command = ["pulumi", *arguments, "--non-interactive", "--color", "never"]
        done = subprocess.run(
            command, cwd=self.root, env=self.environment, capture_output=True, text=True, timeout=seconds, check=False
        )
        assert (done.returncode != 0) is fails, f"{arguments}:\n{done.stdout}\n{done.stderr}"
        return done

    def preview(self, stack: str, **config: str) -> list[dict[str, Any]]:
        """The resources that a first `up` would make: type, name, inputs, options, as the engine has them."""
        self.run("stack", "init", stack)
        for key, value in config.items():
            self.run("config", "set", "--secret", f"secrets:{key}", value, "-s", stack)
        steps = json.loads(self.run("preview", "-s", stack, "--json").stdout)["steps"]
        return [step["newState"] for step in steps if step["op"] == "create"]

    def recorded(self) -> list[dict[str, Any]]:
        path = Path(self.environment["RECORDED"])
        return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
