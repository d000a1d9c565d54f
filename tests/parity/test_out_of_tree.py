"""The two walked-through examples against transformers: logits in batches and chunks, greedy tokens when preempted."""

import pytest
import torch

from moesaic import LLM, SamplingParams
from moesaic.core.errors import UnsupportedError
from moesaic.entrypoints.bench.share import formats_of
from moesaic.models.class_model import ClassModel
from tests.out_of_tree import ARCHITECTURES, my_pkg, registrations, rename_architecture  # noqa: F401
from tests.parity.driver import Driver, load, relative_difference
from tests.parity.test_families import CHUNKS, TOLERANCE, random_streams, reference_logits
from tests.tiny_models import tiny_reference


@pytest.fixture(scope="module")
def reference():
    return tiny_reference("olmoe")


@pytest.fixture(params=ARCHITECTURES)
def checkpoint(request, my_pkg, reference, tmp_path):  # noqa: F811
    reference.save_pretrained(tmp_path)
    rename_architecture(tmp_path, request.param)
    return tmp_path


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_logits(checkpoint, reference, backend):
    streams = random_streams()
    expected = reference_logits(reference, streams)
    model = load(checkpoint, backend=backend)
    assert model.spec.num_parameters == sum(p.numel() for p in reference.parameters())
    for name, chunks in CHUNKS.items():
        logits = Driver(model).run(streams, chunks)
        worst = max(relative_difference(logits[i], expected[i]) for i in streams)
        assert worst < TOLERANCE, f"{name}: {worst:.2e}"


@pytest.mark.parametrize("eager", [False, True])
def test_greedy_tokens(checkpoint, reference, eager):
    """In one batch, in chunks of a small budget, and with too few blocks for all at once."""
    prompts = [list(range(1, 1 + n)) for n in (3, 40, 17, 5)]
    llm = LLM(
        str(checkpoint),
        skip_tokenizer_init=True,
        kv_cache_memory="72KiB",
        max_num_batched_tokens=16,
        max_model_len=96,
        enforce_eager=eager,
    )
    engine = llm.llm_engine.engine
    params = SamplingParams(max_tokens=24, temperature=0)
    outputs = llm.generate([{"prompt_token_ids": p} for p in prompts], params, use_tqdm=False)
    assert engine.stats.preemptions_total > 0, engine.executor.kv
    runner = engine.executor.runner
    assert eager or runner.recorded.program is not None
    counts = engine.executor.model.expert_stats.counts
    assert counts.shape == (3, 8) and (counts.sum(1) == counts.sum(1)[0]).all() and counts.sum() > 0
    if isinstance(engine.executor.model, ClassModel):
        with pytest.raises(UnsupportedError, match="MyModelForCausalLM has no spec"):
            formats_of(llm.llm_engine)
    for prompt, output in zip(prompts, outputs, strict=True):
        expected = reference.generate(torch.tensor([prompt]), max_new_tokens=24, do_sample=False)[0, len(prompt) :]
        assert output.outputs[0].token_ids == expected.tolist()


def test_requests_steer_the_experts(checkpoint, reference, tmp_path_factory):
    """As they steer the same model of ours, one by one and by the server's top_k."""
    ours = tmp_path_factory.mktemp("ours")
    reference.save_pretrained(ours)
    wanted = [{"top_k": 1}, {"top_k": 6, "layers": [1]}, {"ban": [0, 1, 2], "bias": {5: 1.0}}, {}]
    params = [SamplingParams(max_tokens=8, temperature=0, ignore_eos=True, routing=options) for options in wanted]
    tokens = []
    for path, kwargs in ((ours, {}), (checkpoint, {}), (checkpoint, {"moe_top_k": 1})):
        llm = LLM(str(path), skip_tokenizer_init=True, threads=1, moe_backend="cpu", **kwargs)
        outputs = llm.generate([[5, 6, 7]] * 4, params, use_tqdm=False)
        tokens.append([output.outputs[0].token_ids for output in outputs])
    assert tokens[0] == tokens[1]
    assert tokens[0][0] == tokens[2][0] == tokens[2][3] != tokens[0][3]
