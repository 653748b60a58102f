"""`tollgate` and `python -m tollgate`: finds the command, loads only its room, prints errors as people read them."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any

import typer
import typer.core
import typer.main
from rich.console import Console
from rich.text import Text

import stacks
from tollgate.commands._saying import quiet_in_ci

# In the order of the loop. The words stand here so that `--help` and completion load no room.
COMMANDS = {
    "init": "Write a starter repository for a team's own stacks.",
    "doctor": "Check machine, project, cluster and cloud before it hurts.",
    "plan": "Size a service: slots, nodes and dollars for users, promise and budget.",
    "explain": "Where a stack's parallelism, nodes and cost come from.",
    "prices": "Show the price book or read a new one.",
    "preview": "Cost and node changes of a stack against a base commit.",
    "checklist": "What is to be done before and after a deployment, ticked by looking.",
    "local": "The embedded cluster: up, down, status, shell, logs.",
    "tools": "The programs that Tollgate builds or finds.",
    "watch": "A stack's replicas, queue, latency, cost and problems, live.",
    "bench": "Measure a stack, a Service or a URL.",
    "tune": "Try an engine's slots on a deployed stack and write the best into its release.",
    "batch": "Many prompts that finish, each answered once.",
    "simulate": "Serve a simulated vLLM or Ollama.",
    "evidence": "List, show, verify and compare evidence.",
    "gate": "Judge a stack; exits 0 only on a pass.",
    "promote": "Let a stack's release into the next stack.",
    "approve": "Sign an approval or a limited override of a release.",
    "rollback": "Return a stack to the release it ran before.",
    "ui": "A local page over pipeline, plan, history, results and batches.",
    "demo": "The whole loop on the embedded cluster, in about three minutes.",
}


class _Rooms(typer.core.TyperGroup):
    """A group whose commands are imported when they are asked for."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in COMMANDS:
            return None
        module = import_module(f"tollgate.commands.{cmd_name}")
        target: Any = getattr(module, "app", None)
        if target is None:
            target = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False)
            target.command()(getattr(module, cmd_name))
        command = typer.main.get_command(target)
        command.name = cmd_name
        # Completion is of the whole command line: its options belong to `tollgate` alone.
        command.params = [one for one in command.params if one.name not in ("install_completion", "show_completion")]
        return command

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


app = typer.Typer(
    cls=_Rooms,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="From plan to production, every step measured. See `tollgate COMMAND --help`.",
)


@app.callback()
def _root() -> None:
    """From plan to production, every step measured."""


def main() -> None:
    """Run the command line. Exit codes: 0 done, 1 failed, 2 wrong input, 3 refused by the gate, 130 interrupted."""
    with quiet_in_ci():
        try:
            app()
        except stacks.TollgateError as error:
            Console(stderr=True, soft_wrap=True).print(Text.assemble(("error: ", "bold red"), str(error)))
            sys.exit(error.exit_code)
        except KeyboardInterrupt:
            sys.exit(130)
        except BrokenPipeError:
            # The reader went away (`| head`): nothing is wrong and nobody is there to be told.
            sys.stderr.close()
            sys.exit(0)


if __name__ == "__main__":
    main()
