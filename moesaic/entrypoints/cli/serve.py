"""`moesaic serve`: the OpenAI-compatible server."""

import sys
from typing import Any

import click

from moesaic.engine.args import EngineArgs
from moesaic.entrypoints.cli.options import build, engine_args, options_of
from moesaic.entrypoints.server.settings import ServerArgs


@click.command("serve")
@click.argument("model_path", metavar="[MODEL]", required=False)
@options_of(EngineArgs)
@options_of(ServerArgs)
def command(model_path: str | None, **values: Any) -> None:
    """Serve MODEL (a folder, a Hugging Face id, or the embedded moe-model) over HTTP, as OpenAI's API."""
    args, settings = engine_args(model_path, values), build(ServerArgs, values)
    from moesaic.entrypoints.server.run import run_server

    sys.exit(run_server(args, settings))
