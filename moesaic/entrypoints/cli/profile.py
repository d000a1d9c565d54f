"""`moesaic profile`: where the tokens of a set of prompts go, as a table, a file and pictures."""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from moesaic.core.errors import ConfigError, MoesaicError
from moesaic.core.sampling_params import SamplingParams
from moesaic.engine.args import EngineArgs
from moesaic.entrypoints.cli.local import quiet
from moesaic.entrypoints.cli.options import engine_args, options_of

if TYPE_CHECKING:
    from moesaic.adapt.prompts import Prompt
    from moesaic.engine.llm import LLM

DEFAULT_OUTPUT = "routes.safetensors"


@click.command("profile")
@click.option(
    "--dataset",
    metavar="FILE",
    help='JSON lines, each {"prompt": TEXT} or {"messages": [...]}, perhaps with "tags": [...]; by default 42 prompts '
    "for the embedded model",
)
@click.option("-o", "--output", metavar="FILE", help=f"the file of recorded routes to write; {DEFAULT_OUTPUT}")
@click.option("--from", "recorded", metavar="FILE", help="tell of a file that was recorded before, and run nothing")
@click.option(
    "--plots", metavar="DIR", help="draw pictures (PNG) into this folder: layers by experts, and pairs of experts"
)
@click.option("--by-tag", is_flag=True, help="a table for each tag, too; with --prune, a rule for each")
@click.option("--max-tokens", default=64, show_default=True, help="tokens generated for each prompt at most")
@click.option(
    "--stream-tokens", default=0, metavar="N", help="keep the choices of N tokens one by one, for --simulate-routing"
)
@click.option(
    "--prune", metavar="SHARE", help="write a routing profile, too: `moesaic prune` of this share, such as 25%"
)
@click.option(
    "--pruned",
    type=click.Path(dir_okay=False, path_type=Path),
    default="pruned.toml",
    show_default=True,
    help="its file",
)
@click.option("--json", "as_json", is_flag=True, help="print one JSON object instead of tables")
@options_of(EngineArgs)
def command(
    dataset: str | None,
    output: str | None,
    recorded: str | None,
    plots: str | None,
    by_tag: bool,
    max_tokens: int,
    stream_tokens: int,
    prune: str | None,
    pruned: Path,
    as_json: bool,
    **values: Any,
) -> None:
    """Run prompts through a model, greedily, and record where their tokens go: prompts' and generated ones'.

    The file is what `moesaic prune`, `convert --hot-experts` and `--simulate-routing replay:FILE` read. A prefix that
    prompts have in common is computed once, and counts once.
    """
    quiet("WARNING")
    if recorded is not None and (dataset is not None or output is not None):
        raise ConfigError("--from tells of a file that is there: leave --dataset and --output out")
    if prune is not None and as_json:
        raise ConfigError("--prune tells in words what it bans: leave --json out")
    from moesaic.adapt.pruning import parse_share
    from moesaic.entrypoints.cli.prune import Measure, measure_with, name_of, write_pruned
    from moesaic.experts.profile_file import read_routes

    if prune is not None:
        parse_share(prune)
        name_of(pruned)
    measure: Measure | None = None
    if recorded is None:
        recorded = output or DEFAULT_OUTPUT
        llm, prompts = _record(recorded, dataset, max_tokens, stream_tokens, engine_args(None, values))
        measure = measure_with(llm, prompts) if prune is not None else None
    profile = read_routes(recorded)
    pictures = []
    if plots is not None:
        from moesaic.adapt.route_plots import draw_all

        try:
            pictures = draw_all(profile, plots)
        except OSError as e:
            raise ConfigError(f"--plots: cannot write into {plots}: {e.strerror or e}") from e
    from moesaic.adapt.route_report import report, table

    if as_json:
        click.echo(json.dumps({"file": recorded, "pictures": pictures} | report(profile)))
        return
    for tag in (None, *(profile.tags if by_tag else ())):
        click.echo("\n".join([*table(profile, tag), ""]))
    for path in (recorded, *pictures):
        click.echo(path)
    if prune is not None:
        write_pruned(profile, prune, by_tag, name_of(pruned), pruned, measure)


def _record(
    path: str, dataset: str | None, max_tokens: int, stream_tokens: int, args: EngineArgs
) -> "tuple[LLM, list[Prompt]]":
    """Run the prompts of a file, and write what their tokens did; the model and the prompts."""
    from moesaic.adapt.prompts import EMBEDDED_PROMPTS, read_prompts, tokens_of
    from moesaic.engine.llm import LLM

    prompts = read_prompts(dataset or EMBEDDED_PROMPTS)
    params = [
        SamplingParams(temperature=0, max_tokens=max_tokens, routing={"tags": prompt.tags} if prompt.tags else None)
        for prompt in prompts
    ]
    folder = os.path.dirname(os.path.abspath(path))
    if not os.path.isdir(folder):
        raise ConfigError(f"--output: there is no folder {folder}")  # before a model is loaded
    llm = LLM(**vars(args))
    llm.start_moe_profile(path, stream_tokens=stream_tokens)
    outputs = llm.generate([tokens_of(prompt, llm.tokenizer) for prompt in prompts], params, use_tqdm=os.isatty(2))
    failed = [output.error for output in outputs if output.error is not None]
    if failed:
        raise MoesaicError(f"{len(failed)} of {len(prompts)} prompts failed: {failed[0]}")
    llm.stop_moe_profile()
    return llm, prompts
