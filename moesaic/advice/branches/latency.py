"""Do tokens come in time, and if not, what are they waiting for?"""

from dataclasses import replace

from moesaic.advice.branches.common import MORE_MEMORY, cache_is_short, is_steered
from moesaic.advice.figures import FEW, Figures, Times
from moesaic.advice.tree import Advice, Answer, Branch, Question

MOST_FIRST_TOKEN = 1.0  # seconds, of 95 in 100 requests
MOST_INTER_TOKEN = 0.1
MOST_STALL = 3.0  # 95th percentile over the median of the time between tokens
MOST_ROUTING = 0.1  # of a step
MOST_OUTSIDE = 0.2


def _late_first(f: Figures) -> Answer:
    return _slower(f.first_token, MOST_FIRST_TOKEN, "first token")


def _late_next(f: Figures) -> Answer:
    return _slower(f.inter_token, MOST_INTER_TOKEN, "next token")


def _slower(times: Times | None, most: float, what: str) -> Answer:
    if times is None or times.count < FEW:
        return Answer(None, f"too few yet for percentiles of the {what}")
    text = f"{what} within {_time(times.p95)} for 95 of 100, {_time(times.median)} for half of them, {times.since}"
    return Answer(times.p95 > most, text)


def _queued(f: Figures) -> Answer:
    if f.queue is None or f.first_token is None:
        return Answer(None, "no figure of the time in the queue")
    text = f"of {_time(f.first_token.mean)} to the first token on average, {_time(f.queue.mean)} in the queue"
    return Answer(f.queue.mean > f.first_token.mean / 2, text)


def _stalls(f: Figures) -> Answer:
    if f.inter_token is None or not f.inter_token.median:
        return Answer(None, "no figure of the time between tokens")
    ratio = f.inter_token.p95 / f.inter_token.median
    return Answer(ratio > MOST_STALL, f"the slowest of 20 tokens takes {ratio:.1f} times the median")


def _routing_is_slow(f: Figures) -> Answer:
    if f.routing_share is None:
        return Answer(None, "no figure of the time in routing")
    return Answer(f.routing_share > MOST_ROUTING, f"{f.routing_share:.1%} of a step goes into choosing experts")


def _outside(f: Figures) -> Answer:
    if f.outside_model is None or f.step_seconds is None:
        return Answer(None, "no steps yet")
    text = f"{f.outside_model:.0%} of a step's {_time(f.step_seconds)} is not the model's"
    return Answer(f.outside_model > MOST_OUTSIDE, text)


def _time(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"


ROUTING = Question(
    f"Does choosing experts take over {MOST_ROUTING:.0%} of a step?",
    _routing_is_slow,
    yes=Question(
        "Is routing steered for all requests?",
        is_steered,
        yes=Advice(
            "A routing function of --moe-routing-func runs for every layer of every step: the log names slow "
            "ones. Let it work on whole tensors, without loops over tokens, and return early where no token "
            "has its tags."
        ),
        no=Advice(
            "The model is small, or steps hold few tokens, so that routers weigh more than elsewhere: more requests at "
            "once make their share smaller."
        ),
    ),
)
LATENCY = Branch(
    "latency",
    [
        Question(
            f"Do 5 in 100 requests wait over {MOST_FIRST_TOKEN:g} s for their first token?",
            _late_first,
            yes=Question(
                "Do they spend over half of it in the queue?",
                _queued,
                yes=Question(
                    "Is the KV cache full, or were sequences preempted?",
                    cache_is_short,
                    yes=Advice(MORE_MEMORY + "Or take fewer requests: no setting makes a full machine quick."),
                    no=Advice(
                        "Raise --max-num-seqs, so that requests begin instead of waiting; give those that matter a "
                        "priority (lower goes first)."
                    ),
                ),
                no=Advice(
                    "Prompts take that long to compute: a larger --max-num-batched-tokens takes them in fewer steps "
                    "(and makes decoding neighbours wait longer); put what prompts share at their beginning, where "
                    "--enable-prefix-caching finds it; --quantization w8a8 computes prompts fastest."
                ),
            ),
        ),
        Question(
            f"Do 5 in 100 tokens come over {MOST_INTER_TOKEN * 1e3:g} ms after the one before?",
            _late_next,
            yes=replace(
                ROUTING,
                no=Question(
                    f"Is the 95th percentile over {MOST_STALL:g} times the median?",
                    _stalls,
                    yes=Advice(
                        "Chunks of others' prompts stall decoding: lower --max-num-batched-tokens, so that a step "
                        "takes less of a prompt. First tokens then come later."
                    ),
                    no=Advice(
                        "Steps are that slow throughout. moesaic bench latency says how near to the machine's limit "
                        "they are; fewer bits (--quantization w4a16), fewer sequences at once (--max-num-seqs) or "
                        "fewer experts a token (--moe-top-k, which changes answers) make them shorter."
                    ),
                ),
            ),
        ),
        ROUTING,
        Question(
            f"Is over {MOST_OUTSIDE:.0%} of a step's time spent outside the model?",
            _outside,
            yes=Advice(
                "Look at what surrounds it: sampling with top-p or log-probabilities over a large vocabulary, "
                "--diagnose, other processes on the cores (--threads leaves some free). On small models it is normal."
            ),
        ),
    ],
)
