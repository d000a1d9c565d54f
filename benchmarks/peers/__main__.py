"""`python -m benchmarks.peers`: moesaic and other engines on the same work, alternating. See benchmarks/README.md."""

import json
import sys
from pathlib import Path

import click

from benchmarks.peers.compare import Case, compare
from benchmarks.peers.process import Peer, PeerError
from benchmarks.peers.protocol import Load
from moesaic.engine.args import EMBEDDED_MODEL
from moesaic.engine.resolve import find_model, physical_cores
from moesaic.entrypoints.bench.report import report
from moesaic.entrypoints.bench.workload import model_case
from moesaic.entrypoints.cli.bench import BatchByLength

OURS = "moesaic"
OTHERS = ("transformers", "vllm", "llama_cpp")


def say(text: str) -> None:
    """Remarks go to stderr: stdout holds figures."""
    click.echo(text, err=True)


@click.command()
@click.option(
    "--model", default=EMBEDDED_MODEL, show_default=True, help="folder of the checkpoint that all engines read"
)
@click.option("--dtype", type=click.Choice(["float32", "bfloat16"]), default="float32", show_default=True)
@click.option("--quantization", help="of the weights, such as w8a16; --gguf must have as many bits")
@click.option("--threads", type=int, help="CPU threads of each engine; the machine's physical cores by default")
@click.option(
    "--peer", "names", type=click.Choice(OTHERS), multiple=True, help="only these; repeatable", default=OTHERS
)
@click.option(
    "--python", "pythons", multiple=True, metavar="PEER=PATH", help="a peer's own Python, where it is installed"
)
@click.option("--gguf", type=click.Path(exists=True), help="the same model in the same dtype, for llama.cpp")
@click.option("--w8a8", type=click.Path(exists=True), help="the same model in W8A8, for vllm")
@click.option("--batch-size", "batch_sizes", type=int, multiple=True, default=(1, 8, 32), show_default=True)
@click.option("--no-decode", is_flag=True, help="leave the decode cases out")
@click.option("--input-len", default=16, show_default=True, help="tokens of the prompts of decode cases")
@click.option("--output-len", default=64, show_default=True, help="tokens that decode cases generate")
@click.option(
    "--prefill",
    "prefills",
    type=BatchByLength(),
    multiple=True,
    default=("1x1024", "8x512"),
    show_default=True,
    help="prompts and tokens of each: cases that end with the first token; repeatable",
)
@click.option("--no-prefill", is_flag=True, help="leave these cases out")
@click.option(
    "--runs", type=click.IntRange(min=1), default=5, show_default=True, help="runs that count, after one that does not"
)
@click.option("--seed", default=0, show_default=True, help="of the prompts")
@click.option("--json-only", is_flag=True, help="print no table, only the JSON lines")
def main(
    model: str,
    dtype: str,
    quantization: str | None,
    threads: int | None,
    names: tuple[str, ...],
    pythons: tuple[str, ...],
    gguf: str | None,
    w8a8: str | None,
    batch_sizes: tuple[int, ...],
    no_decode: bool,
    input_len: int,
    output_len: int,
    prefills: tuple[tuple[int, int], ...],
    no_prefill: bool,
    runs: int,
    seed: int,
    json_only: bool,
) -> None:
    """Run the same batches through moesaic and through every other engine that is installed.

    A figure's value is moesaic's, its baseline the other engine's, its ratio how many times faster moesaic is.
    """
    folder = find_model(model)
    cases = [] if no_decode else [Case(batch, input_len, output_len) for batch in batch_sizes]
    cases += [] if no_prefill else [Case(batch, length, 1) for batch, length in prefills]
    load = Load(
        model=folder,
        dtype=dtype,
        threads=threads or physical_cores(),
        max_len=max(case.input_len + case.output_len for case in cases),
        max_batch=max(case.batch for case in cases),
        quantization=quantization,
        gguf=gguf and str(Path(gguf).resolve()),
        w8a8=w8a8 and str(Path(w8a8).resolve()),
    )
    own = dict(item.split("=", 1) for item in pythons)
    vocab_size = json.loads((Path(folder) / "config.json").read_text())["vocab_size"]
    peers: list[Peer] = []
    try:
        peers.append(Peer(OURS, sys.executable, load))
        for name in names:
            try:
                peers.append(Peer(name, own.get(name, sys.executable), load))
            except PeerError as error:
                say(f"{name} skipped: {error}")
        figures = compare(
            peers[0],
            peers[1:],
            cases,
            model=f"{model_case(folder, quantization or dtype)} threads={load.threads}",
            vocab_size=vocab_size,
            runs=runs,
            seed=seed,
            say=say,
        )
    finally:
        for peer in peers:
            peer.stop()
    report(figures, "moesaic against its peers (baseline: the peer's)", json_only)


if __name__ == "__main__":
    main()
