"""`moesaic prune`: a routing profile without the experts that carry least, from recorded routes."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from moesaic.core.errors import ConfigError
from moesaic.core.routing_profile import NAME, RoutingProfile, to_toml
from moesaic.engine.args import EngineArgs
from moesaic.entrypoints.cli.local import quiet
from moesaic.entrypoints.cli.options import build, options_of

if TYPE_CHECKING:
    from moesaic.adapt.prompts import Prompt
    from moesaic.adapt.pruning import Effect, PrunedLayer
    from moesaic.engine.llm import LLM
    from moesaic.experts.profile_file import RouteProfile

ANSWER_TOKENS = 64  # of each answer that is measured
Measure = Callable[[RoutingProfile], "Effect"]


@click.command("prune")
@click.argument("routes", type=click.Path(exists=True, dir_okay=False))
@click.option("--share", default="25%", show_default=True, help="of the experts of each layer, to be banned")
@click.option("--by-tag", is_flag=True, help="a rule for each tag that was recorded, instead of one for all requests")
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, writable=True, path_type=Path),
    default="pruned.toml",
    show_default=True,
    help="the profile to write; it is called as the file",
)
@click.option(
    "--dataset",
    type=click.Path(exists=True, dir_okay=False),
    help="prompts (JSON lines, as `moesaic profile` takes them) to measure on --model what the profile does",
)
@options_of(EngineArgs)
def command(routes: str, share: str, by_tag: bool, output: Path, dataset: str | None, **values: Any) -> None:
    """Write a routing profile that bans, in each layer, the experts that carry least of the routing weight in ROUTES, a
    file of recorded routes. As many experts stay as a token has choices."""
    quiet("WARNING")
    name = name_of(output)
    from moesaic.adapt.prompts import read_prompts
    from moesaic.adapt.pruning import parse_share
    from moesaic.experts.profile_file import read_routes

    parse_share(share)
    recorded = read_routes(routes)
    prompts = read_prompts(dataset) if dataset is not None else []
    measure = None
    if prompts:
        from moesaic.engine.llm import LLM

        llm = LLM(**vars(build(EngineArgs, values)))
        measure = measure_with(llm, prompts)
    write_pruned(recorded, share, by_tag, name, output, measure)


def name_of(output: Path) -> str:
    """The name of the profile in a file; raises ConfigError where that can be none."""
    if output.suffix != ".toml" or not NAME.fullmatch(output.stem):
        raise ConfigError(
            f"{output}: a routing profile is called as its file, which must end in .toml and consist of letters, "
            "digits, dots, dashes and underscores"
        )
    return output.stem


def measure_with(llm: "LLM", prompts: "list[Prompt]") -> Measure:
    """A function that measures what a profile does to the model's answers to prompts, each with its tags."""
    from moesaic.adapt.prompts import tokens_of
    from moesaic.adapt.pruning import measure_effect

    tokens = [tokens_of(prompt, llm.tokenizer) for prompt in prompts]

    def measure(profile: RoutingProfile) -> "Effect":
        name = llm.load_routing_profile(profile.plain())
        return measure_effect(llm, tokens, [{"profile": name, "tags": p.tags} for p in prompts], ANSWER_TOKENS)

    return measure


def write_pruned(
    routes: "RouteProfile", share: str, by_tag: bool, name: str, output: Path, measure: Measure | None
) -> None:
    """Prune, measure, write, and say what was done. Raises ConfigError as `adapt.pruning` does."""
    from moesaic.adapt.pruning import parse_share, prune, pruning_profile

    part = parse_share(share)
    pruned = prune(routes, part, routes.tags if by_tag else ())
    if by_tag and not routes.tags:
        raise ConfigError("no tags were recorded: leave --by-tag out")
    told = f"without {100 * part:g}% of the experts of each layer, by {routes.tokens} recorded tokens of {routes.model}"
    profile = pruning_profile(name, told, pruned)
    lines = list(_table(pruned))
    if measure is not None:
        effect = _told(measure(profile))
        profile = pruning_profile(name, f"{told}; {effect}", pruned)
        lines.append(effect)
    whole = output.with_name(f".{output.name}.{os.getpid()}")  # nobody reads half of it
    whole.write_text(to_toml(profile))
    os.replace(whole, output)
    click.echo("\n".join([*lines, f"written: {output}; use it with --moe-routing-profile {output}"]))


def _table(pruned: "list[PrunedLayer]") -> list[str]:
    tags = max(len(layer.tag or "every request") for layer in pruned)
    head = f"{'layer':>5}  {'for':{tags}}  {'weight lost':>11}  banned experts"
    lines = [head]
    for layer in pruned:
        banned = ", ".join(map(str, layer.banned))
        lines.append(f"{layer.layer:5}  {layer.tag or 'every request':{tags}}  {layer.lost:11.1%}  {banned}")
    return lines


def _told(effect: "Effect") -> str:
    before, after = f"{effect.perplexity:.3f}", f"{effect.steered_perplexity:.3f}"
    return (
        f"the perplexity of the model's own answers goes from {before} to {after}, and {effect.agreement:.1%} of their "
        f"{effect.tokens} tokens stay the likeliest"
    )
