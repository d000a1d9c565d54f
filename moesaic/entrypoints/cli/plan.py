"""`moesaic plan`: the dry run of serving a checkpoint."""

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from moesaic.core.units import count_of, size_of
from moesaic.engine.args import EMBEDDED_MODEL

if TYPE_CHECKING:
    from moesaic.adapt.options import Option
    from moesaic.adapt.planning import Plan

GIGA = 1e9


@click.command("plan")
@click.argument("model", metavar="[MODEL]", required=False, default=EMBEDDED_MODEL)
@click.option("--memory", metavar="SIZE", help="what weights, cache and runtime may take together, such as 24GiB")
@click.option("--gpus", metavar="NxKIND", help="plan for accelerators instead of this machine, such as 8xH200")
@click.option("--context", type=int, help="tokens of a sequence; 4096, or the model's own length, by default")
@click.option("--arch", metavar="FILE", help="file with the model's architecture, as serve takes it")
@click.option("--kv-cache-dtype", default="auto", show_default=True, help="of keys and values")
@click.option("--threads", type=int, help="CPU threads; the physical cores by default")
@click.option("--bandwidth", type=float, metavar="GB/s", help="of memory, instead of what is measured or known")
@click.option("--compute", type=float, metavar="GFLOP/s", help="of matrix products, likewise")
@click.option("--json", "as_json", is_flag=True, help="print one JSON object")
def command(model: str, bandwidth: float | None, compute: float | None, as_json: bool, **values: Any) -> None:
    """Say whether MODEL would work and fit, how fast it would be, and with which flags, without loading it.

    The machine's bandwidth and its rate of matrix products are measured, which takes a few seconds.
    """
    from moesaic.adapt.planning import plan

    found = plan(
        model,
        bandwidth=None if bandwidth is None else bandwidth * GIGA,
        compute=None if compute is None else compute * GIGA,
        **values,
    )
    if as_json:
        click.echo(json.dumps(asdict(found)))
    else:
        _show(found)
    if found.chosen is None or not found.loads:
        raise SystemExit(1)


def _show(found: "Plan") -> None:
    machine = found.machine
    rates = ", ".join(f"{rate / 1e12:.3g} TFLOP/s in {kind}" for kind, rate in machine.compute.items())
    click.echo(
        f"{found.architecture}: {count_of(found.num_parameters)} parameters, "
        f"{count_of(found.num_active_parameters)} of them for each token"
    )
    click.echo(
        f"on {machine}: {size_of(machine.memory)}, {machine.bandwidth / GIGA:,.4g} GB/s, {rates} "
        f"({'measured now' if machine.measured else 'as stated'}); sequences of {found.context} tokens\n"
    )
    rows = [_columns(found), *(_row(found, option) for option in found.options)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        click.echo("  ".join(cells).rstrip())
    click.echo()
    for remark in found.remarks:
        click.echo(f"- {remark}")
    if found.chosen is not None:
        click.echo(" ".join(("\nmoesaic serve", found.path, *found.flags)))


def _columns(found: "Plan") -> list[str]:
    names = ["kept as", "weights", "KV of 1k", "left for KV", "sequences"]
    names += [f"tok/s at {speed.batch}" for speed in found.options[0].speeds]
    return [*names, "prompt tok/s"]


def _row(found: "Plan", option: "Option") -> list[str]:
    mark = " *" if option is found.chosen else ""
    short = f"{size_of(-option.cache_bytes)} short"
    return [
        ("as it is" if option.quantization in ("none", "auto") else option.quantization) + mark,
        size_of(option.weights.nbytes),
        size_of(option.cache.token * 1000),
        size_of(option.cache_bytes) if option.cache_bytes > 0 else short,
        str(option.sequences) if option.fits else "none",
        *(_rate(speed.decode_tokens) for speed in option.speeds),
        _rate(option.speeds[0].prefill_tokens),
    ]


def _rate(tokens: float) -> str:
    return f"{tokens:.1f}" if tokens < 100 else f"{tokens:,.0f}"
