"""`moesaic convert`: a checkpoint in another layout."""

import json
from dataclasses import asdict

import click

from moesaic.core.units import size_of


@click.command("convert")
@click.argument("src")
@click.argument("dst")
@click.option(
    "--dtype", type=click.Choice(("float32", "bfloat16", "float16")), help="of matrices; as stored by default"
)
@click.option("--max-shard-size", default="5GB", show_default=True, metavar="SIZE", help="of a file of weights")
@click.option("--arch", metavar="FILE", help="file with the architecture, as serve takes it")
@click.option("--force", is_flag=True, help="write into a folder that holds something else")
@click.option("--json", "as_json", is_flag=True, help="print one JSON object")
def command(
    src: str, dst: str, dtype: str | None, max_shard_size: str, arch: str | None, force: bool, as_json: bool
) -> None:
    """Write the checkpoint SRC (a folder, a GGUF file or a Hugging Face id, in any layout that can be read) into folder
    DST, as sharded safetensors with the names of Hugging Face.

    Codes of quantised checkpoints become floats. What was written is read back, and listed with its SHA-256 in
    moesaic-manifest.json. A conversion that was stopped goes on where it stopped when it is run again.
    """
    from moesaic.adapt.conversion import convert
    from moesaic.adapt.machines import size_given

    most = size_given("--max-shard-size", max_shard_size)
    made = convert(src, dst, dtype=dtype, max_shard_size=most, arch=arch, force=force, progress=True)
    if as_json:
        click.echo(json.dumps(asdict(made)))
        return
    kept = f", {made.kept} of them from the last run" if made.kept else ""
    click.echo(
        f"{made.path}: {made.tensors} tensors, {size_of(made.nbytes)}, {made.files} files{kept}; read back and whole"
    )
