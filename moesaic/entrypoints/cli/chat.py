"""`moesaic chat`: a conversation, with a model in this process or on a server."""

import sys
from collections.abc import Iterator
from typing import Any

import click

from moesaic.core.errors import ConfigError, RequestError
from moesaic.core.sampling_params import SamplingParams
from moesaic.engine.args import EngineArgs
from moesaic.entrypoints.cli.options import SAMPLING, build, engine_args, options_of
from moesaic.entrypoints.cli.talk import LocalTalk, RemoteTalk, Talk

HELP = "/clear forgets the conversation, /quit ends (so does Ctrl-D), Ctrl-C stops an answer"
OFFERED = {name: text for name, text in SAMPLING.items() if name != "n"}


@click.command("chat")
@click.argument("model_path", metavar="[MODEL]", required=False)
@click.option("--url", help="talk with this server (http://host:port) instead of loading a model")
@click.option("--api-key", envvar="MOESAIC_API_KEY", metavar="KEY", help="that server's API key")
@click.option("--system", help="instruction that begins the conversation")
@options_of(SamplingParams, OFFERED, max_tokens=None)
@options_of(EngineArgs)
@click.pass_context
def command(
    ctx: click.Context,
    /,
    model_path: str | None,
    url: str | None,
    api_key: str | None,
    system: str | None,
    **values: Any,
) -> None:
    """Talk with MODEL. On a terminal it is interactive; otherwise each line of standard input is one message."""
    params = build(SamplingParams, {k: v for k, v in values.items() if k in OFFERED})
    args = engine_args(model_path, values)
    talk: Talk
    if url is None:
        talk = LocalTalk(args, params)
    else:
        _refuse_engine_flags(ctx)
        named = model_path is not None or not _is_default(ctx, "model")
        given = {name for name in OFFERED if not _is_default(ctx, name)}
        if not _is_default(ctx, "seed"):
            given.add("seed")
        fields = {name: values[name] for name in given}
        talk = RemoteTalk(url, api_key, args.model if named else None, fields)
    converse(talk, system, _lines(talk, interactive=sys.stdin.isatty()))


def _is_default(ctx: click.Context, name: str) -> bool:
    return ctx.get_parameter_source(name) == click.core.ParameterSource.DEFAULT


def _refuse_engine_flags(ctx: click.Context) -> None:
    """Flags of a model in this process say nothing to a server."""
    from dataclasses import fields

    for f in fields(EngineArgs):
        if f.name not in ("model", "seed") and not _is_default(ctx, f.name):
            raise ConfigError(f"--{f.name.replace('_', '-')} is the server's to set: leave it out with --url")


def converse(talk: Talk, system: str | None, lines: Iterator[str]) -> None:
    """Answer each line; an answer that fails leaves the conversation as it was."""
    beginning = [{"role": "system", "content": system}] if system else []
    messages = list(beginning)
    for line in lines:
        match line.strip():
            case "":
                continue
            case "/quit" | "/exit":
                return
            case "/clear":
                messages = list(beginning)
            case "/help":
                click.echo(HELP)
            case text if text.startswith("/") and " " not in text:
                click.echo(f"no such command; {HELP}")
            case text:
                messages.append({"role": "user", "content": text})
                answer = _answer(talk, messages)
                if answer is None:
                    messages.pop()
                else:
                    messages.append({"role": "assistant", "content": answer})


def _answer(talk: Talk, messages: list[dict[str, Any]]) -> str | None:
    """Print the answer as it comes; None when there is none. Ctrl-C keeps what has come."""
    pieces: list[str] = []
    stream = talk.answer(messages)
    try:
        for piece in stream:
            pieces.append(piece)
            click.echo(piece, nl=False)
    except KeyboardInterrupt:
        click.echo(" [stopped]", nl=False)
    except RequestError as error:
        if not sys.stdin.isatty():
            raise
        click.echo(f"error: {error}", err=True)
        return None
    finally:
        stream.close()
    click.echo()
    return "".join(pieces)


def _lines(talk: Talk, interactive: bool) -> Iterator[str]:
    """What the user says."""
    if not interactive:
        yield from sys.stdin
        return
    import contextlib

    from rich.console import Console
    from rich.text import Text

    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  (line editing and history for input())
    console = Console(highlight=False)
    console.print(Text.assemble((talk.name, "bold"), "  ", (HELP, "dim")))
    while True:
        try:
            line = console.input("[bold green]you[/] ")
        except (EOFError, KeyboardInterrupt):
            console.print()
            return
        yield line
