"""A checkpoint as llama.cpp reads it, by llama.cpp's own converter (llama-cpp-python's source archive vendors it):

    python -m benchmarks.peers.to_gguf vendor/llama.cpp CHECKPOINT OUT.gguf --outtype f32

The converter refuses tokenizers that it does not know. A benchmark feeds token ids, so any known one will do.
"""

import sys
from pathlib import Path

import click


@click.command()
@click.argument("source", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("checkpoint", type=click.Path(exists=True, file_okay=False))
@click.argument("out")
@click.option("--outtype", type=click.Choice(["f32", "bf16"]), default="f32", show_default=True)
def main(source: Path, checkpoint: str, out: str, outtype: str) -> None:
    """Convert CHECKPOINT with the converter in SOURCE, a llama.cpp source tree."""
    sys.path.insert(0, str(source))
    import convert_hf_to_gguf as converter
    from conversion.base import TextModel

    TextModel.get_vocab_base_pre = lambda self, tokenizer: "gpt-2"
    sys.argv = ["convert_hf_to_gguf.py", checkpoint, "--outfile", out, "--outtype", outtype]
    converter.main()


if __name__ == "__main__":
    main()
