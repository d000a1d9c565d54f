"""What several branches ask and advise."""

from moesaic.advice.figures import Figures
from moesaic.advice.tree import Answer

FULL = 0.9  # of the KV cache
MOST_PREEMPTED = 0.01  # preemptions for each completion
MORE_MEMORY = (
    "Give the KV cache more memory (--kv-cache-memory, or --gpu-memory-utilization), or take less for weights "
    "(--quantization w8a16 or w4a16: experts are most of them). "
)


def is_steered(f: Figures) -> Answer:
    if f.steered_by:
        return Answer(True, f"routes are changed by {', '.join(f.steered_by)}")
    return Answer(False, "no routing profile, routing function or server-wide top-k is known to be in use")


def was_preempted(f: Figures) -> Answer:
    text = f"{f.preemptions} preemptions for {f.finished} completions"
    return Answer(f.preemptions > MOST_PREEMPTED * max(f.finished, 1), text)


def cache_is_short(f: Figures) -> Answer:
    if f.kv_usage is None:
        return Answer(None, "no figure of the KV cache's use")
    preempted = was_preempted(f)
    return Answer(f.kv_usage >= FULL or preempted.yes, f"{f.kv_usage:.0%} of the KV cache in use, {preempted.because}")
