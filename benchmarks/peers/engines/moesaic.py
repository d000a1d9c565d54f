"""moesaic as a peer: LLMEngine, stepped as `moesaic bench` steps it."""

from benchmarks.peers.protocol import Done, Load
from moesaic import EngineArgs, LLMEngine, SamplingParams, __version__
from moesaic.entrypoints.bench.offline import measured
from moesaic.entrypoints.bench.share import Meter


class Engine:
    """Sized for the work, with nothing switched off. Reads the machine's limits before, between and after its runs."""

    def __init__(self, load: Load) -> None:
        self.version = f"moesaic-{__version__}"
        self._engine = LLMEngine.from_engine_args(
            EngineArgs(
                model=load.model,
                dtype=load.dtype,
                device="cpu",
                threads=load.threads,
                max_model_len=load.max_len,
                max_num_seqs=load.max_batch,
                skip_tokenizer_init=True,
                **({"quantization": load.quantization} if load.quantization else {}),
            )
        )
        self._meter = Meter(self._engine)

    def run(self, prompts: list[list[int]], output_len: int) -> Done:
        params = SamplingParams(temperature=0.0, max_tokens=output_len, ignore_eos=True)
        run, result = measured(self._engine, prompts, params, self._meter)
        shares = {"prefill_tokens": result.prefill_share, "decode_tokens": result.decode_share}
        return Done(
            seconds=run.seconds,
            first_token_seconds=max(run.first_token),
            token_ids=run.token_ids,
            shares={metric: share for metric, share in shares.items() if share},
        )
