"""A GGUF file with quantised weights, by llama.cpp itself, in the environment where llama-cpp-python is installed:

python benchmarks/peers/quantize_gguf.py mini-bf16.gguf mini-q4_0.gguf q4_0
"""

import argparse

TYPES = {"q8_0": "LLAMA_FTYPE_MOSTLY_Q8_0", "q4_0": "LLAMA_FTYPE_MOSTLY_Q4_0"}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="in f32 or bf16")
    parser.add_argument("out")
    parser.add_argument("type", choices=TYPES)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    import llama_cpp as lib

    params = lib.llama_model_quantize_default_params()
    params.ftype = getattr(lib, TYPES[args.type])
    params.nthread = args.threads
    if status := lib.llama_model_quantize(args.source.encode(), args.out.encode(), params):
        raise SystemExit(f"llama.cpp could not quantise {args.source}: status {status}")


if __name__ == "__main__":
    main()
