"""`moesaic verify`: the staged proof that a checkpoint computes here what its reference computes."""

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click

from moesaic.core.errors import ConfigError
from moesaic.core.log import setup_logging
from moesaic.entrypoints.cli.strict_json import strict_json


@click.command("verify")
@click.argument("path")
@click.option(
    "--reference",
    metavar="hf|FILE",
    help="what it is held against: hf for transformers' own model, or a file that --record wrote; by default hf where "
    "transformers knows the architecture, else our own plain fp32 model",
)
@click.option("--record", "record_to", metavar="FILE", help="write a reference for later proofs, and prove nothing")
@click.option(
    "--record-from",
    type=click.Choice(["hf", "engine"]),
    default="hf",
    show_default=True,
    help="whose: transformers' model, or our own plain fp32 one",
)
@click.option("--arch", metavar="FILE", help="file with the architecture; it counts whatever the checkpoint names")
@click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16", "float16"]),
    default="float32",
    show_default=True,
    help="of the engine; references compute in float32",
)
@click.option(
    "--quantization",
    type=click.Choice(["none", "auto"]),
    default="none",
    show_default=True,
    help="of a quantised checkpoint: none proves the floats that its codes stand for, auto the codes as served",
)
@click.option("--layers", type=click.IntRange(min=1), metavar="N", help="prove the first N layers alone")
@click.option("--prompts", metavar="FILE", help="lines of text, or of token ids as JSON; seeded ones by default")
@click.option(
    "--search-seconds", type=click.FloatRange(min=0), default=120.0, show_default=True, help="to try causes in"
)
@click.option("--report", metavar="FILE.html", help="write a report with pictures, one file that needs nothing else")
@click.option("--trust-remote-code", is_flag=True, help="let the checkpoint's own code be the reference")
@click.option("--json", "as_json", is_flag=True, help="print one JSON object")
def command(
    path: str,
    reference: str | None,
    record_to: str | None,
    record_from: str,
    arch: str | None,
    dtype: str,
    quantization: str,
    layers: int | None,
    prompts: str | None,
    search_seconds: float,
    report: str | None,
    trust_remote_code: bool,
    as_json: bool,
) -> None:
    """Prove in five stages that the checkpoint in PATH computes here what its reference computes.

    \b
    0  every tensor is accounted for, and no weight is NaN, dead, duplicated or absurd
    1  each expert by itself, router off
    2  all experts, along fixed routes
    3  layer by layer, each given what the reference's layer was given
    4  logits and greedy tokens through the whole engine

    It stops at the first stage that differs, says where and by how much, and tries what may be the cause. The exit
    status is 0 if all is proven, else 1.
    """
    for flag, file in (("--report", report), ("--record", record_to)):
        if file is not None and not os.path.isdir(os.path.dirname(os.path.abspath(file))):
            raise ConfigError(f"{flag} {file}: there is no such folder")
    os.environ.setdefault("MOESAIC_LOG_LEVEL", "ERROR")  # the report is what one wants to read
    setup_logging()
    from moesaic.adapt.proof.run import record, verify

    with _told() as tick:
        if record_to is not None:
            if reference is not None or layers is not None:
                raise ConfigError("--record writes a reference: --reference and --layers go without it")
            source = record(
                path,
                record_to,
                record_from,
                arch=arch,
                prompts_file=prompts,
                trust_remote_code=trust_remote_code,
                tick=tick,
            )
        else:
            result = verify(
                path,
                reference,
                arch=arch,
                dtype=dtype,
                quantization=quantization,
                layers=layers,
                prompts_file=prompts,
                trust_remote_code=trust_remote_code,
                search_seconds=search_seconds,
                tick=tick,
            )
    if record_to is not None:
        click.echo(json.dumps({"file": record_to, "source": source}) if as_json else f"{record_to}: from {source}")
        return
    if report is not None:
        from moesaic.adapt.proof.report_html import write_report

        write_report(result, report)
    if as_json:
        click.echo(strict_json(result.as_dict()))
    else:
        _print(result)
        if report is not None:
            click.echo(f"report: {report}")
    if not result.proven:
        sys.exit(1)


def _print(result: object) -> None:
    from rich.console import Console
    from rich.text import Text

    from moesaic.adapt.proof.report_text import lines

    console = Console(width=100, highlight=False)
    for text, style in lines(result):  # type: ignore[arg-type]
        console.print(Text(text, style=style))


@contextmanager
def _told() -> Iterator[Callable[[str], None]]:
    """A line on stderr that says what is being done, where that is a terminal."""
    if not sys.stderr.isatty():
        yield lambda text: None
        return
    from rich.console import Console

    with Console(stderr=True).status("starting") as status:
        yield lambda text: status.update(text)
