"""`moesaic inspect`: what a checkpoint is, how it would be used, what it takes, and what is wrong with it."""

import json
import os
import sys

import click

from moesaic.adapt.report import report_on
from moesaic.adapt.survey import survey


@click.command("inspect")
@click.argument("path")
@click.option("--arch", metavar="FILE", help="file with the architecture, whatever config.json names")
@click.option("--tensors", is_flag=True, help="list every tensor too")
@click.option("--json", "as_json", is_flag=True, help="print a JSON object, with all that was found")
def command(path: str, arch: str | None, tensors: bool, as_json: bool) -> None:
    """Say what the checkpoint PATH (a folder, a GGUF file or a Hugging Face id) is, without loading it: headers alone
    are read.

    Exits with 1 where a file is damaged or something does not fit the model.
    """
    found = survey(path)
    report = report_on(found, arch)
    rows = (
        [(n, i.dtype, i.shape, os.path.relpath(i.file, found.path)) for n, i in found.tensors.items()]
        if tensors
        else []
    )
    if as_json:
        listed = [dict(zip(("name", "dtype", "shape", "file"), row, strict=True)) for row in rows]
        click.echo(json.dumps(report.as_dict() | ({"every_tensor": listed} if tensors else {}), indent=1))
    else:
        from moesaic.adapt.show import console, show, show_tensors

        to = console()
        show_tensors(rows, to)
        show(report, to)
    sys.exit(0 if report.ok else 1)
