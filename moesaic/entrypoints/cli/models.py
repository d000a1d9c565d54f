"""`moesaic models`: which architectures are served, by whom, and what was tested."""

import json

import click

from moesaic.core.errors import UnsupportedError, nearest
from moesaic.models.hf_backend.allowed import REFUSED
from moesaic.models.registry import ModelRegistry
from moesaic.models.table import Entry, architectures

COLUMNS = ("architecture", "by", "attention", "router", "quantisation", "tested", "difference", "limits")


@click.command("models")
@click.argument("names", metavar="[ARCHITECTURE]...", nargs=-1)
@click.option("--json", "as_json", is_flag=True, help="print a JSON array, with all that is known of each")
def command(names: tuple[str, ...], as_json: bool) -> None:
    """List the architectures that can be served, as config.json names them; or tell about some, by their name or
    model type.

    "native" ones are computed by this package. For the others, transformers' modelling code runs with this package's
    scheduler, experts and, unless limits are stated, its paged attention.
    """
    entries = _chosen(architectures(), names)
    if as_json:
        click.echo(json.dumps([{**e.as_dict(), "quantization": e.quantization} for e in entries], indent=1))
        return
    rows = [COLUMNS, *(_row(entry) for entry in entries)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    native = sum(entry.by == "native" for entry in entries)
    click.echo(f"\n{native} native, {len(entries) - native} through transformers")


def _chosen(entries: list[Entry], names: tuple[str, ...]) -> list[Entry]:
    """The entries named, or all."""
    known = {entry.architecture: entry for entry in entries}
    chosen = [ModelRegistry.of_model_type(name) or name for name in names]
    for name in chosen:
        if name in known:
            continue
        if name in REFUSED:
            raise UnsupportedError(f"architecture {name!r} is not served: {REFUSED[name]}")
        close = nearest(name, known, count=3)
        hint = f"; nearest: {', '.join(close)}" if close else ""
        raise UnsupportedError(f"architecture {name!r} is not served{hint}")
    return [known[name] for name in chosen] or entries


def _row(e: Entry) -> tuple[str, ...]:
    difference = "" if e.difference is None else f"{e.difference:.0e}"
    kinds = (", ".join(e.attention), ", ".join(e.router), " ".join(e.quantization))
    return (e.architecture, e.by, *kinds, e.tested or "not yet", difference, ", ".join(e.limits))
