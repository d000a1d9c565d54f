"""`moesaic diagnose`: are a model's weights and numbers sound; where not, what and where."""

import sys
import textwrap
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from moesaic.engine.args import EngineArgs
from moesaic.entrypoints.cli.local import quiet
from moesaic.entrypoints.cli.options import engine_args, options_of
from moesaic.entrypoints.cli.strict_json import strict_json

if TYPE_CHECKING:
    from moesaic.adapt.diagnosis import Diagnosis

MOST_LISTED, WIDTH = 20, 100


@click.command("diagnose")
@click.argument("model_path", metavar="[MODEL]", required=False)
@click.option("--prompt", "prompts", multiple=True, help="text to complete instead of the usual ones; repeatable")
@click.option("--max-tokens", default=8, show_default=True, help="tokens to generate of each")
@click.option("--json", "as_json", is_flag=True, help="print all that was found as JSON")
@options_of(EngineArgs)
def command(model_path: str | None, prompts: tuple[str, ...], max_tokens: int, as_json: bool, **values: Any) -> None:
    """Look at all weights of MODEL, complete a few prompts, and look at what every operation gives.

    Named are weights that are not finite, far from their kind, zero or repeated; and the first layer, expert and
    operation whose output is not finite, with its cause and what helps. Exit status 1 where something was found.
    """
    quiet("CRITICAL")  # what is found is printed here
    from moesaic.adapt.diagnosis import diagnose

    args = asdict(engine_args(model_path, values))
    found = diagnose(args.pop("model"), prompts, max_tokens, **args)
    if as_json:
        click.echo(strict_json({"sound": found.sound, **asdict(found)}, indent=1))
    else:
        click.echo("\n".join(_lines(found)))
    sys.exit(0 if found.sound else 1)


def _lines(found: "Diagnosis") -> list[str]:
    """The report."""
    lines = [f"{found.model}: {found.architecture}, {found.dtype}", ""]
    lines += _listed(f"weights: {found.num_weights} looked at", [str(fault) for fault in found.faults])
    reached = f", {found.experts_reached} of {found.num_experts} experts reached" if found.num_experts else ""
    generated = sum(run.num_generated for run in found.runs)
    title = f"prompts: {len(found.runs)}, {generated} tokens generated{reached}"
    failed = [f"{run.prompt!r}: {run.error}" for run in found.runs if run.error is not None]
    if not found.findings:
        lines += _listed(title, failed)
    else:
        lines.append(f"{title}; {len(failed)} failed")
    for finding in found.findings:
        lines += ["", f"✗ {finding.place}: first {finding.kind} ({finding.where})"]
        lines += [_wrapped(finding.cause, "  "), _wrapped(f"→ {finding.advice}", "  ")]
        lines += [_wrapped(line, "    ") for line in finding.details()]
    near = [f"{p.place}: {p.value:.4g} of {p.dtype}, {p.share:.0%} of its range" for p in found.near_overflow]
    if near:
        lines += ["", *_listed("near the end of a dtype's range, so that other prompts may overflow", near, mark="!")]
    lines += ["", _wrapped("largest values: " + ", ".join(f"{p.place} {p.value:.3g}" for p in found.peaks[:3]), "")]
    return [*lines, "", "✓ sound" if found.sound else "✗ not sound"]


def _wrapped(text: str, indent: str) -> str:
    return textwrap.fill(text, WIDTH, initial_indent=indent, subsequent_indent=f"{indent}  ", break_on_hyphens=False)


def _listed(title: str, found: list[str], mark: str = "✗") -> list[str]:
    """What was found under a title; a tick where that is nothing."""
    more = [f"  ... and {len(found) - MOST_LISTED} more"] if len(found) > MOST_LISTED else []
    return [f"{mark if found else '✓'} {title}", *(_wrapped(each, "  ") for each in found[:MOST_LISTED]), *more]
