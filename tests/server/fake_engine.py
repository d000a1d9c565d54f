"""An engine without a model: the real front end (tokenizer, checks, detokenizer) around a script of tokens."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers

from moesaic.core.errors import EngineDeadError, MoesaicError
from moesaic.core.messages import EngineInfo, EngineStats
from moesaic.core.outputs import RequestOutput
from moesaic.core.request import EngineRequest, LogprobRow, SequenceUpdate
from moesaic.core.routing import LayerShape, MoeShape
from moesaic.core.sampling_params import SamplingParams
from moesaic.engine.args import EngineArgs
from moesaic.engine.frontend import Frontend, Prompt
from moesaic.engine.metrics import Metrics
from moesaic.engine.tokenizer import Tokenizer

EOS = 256
MAX_MODEL_LEN = 200
TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def byte_tokenizer(folder: Path) -> Tokenizer:
    """A tokenizer of 256 bytes and an end, with a chat template that shows what it was given."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Backend(models.BPE({character: i for i, character in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<end>"])
    backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": TEMPLATE, "eos_token": "<end>"}))
    return Tokenizer(str(folder))


def fake_info() -> EngineInfo:
    return EngineInfo(
        model_path="unused",
        names=["fake", "fake/alias"],
        architecture="FakeForCausalLM",
        description="a script",
        max_model_len=MAX_MODEL_LEN,
        vocab_size=257,
        eos_token_ids=[EOS],
        num_blocks=64,
        block_size=16,
        dtype="float32",
        device="cpu",
        seed=0,
        startup_seconds=0.0,
        moe=MoeShape([LayerShape(0, 8, 2), LayerShape(2, 8, 2)]),
    )


class FakeEngine:
    """Says `script` to every prompt, a byte a step, then ends.

    Attributes:
        script: completion j of a request says script.format(j=j).
        error: raised by generate, if set.
        fails_after: steps after which the engine reports an error of the sequence.
        hang: steps after which it says nothing more.
        requests: every request that was admitted.
        running, aborted: ids.
    """

    def __init__(self, tokenizer: Tokenizer | None) -> None:
        self.info = fake_info()
        self.tokenizer = tokenizer
        self.stats = EngineStats(kv_blocks_total=self.info.num_blocks)
        self.metrics = Metrics(self.info)
        self.script = "The answer {j} is 42."
        self.error: Exception | None = None
        self.fails_after: int | None = None
        self.hang: int | None = None
        self.dead = False
        self.requests: list[EngineRequest] = []
        self.running: set[str] = set()
        self.aborted: list[str] = []
        self._frontend = Frontend(self.info, tokenizer)
        self.profiles = self._frontend.profiles
        self.args = EngineArgs()
        self.answers: dict[str, Callable[..., Any]] = {"experts": lambda **_: None}

    async def ask(self, kind: str, **arguments: Any) -> Any:
        return self.answers[kind](**arguments)

    async def refresh(self) -> None:
        if "summary" in self.answers:
            self.metrics.observe_moe(self.answers["summary"]())

    async def generate(
        self,
        prompt: Prompt,
        params: SamplingParams,
        request_id: str,
        *,
        priority: int = 0,
        cache_salt: str = "",
        delta: bool = False,
    ) -> AsyncIterator[RequestOutput]:
        self.check_health()
        if self.error is not None:
            raise self.error
        request = self._frontend.admit(
            request_id, prompt, params, priority=priority, cache_salt=cache_salt, delta=delta
        )
        self.requests.append(request)
        self.running.add(request_id)
        self.metrics.arrive(request_id)
        finished = False
        try:
            step = 0
            while not finished:
                await asyncio.sleep(0)
                if self.hang == step:
                    await asyncio.Event().wait()
                outputs, _ = self._frontend.process(self._updates(request, step))
                for output in outputs:
                    finished = output.finished
                    yield output
                step += 1
        finally:
            self.running.discard(request_id)
            if not finished:
                self._frontend.forget(request_id)
                self.aborted.append(request_id)

    def _updates(self, request: EngineRequest, step: int) -> list[SequenceUpdate]:
        return [self._update(request, index, step) for index in range(request.params.n)]

    def _update(self, request: EngineRequest, index: int, step: int) -> SequenceUpdate:
        text = self.script.format(j=index).encode()
        token = _BYTE_IDS[text[step]] if step < len(text) else EOS
        update = SequenceUpdate(
            request.request_id, index, [token], num_cached=min(16, len(request.prompt_token_ids) - 1)
        )
        if self.fails_after is not None and step >= self.fails_after:
            return SequenceUpdate(
                request.request_id, index, [], finish_reason="error", error="the model's logits are NaN"
            )
        if token == EOS:
            update.finish_reason = "stop"
        elif step + 1 == request.max_tokens:
            update.finish_reason = "length"
        if request.params.logprobs is not None:
            update.logprobs = [_row(token, request.params.logprobs)]
        if request.params.prompt_logprobs is not None and step == 0 and index == 0:
            update.prompt_logprobs = [_row(t, request.params.prompt_logprobs) for t in request.prompt_token_ids[1:]]
        return update

    def check_health(self) -> None:
        if self.dead:
            raise EngineDeadError("the engine is dead: it was told to be")

    async def wait_dead(self) -> MoesaicError:
        await asyncio.Event().wait()
        raise AssertionError

    async def shutdown(self) -> None:
        self.dead = True


def _row(token: int, count: int) -> LogprobRow:
    """The chosen token is the second likeliest."""
    others = [t for t in (33, 34, 35, 36) if t != token][:count]
    ids = [token, *others]
    return LogprobRow(ids, [-1.0, *(-0.5 - 1.0 * i for i in range(len(others)))], [2, *range(1, len(others) + 1)])


def _byte_ids() -> dict[int, int]:
    """Byte -> token id in the tokenizer above (GPT-2's stand-ins for bytes, sorted)."""
    visible = [*range(33, 127), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [b for b in range(256) if b not in visible]
    spelled = {b: chr(b) for b in visible} | {b: chr(256 + i) for i, b in enumerate(hidden)}
    order = {character: i for i, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    return {b: order[character] for b, character in spelled.items()}


_BYTE_IDS = _byte_ids()


def read_events(text: str) -> list[Any]:
    """The messages of a stream of server-sent events; "[DONE]" stays a string."""
    blocks = [block for block in text.split("\n\n") if block]
    assert all(block.startswith("data: ") and "\n" not in block for block in blocks), text
    return [block[6:] if block == "data: [DONE]" else json.loads(block[6:]) for block in blocks]
