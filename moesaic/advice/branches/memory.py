"""Is there memory enough, and is it used?"""

from moesaic.advice.branches.common import FULL, MORE_MEMORY, MOST_PREEMPTED, was_preempted
from moesaic.advice.figures import Figures
from moesaic.advice.tree import Advice, Answer, Branch, Question

MOST_FRAGMENTATION = 0.3


def _full(f: Figures) -> Answer:
    if f.kv_usage is None:
        return Answer(None, "no figure of the KV cache's use")
    text = f"{f.kv_usage:.0%} of the KV cache in use, {f.waiting} sequences wait"
    return Answer(f.kv_usage >= FULL and f.waiting > 0, text)


def _wide_cache(f: Figures) -> Answer:
    dtype = f.flags.get("kv_cache_dtype")
    if dtype is None:
        return Answer(None, "the KV cache's dtype is not known")
    return Answer(dtype != "int8", f"--kv-cache-dtype {dtype}")


def _fragmented(f: Figures) -> Answer:
    if f.kv_fragmentation is None:
        return Answer(None, "nothing lies in the KV cache now, so that nothing is fragmented")
    text = f"{f.kv_fragmentation:.0%} of the places in used KV blocks are empty"
    return Answer(f.kv_fragmentation > MOST_FRAGMENTATION and (f.kv_usage or 0) > 0.5, text)


def _loose_pages(f: Figures) -> Answer:
    if f.expert_fragmentation is None:
        return Answer(None, "no figure of the expert pages' fragmentation")
    text = f"{f.expert_fragmentation:.0%} of the memory of expert pages is empty"
    return Answer(f.expert_fragmentation > MOST_FRAGMENTATION, text)


MEMORY = Branch(
    "memory",
    [
        Question(
            f"Were there preemptions for over {MOST_PREEMPTED:.0%} of completions?",
            was_preempted,
            yes=Question(
                "Is the KV cache wider than 8 bits?",
                _wide_cache,
                yes=Advice(
                    MORE_MEMORY + "--kv-cache-dtype int8 holds nearly twice the tokens of 16 bits. Else admit fewer at "
                    "once (--max-num-seqs): a preempted sequence is computed again."
                ),
                no=Advice(
                    MORE_MEMORY + "Else admit fewer at once (--max-num-seqs): a preempted sequence is computed again."
                ),
            ),
        ),
        Question(
            "Is the KV cache full while requests wait?",
            _full,
            yes=Advice(
                MORE_MEMORY + "--kv-cache-dtype int8 holds nearly twice the tokens of 16 bits; a smaller max_tokens of "
                "requests frees blocks sooner; moesaic plan says what another precision leaves."
            ),
        ),
        Question(
            f"Are over {MOST_FRAGMENTATION:.0%} of the places in used KV blocks empty, with half the cache in use?",
            _fragmented,
            yes=Advice("Sequences are short for their blocks: lower --block-size."),
        ),
        Question(
            f"Is over {MOST_FRAGMENTATION:.0%} of the memory of expert pages empty?",
            _loose_pages,
            yes=Advice(
                "Pages are padded to whole panels of rows and to 4 KiB, which small experts pay most for: another "
                "--quantization may fit them better (moesaic plan shows the bytes of each)."
            ),
        ),
    ],
)
