"""`moesaic convert`: a checkpoint in another layout."""

import json
from dataclasses import asdict
from typing import Any

import click

from moesaic.core.errors import ConfigError
from moesaic.core.units import size_of


@click.command("convert")
@click.argument("src")
@click.argument("dst")
@click.option(
    "--format",
    type=click.Choice(("hf", "packed")),
    default="hf",
    show_default=True,
    help="safetensors with the names of Hugging Face, or matrices as the CPU's kernels read them",
)
@click.option(
    "--dtype", type=click.Choice(("float32", "bfloat16", "float16")), help="of matrices; as stored by default"
)
@click.option(
    "--quantization",
    type=click.Choice(("auto", "none", "w8a16", "w4a16", "w8a8")),
    help="packed: how weights are kept, as serve takes it; auto (the default) as the checkpoint has them",
)
@click.option("--quantization-group-size", type=int, metavar="N", help="packed: inputs that share a scale; 128")
@click.option(
    "--quantization-config", metavar="PATTERN=FORMAT,...", help="packed: other formats for parts of the model"
)
@click.option(
    "--hot-experts",
    metavar="FILE",
    help="packed: which experts keep 8 bits: JSON, {layer: [experts]}, or recorded routes (`moesaic profile`), by "
    "which those do that carry most weight, a quarter of each layer",
)
@click.option("--max-shard-size", default="5GB", show_default=True, metavar="SIZE", help="of a file of weights")
@click.option("--arch", metavar="FILE", help="file with the architecture, as serve takes it")
@click.option("--force", is_flag=True, help="write into a folder that holds something else")
@click.option("--allow-nonfinite", is_flag=True, help="write weights that hold NaN or infinity too")
@click.option("--json", "as_json", is_flag=True, help="print one JSON object")
def command(
    src: str,
    dst: str,
    format: str,
    dtype: Any,
    max_shard_size: str,
    arch: str | None,
    force: bool,
    allow_nonfinite: bool,
    as_json: bool,
    **packing: Any,
) -> None:
    """Write the checkpoint SRC (a folder, a GGUF file or a Hugging Face id, in any layout that can be read) into folder
    DST: as sharded safetensors with the names of Hugging Face; or packed, quantised if you like, which loads as fast as
    the disk reads.

    Codes of quantised checkpoints become floats; packed, they stay what they are. What was written is read back, and
    listed with its SHA-256 in moesaic-manifest.json. A conversion that was stopped goes on where it stopped when it is
    run again.
    """
    from moesaic.adapt.conversion.convert import Packing, convert
    from moesaic.adapt.machines import size_given

    most = size_given("--max-shard-size", max_shard_size)
    if most == 0:
        raise ConfigError("--max-shard-size must be more than 0")
    given = {name: value for name, value in packing.items() if value is not None}
    made = convert(
        src,
        dst,
        format=format,
        dtype=dtype,
        packing=Packing(**given) if given else None,
        max_shard_size=most,
        arch=arch,
        force=force,
        allow_nonfinite=allow_nonfinite,
        progress=True,
    )
    if as_json:
        click.echo(json.dumps(asdict(made)))
        return
    kept = f", {made.kept} of them from the last run" if made.kept else ""
    click.echo(
        f"{made.path}: {made.tensors} tensors, {size_of(made.nbytes)}, {made.files} files{kept}; read back and whole"
    )
