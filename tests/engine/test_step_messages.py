"""Plans and results cross a process boundary as they are: an engine whose every message is encoded and decoded
gives the same tokens; and messages between processes survive the round trip."""

import msgspec
import pytest

from moesaic import LLM, SamplingParams
from moesaic.core import messages
from moesaic.core.step import StepPlan, StepResult
from tests.unit.requests import make_request


class EncodingExecutor:
    """An executor behind msgpack, as another process would be."""

    def __init__(self, inner) -> None:
        self.inner = inner
        self.bytes = 0

    def execute(self, plan: StepPlan) -> StepResult:
        data = msgspec.msgpack.encode(plan)
        result = msgspec.msgpack.encode(self.inner.execute(msgspec.msgpack.decode(data, type=StepPlan)))
        self.bytes += len(data) + len(result)
        return msgspec.msgpack.decode(result, type=StepResult)


@pytest.mark.parametrize("family", ["granitemoe", "lfm2_moe"])
def test_encoded_plans_give_the_same_tokens(tiny_model, family):
    params = SamplingParams(n=2, temperature=0.9, seed=4, max_tokens=10, logprobs=2, prompt_logprobs=1, ignore_eos=True)
    outputs = []
    for encoded in (False, True):
        llm = LLM(tiny_model(family), skip_tokenizer_init=True, threads=1, max_num_batched_tokens=20)
        engine = llm.llm_engine.engine
        if encoded:
            engine.executor = EncodingExecutor(engine.executor)
        prompts = [{"prompt_token_ids": list(range(i, i + 25))} for i in range(4)]
        outputs.append(llm.generate(prompts, params, use_tqdm=False))
    for plain, crossed in zip(*outputs, strict=True):
        assert [c.token_ids for c in plain.outputs] == [c.token_ids for c in crossed.outputs]
        assert plain.prompt_logprobs == crossed.prompt_logprobs
    assert engine.executor.bytes > 0


@pytest.mark.parametrize("message", [messages.Shutdown(), messages.Abort([("a", -1), ("b", 2)])], ids=str)
def test_messages_to_the_engine_round_trip(message):
    assert messages.decode_to_engine(messages.encode(message)) == message


def test_a_request_round_trips():
    request = make_request([1, 2, 3], logit_bias={7: -1.5}, stop=["a"], seed=3, n=2)
    assert messages.decode_to_engine(messages.encode(messages.Add(request))) == messages.Add(request)


def test_anything_else_is_refused():
    with pytest.raises(msgspec.DecodeError):
        messages.decode_to_engine(b"\x80\x04pickled")
