"""`moesaic generate`: one prompt, completed in this process, printed as it comes."""

import json
import sys
from dataclasses import asdict
from typing import Any

import click

from moesaic.core.errors import MoesaicError
from moesaic.core.outputs import RequestOutput
from moesaic.core.sampling_params import SamplingParams
from moesaic.engine.args import EngineArgs
from moesaic.entrypoints.cli.local import LocalModel
from moesaic.entrypoints.cli.options import SAMPLING, build, engine_args, options_of

DEFAULT_MAX_TOKENS = 256


@click.command("generate")
@click.argument("prompt")
@click.option("--json", "as_json", is_flag=True, help="print one line of JSON: texts, token ids, why each ended")
@options_of(SamplingParams, SAMPLING, max_tokens=DEFAULT_MAX_TOKENS)
@options_of(EngineArgs)
def command(prompt: str, as_json: bool, **values: Any) -> None:
    """Complete PROMPT (- reads it from standard input) and exit. With --seed the result is reproducible."""
    text = sys.stdin.read() if prompt == "-" else prompt
    params = build(SamplingParams, {k: v for k, v in values.items() if k in SAMPLING})
    model = LocalModel(engine_args(None, values))
    output = _run(model, text, params, shown=not as_json and params.n == 1)
    if as_json:
        click.echo(json.dumps(_record(output), ensure_ascii=False))
    elif params.n > 1:
        for completion in output.outputs:
            click.echo(f"[{completion.index}] {completion.text}")


def _run(model: LocalModel, prompt: str, params: SamplingParams, shown: bool) -> RequestOutput:
    """The finished output; its text is printed as it comes if `shown`."""
    printed = 0
    for output in model.outputs(prompt, params):
        if output.error is not None:
            raise MoesaicError(output.error)
        if shown:
            click.echo(output.text[printed:], nl=False)
            printed = len(output.text)
    if shown:
        click.echo()
    return output


def _record(output: RequestOutput) -> dict[str, Any]:
    completions = [asdict(completion) for completion in output.outputs]
    wanted = ("index", "text", "token_ids", "finish_reason", "stop_reason")
    return {
        "prompt": output.prompt,
        "prompt_tokens": len(output.prompt_token_ids),
        "outputs": [{name: completion[name] for name in wanted} for completion in completions],
    }
