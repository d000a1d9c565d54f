"""Do experts get enough rows at once?"""

from moesaic.advice.branches.common import FULL
from moesaic.advice.figures import Figures
from moesaic.advice.tree import Advice, Answer, Branch, Question

LEAST_EFFICIENCY = 0.5
SMALL_STEP = 8  # tokens


def _sparse(f: Figures) -> Answer:
    if f.compute_efficiency is None:
        return Answer(None, "no figure of compute efficiency")
    text = f"{f.compute_efficiency:.0%} of the rows of experts' blocks hold tokens"
    return Answer(f.compute_efficiency < LEAST_EFFICIENCY, text)


def _aligned(f: Figures) -> Answer:
    size = f.flags.get("moe_block_size")
    if size:
        return Answer(True, f"--moe-block-size {size}")
    if f.flags.get("enable_moe_block_align"):
        return Answer(True, "--enable-moe-block-align")
    return Answer(False if f.flags else None, "no block size is set" if f.flags else "flags are not known")


def _small_steps(f: Figures) -> Answer:
    if f.tokens_per_step is None:
        return Answer(None, "no steps yet")
    return Answer(f.tokens_per_step < SMALL_STEP, f"{f.tokens_per_step:.1f} tokens in a step on average")


def _held_back(f: Figures) -> Answer:
    """Requests wait although there is room in the cache: the number of sequences is what stops them."""
    if f.kv_usage is None:
        return Answer(None, "no figure of the KV cache's use")
    text = f"{f.running} sequences run and {f.waiting} wait, with {f.kv_usage:.0%} of the KV cache in use"
    return Answer(f.waiting > 0 and f.kv_usage < FULL, text)


HELD_BACK = Question(
    "Do requests wait although the KV cache has room?",
    _held_back,
    yes=Advice(
        "The batch is held back by its number of sequences or tokens: raise --max-num-seqs, or "
        "--max-num-batched-tokens if prompts are long. Larger batches give more tokens a second, each a little later."
    ),
)
COMPUTE = Branch(
    "compute efficiency",
    [
        Question(
            f"Do fewer than {LEAST_EFFICIENCY:.0%} of the rows of experts' blocks hold tokens?",
            _sparse,
            yes=Question(
                "Is the size of blocks set by a flag?",
                _aligned,
                yes=Advice("Leave out --enable-moe-block-align, or lower --moe-block-size: the results are the same."),
                no=Question(
                    f"Do steps hold fewer than {SMALL_STEP} tokens?",
                    _small_steps,
                    yes=HELD_BACK,  # else there are few clients, and nothing to change
                    no=Advice(
                        "Each expert gets few rows of a step, so that weights are read for few tokens: more sequences "
                        "at once (--max-num-seqs) while decoding, a larger --max-num-batched-tokens for prompts. With "
                        "as few clients as there are it is as it must be."
                    ),
                ),
            ),
        ),
        HELD_BACK,
    ],
)
