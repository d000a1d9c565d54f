"""The command `moesaic`. A verb's module is imported when the verb is used: --help must not wait for torch."""

import io
import os
import sys
from collections.abc import Sequence
from importlib import import_module

import click

from moesaic import __version__
from moesaic.core.errors import DEBUG_VARIABLE, in_a_line, unknown_name
from moesaic.core.threads import settle_waiting

# verb -> (module, whose `command` it is; what the list of verbs says of it)
VERBS = {
    "serve": ("moesaic.entrypoints.cli.serve", "Serve a model over HTTP, as OpenAI's API."),
    "generate": ("moesaic.entrypoints.cli.generate", "Complete one prompt and exit."),
    "chat": ("moesaic.entrypoints.cli.chat", "Talk with a model, in this process or on a server."),
    "models": ("moesaic.entrypoints.cli.models", "List the architectures that can be served."),
    "inspect": ("moesaic.entrypoints.cli.inspect", "Say what a checkpoint is, what it takes, and what is wrong."),
    "adapt": ("moesaic.entrypoints.cli.adapt", "Draft the description of an unknown architecture."),
    "verify": ("moesaic.entrypoints.cli.verify", "Prove that a checkpoint computes here what its reference does."),
    "diagnose": ("moesaic.entrypoints.cli.diagnose", "Find where a model's numbers stop being finite, and why."),
    "convert": ("moesaic.entrypoints.cli.convert", "Write a checkpoint in another layout."),
    "plan": ("moesaic.entrypoints.cli.plan", "Say whether a model fits, how fast it will be, and the flags to use."),
    "profile": ("moesaic.entrypoints.cli.profile", "Record where the tokens of prompts go, in a file and pictures."),
    "advise": ("moesaic.entrypoints.cli.advise", "Say what to change about a running server, by its own figures."),
    "prune": ("moesaic.entrypoints.cli.prune", "Write a routing profile without the experts that carry least."),
    "bench": ("moesaic.entrypoints.cli.bench", "Measure how fast a model runs here."),
}
ALIASES = {"convert-to-vllm-format": "convert"}  # as it is called in guides of other engines


class Verbs(click.Group):
    """A group that knows its commands by name and loads each on demand."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command:
        cmd_name = ALIASES.get(_with_dashes(cmd_name), cmd_name)
        if cmd_name not in VERBS:
            ctx.fail(unknown_name("command", cmd_name, VERBS))
        command: click.Command = import_module(VERBS[cmd_name][0]).command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in VERBS.items()])


def _with_dashes(name: str) -> str:
    """vLLM's users write --max_model_len too."""
    return name.replace("_", "-")


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"], "token_normalize_func": _with_dashes})
@click.version_option(__version__, prog_name="moesaic", message="%(prog)s %(version)s")
def cli() -> None:
    """An inference engine for Mixture-of-Experts language models.

    Without --model, each command runs the small model that comes with the package.
    """


def main(args: Sequence[str] | None = None) -> None:
    """Run and exit. An error of ours, or of a plugin that does not load, is one line on stderr (MOESAIC_DEBUG=1 shows
    where it came from)."""
    settle_waiting()
    if isinstance(sys.stdout, io.TextIOWrapper):  # names in damaged files may be no text
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        cli.main(args, prog_name="moesaic")
    except Exception as error:
        message = in_a_line(error)
        if message is None or os.environ.get(DEBUG_VARIABLE, "0") not in ("", "0"):
            raise
        click.echo(f"error: {message}", err=True)
        sys.exit(1)
