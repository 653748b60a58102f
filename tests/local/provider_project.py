"""A small Pulumi project in a folder of its own, driven through the real `pulumi` command as a user would."""

from __future__ import annotations

import contextlib
import json
import subprocess
import time
from pathlib import Path
from typing import Any

import psutil

_HEAD = """
import json, os, pathlib
import pulumi
import pulumi_kubernetes as k8s
o = pulumi.ResourceOptions
SET = json.loads(pathlib.Path("settings.json").read_text())
NS = SET["namespace"]

def pods(name, labels, node=None, image="registry.k8s.io/pause:3.10"):
    spec = {"containers": [{"name": name, "image": image}], "nodeSelector": {"kubernetes.io/hostname": node or SET["node"]},
            "tolerations": [{"operator": "Exists"}]}
    return {"metadata": {"labels": labels}, "spec": spec}
"""


class Project:
    """`run` gives return code and everything that was printed; `output` gathers all of it, to look for secrets."""

    def __init__(self, folder: Path, environment: dict[str, str], program: str, **settings: Any) -> None:
        self.folder, self.printed = folder, ""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "Pulumi.yaml").write_text("name: trial\nruntime: python\n")
        (folder / "__main__.py").write_text(_HEAD + program)
        (folder / "state").mkdir(exist_ok=True)
        self.environment = {
            **environment,
            "PULUMI_BACKEND_URL": f"file://{folder / 'state'}",
            "PULUMI_CONFIG_PASSPHRASE": "test",
            "NO_COLOR": "1",
        }
        self.settings: dict[str, Any] = {}
        self.set(**settings)
        self.must("stack", "init", "dev")

    def set(self, **settings: Any) -> None:
        """Change what the program reads."""
        self.settings |= settings
        (self.folder / "settings.json").write_text(json.dumps(self.settings))

    def run(self, *arguments: str, seconds: float = 300) -> tuple[int, str]:
        """One pulumi command."""
        done = subprocess.run(
            ["pulumi", *arguments, "--non-interactive"],
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=seconds,
            check=False,
        )
        self.printed += done.stdout
        return done.returncode, done.stdout

    def must(self, *arguments: str, seconds: float = 300) -> str:
        """One pulumi command that has to succeed."""
        code, text = self.run(*arguments, seconds=seconds)
        assert code == 0, f"pulumi {' '.join(arguments)} failed:\n{text}"
        return text

    def up(self, *arguments: str) -> str:
        return self.must("up", "--yes", "--skip-preview", "--diff", *arguments)

    def outputs(self) -> dict[str, Any]:
        return dict(json.loads(self.must("stack", "output", "--json", "--show-secrets")))

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """A pulumi command in the background, in a process group of its own."""
        return subprocess.Popen(
            ["pulumi", *arguments, "--non-interactive"],
            cwd=self.folder,
            env=self.environment,
            stdout=(self.folder / "background.log").open("w"),
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def wait_for_text(self, text: str, seconds: float = 180) -> None:
        """Until the background command printed this."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if text in (self.folder / "background.log").read_text():
                return
            time.sleep(0.05)
        raise AssertionError(f"{text!r} was never printed:\n{(self.folder / 'background.log').read_text()}")

    def kill(self, process: subprocess.Popen[str]) -> None:
        """kill -9 of pulumi alone; a moment later of what it left behind, so that nothing outlives the test."""
        left = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        process.wait()
        time.sleep(1.5)
        for orphan in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                orphan.kill()

    def reset(self) -> None:
        """Give back the stack lock of a killed run."""
        self.must("cancel", "--yes")
