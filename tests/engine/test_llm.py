"""The Python API as its users know it: prompts in every form, parameters, outputs, several completions."""

import math

import pytest
import torch

from moesaic import LLM, EngineArgs, LLMEngine, SamplingParams
from moesaic.core.errors import ConfigError, RequestError

GREEDY = SamplingParams(temperature=0, max_tokens=12)


@pytest.fixture(scope="module")
def llm():
    return LLM("moe-model", dtype="float32", threads=1)


def one(llm, prompt="The router of a", **kwargs):
    """The first completion of one prompt."""
    params = SamplingParams(**({"temperature": 0, "max_tokens": 12} | kwargs))
    return llm.generate(prompt, params, use_tqdm=False)[0].outputs[0]


def test_every_form_of_a_prompt(llm):
    text = "Experts are"
    ids = llm.tokenizer.encode(text)
    forms = [text, {"prompt": text}, ids, {"prompt_token_ids": ids}, {"prompt_token_ids": torch.tensor(ids)}]
    outputs = llm.generate(forms, GREEDY, use_tqdm=False)
    assert len({tuple(o.outputs[0].token_ids) for o in outputs}) == 1
    assert [o.prompt for o in outputs] == [text, text, None, None, None]
    assert all(o.prompt_token_ids == ids and o.finished for o in outputs)
    assert llm.generate(text, GREEDY, use_tqdm=False)[0].text == outputs[0].text
    assert llm.tokenizer.decode(outputs[0].outputs[0].token_ids) == outputs[0].text


def test_outputs_keep_the_order_and_own_params_of_prompts(llm):
    params = [SamplingParams(temperature=0, max_tokens=m, ignore_eos=True) for m in (9, 1, 5)]
    outputs = llm.generate(["a", "b", "c"], params, use_tqdm=False)
    assert [o.prompt for o in outputs] == ["a", "b", "c"]
    assert [len(o.outputs[0].token_ids) for o in outputs] == [9, 1, 5]


def test_the_published_guide_runs():
    engine = LLMEngine.from_engine_args(EngineArgs(model="moe-model", load_format="dummy"))
    output = engine.generate(prompt="Explain MoE architecture")
    assert output.finished and isinstance(output.text, str) and output.text == output.outputs[0].text


def test_dummy_weights_depend_on_the_seed_alone():
    params = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
    texts = [
        LLM("moe-model", load_format="dummy", seed=s, threads=1).generate("x", params, use_tqdm=False)[0].text
        for s in (1, 1, 2)
    ]
    assert texts[0] == texts[1] != texts[2]


def test_engine_interface(llm):
    engine = llm.llm_engine
    engine.add_request("a", "One expert", GREEDY)
    engine.add_request("b", "Two experts", SamplingParams(max_tokens=3, temperature=0))
    with pytest.raises(RequestError, match="already in use"):
        engine.add_request("a", "again", GREEDY)
    finished = {}
    while engine.has_unfinished_requests():
        finished |= {o.request_id: o for o in engine.step() if o.finished}
    assert set(finished) == {"a", "b"}
    engine.add_request("c", "Three", SamplingParams(max_tokens=500, ignore_eos=True))
    engine.step()
    engine.abort_request("c")
    assert not engine.has_unfinished_requests() and engine.engine.stats.kv_blocks_used == 0
    engine.engine.check_integrity()


def test_generate_keeps_what_others_got(llm):
    engine = llm.llm_engine
    engine.add_request("other", "One expert", SamplingParams(temperature=0, max_tokens=3, ignore_eos=True))
    assert len(engine.generate("Two", GREEDY).outputs[0].token_ids) > 0
    outputs = []
    while engine.has_unfinished_requests():
        outputs += engine.step()
    assert [o.request_id for o in outputs if o.finished] == ["other"]


def test_chat_uses_the_template(llm):
    messages = [{"role": "user", "content": "Explain MoE architecture"}]
    output = llm.chat(messages, SamplingParams(temperature=0, max_tokens=60), use_tqdm=False)[0]
    assert "expert" in output.text.lower()
    many = llm.chat([messages, messages], SamplingParams(temperature=0, max_tokens=60), use_tqdm=False)
    assert [o.text for o in many] == [output.text] * 2


def test_without_a_tokenizer(tiny_model):
    llm = LLM(tiny_model("mixtral"), skip_tokenizer_init=True, threads=1)
    out = llm.generate({"prompt_token_ids": [1, 2, 3]}, SamplingParams(max_tokens=4, ignore_eos=True), use_tqdm=False)
    assert len(out[0].outputs[0].token_ids) == 4 and out[0].text == ""
    with pytest.raises(RequestError, match="prompt_token_ids"):
        llm.generate("text", use_tqdm=False)
    with pytest.raises(RequestError, match="stop_token_ids"):
        llm.generate([1], SamplingParams(stop="x"), use_tqdm=False)
    with pytest.raises(RequestError, match="skip_tokenizer_init"):
        llm.chat([{"role": "user", "content": "hi"}])


# -------------------------------------------------------------------- when a sequence ends


def test_stop_strings_cut_the_text(llm):
    whole = one(llm, max_tokens=40, ignore_eos=True).text
    stop = whole[10:14]
    cut = one(llm, max_tokens=40, ignore_eos=True, stop=[stop, "never seen"])
    assert cut.text == whole[: whole.index(stop)]
    assert (cut.finish_reason, cut.stop_reason) == ("stop", stop)
    kept = one(llm, max_tokens=40, ignore_eos=True, stop=stop, include_stop_str_in_output=True)
    assert kept.text == whole[: whole.index(stop) + len(stop)]
    assert llm.llm_engine.engine.stats.kv_blocks_used == 0


def test_stop_token_ids(llm):
    whole = one(llm, ignore_eos=True)
    token = whole.token_ids[4]
    first = whole.token_ids.index(token)
    out = one(llm, ignore_eos=True, stop_token_ids=[token])
    assert out.token_ids == whole.token_ids[: first + 1]
    assert (out.finish_reason, out.stop_reason) == ("stop", token)
    assert out.text == llm.tokenizer.decode(out.token_ids[:-1])


def test_eos_ends_unless_ignored(llm):
    info = llm.llm_engine.engine.info
    forced = {"logit_bias": {info.eos_token_ids[0]: 100.0}}
    out = one(llm, **forced)
    assert (out.finish_reason, out.stop_reason, out.text) == ("stop", None, "")
    assert len(one(llm, ignore_eos=True, **forced).token_ids) == 12
    assert len(one(llm, min_tokens=5, **forced).token_ids) == 6


def test_max_tokens_none_fills_the_model(tiny_model):
    llm = LLM(tiny_model("llama"), skip_tokenizer_init=True, threads=1, max_model_len=40)
    out = llm.generate([1, 2, 3], SamplingParams(max_tokens=None, ignore_eos=True), use_tqdm=False)[0].outputs[0]
    assert len(out.token_ids) == 37 and out.finish_reason == "length"


# -------------------------------------------------------------------- n, seeds, log-probabilities


def test_n_completions_share_the_prompt(llm):
    prompt = llm.tokenizer.encode("Experts " * 40)
    params = SamplingParams(n=4, temperature=2.0, seed=3, max_tokens=8, ignore_eos=True)
    before = llm.llm_engine.engine.stats.computed_tokens_total
    output = llm.generate({"prompt_token_ids": prompt}, params, use_tqdm=False)[0]
    computed = llm.llm_engine.engine.stats.computed_tokens_total - before
    assert [c.index for c in output.outputs] == [0, 1, 2, 3]
    assert len({tuple(c.token_ids) for c in output.outputs}) > 1
    assert computed <= len(prompt) + 3 * 16 + 4 * 8  # the prompt once, at most a block again for each sibling


def test_each_of_n_is_a_seed_of_its_own(llm):
    many = SamplingParams(n=3, temperature=1.0, seed=5, max_tokens=10)
    together = llm.generate("Once", many, use_tqdm=False)[0].outputs
    for i, completion in enumerate(together):
        alone = one(llm, "Once", temperature=1.0, seed=5 + i, max_tokens=10)
        assert alone.token_ids == completion.token_ids


def test_no_seed_varies_and_a_seed_repeats(llm):
    hot = {"temperature": 2.0, "max_tokens": 32, "ignore_eos": True}
    assert len({tuple(one(llm, **hot).token_ids) for _ in range(4)}) > 1
    assert one(llm, seed=9, **hot).token_ids == one(llm, seed=9, **hot).token_ids


def test_logprobs_against_a_full_forward(llm, embedded_path):
    """Both kinds, in chunks and with the prefix cached: log-softmax of transformers' logits."""
    from transformers import AutoModelForCausalLM

    prompt = llm.tokenizer.encode("The KV cache keeps keys and values of earlier tokens so that they are not computed.")
    params = SamplingParams(temperature=0, max_tokens=6, logprobs=3, prompt_logprobs=2, ignore_eos=True)
    llm.generate({"prompt_token_ids": prompt}, GREEDY, use_tqdm=False)
    output = llm.generate({"prompt_token_ids": prompt}, params, use_tqdm=False)[0]
    model = AutoModelForCausalLM.from_pretrained(embedded_path, dtype=torch.float32).eval()
    ids = prompt + output.outputs[0].token_ids
    with torch.inference_mode():
        reference = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    assert output.prompt_logprobs[0] is None and len(output.prompt_logprobs) == len(prompt)
    got = output.prompt_logprobs[1:] + output.outputs[0].logprobs
    assert output.num_cached_tokens == 0  # what is cached has no logits to report
    for position, row in enumerate(got):
        own = ids[position + 1]
        assert next(iter(row)) == own
        for token, entry in row.items():
            assert entry.logprob == pytest.approx(reference[position, token].item(), abs=2e-4)
            assert entry.decoded_token == llm.tokenizer.token_text(token)
        best = reference[position].topk(2).indices.tolist()
        assert {own, *best} <= set(row)
    total = sum(reference[len(prompt) - 1 + i, t].item() for i, t in enumerate(output.outputs[0].token_ids))
    assert output.outputs[0].cumulative_logprob == pytest.approx(total, abs=1e-3)


def test_prompt_logprobs_survive_preemption(tiny_model):
    llm = LLM(tiny_model("olmoe"), skip_tokenizer_init=True, threads=1, max_num_batched_tokens=5)
    params = SamplingParams(temperature=0, max_tokens=3, prompt_logprobs=0, ignore_eos=True)
    prompt = {"prompt_token_ids": list(range(30))}
    plain = llm.generate(prompt, params, use_tqdm=False)[0]
    engine = llm.llm_engine
    engine.add_request("p", prompt, params)
    for step in range(100):
        outputs = engine.step()
        if outputs and outputs[0].finished:
            break
        if step in (2, 5) and engine.engine.scheduler.running:
            engine.engine.scheduler.preempt(engine.engine.scheduler.running[0])
    assert engine.engine.stats.preemptions_total == 2
    values = [[next(iter(row.values())).logprob for row in out.prompt_logprobs[1:]] for out in (plain, outputs[0])]
    assert values[1] == pytest.approx(values[0], abs=1e-5) and len(values[0]) == 29
    assert all(math.isfinite(v) for v in values[0])


def test_priorities_run_first(tiny_model):
    llm = LLM(tiny_model("llama"), skip_tokenizer_init=True, threads=1, max_num_seqs=1)
    engine = llm.llm_engine
    params = SamplingParams(temperature=0, max_tokens=5, ignore_eos=True)
    for name, priority in (("low", 5), ("normal", 0), ("urgent", -1)):
        engine.add_request(name, [1, 2], params, priority=priority)
        engine.step()
    order = []
    while engine.has_unfinished_requests():
        order += [o.request_id for o in engine.step() if o.finished]
    assert order == ["urgent", "normal", "low"]
    assert engine.engine.stats.preemptions_total >= 1  # the urgent one did not wait for a place


# -------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("", "empty"),
        ([], "empty"),
        ({"prompt_token_ids": [10**6]}, "token id 1000000 is out of range: the vocabulary has ids 0 to"),
        ({"prompt_token_ids": [-1]}, "out of range"),
        ({"prompt_token_ids": ["a"]}, "token ids"),
        ({"promt": "x"}, "'promt': did you mean 'prompt'"),
        ({"prompt": "x", "prompt_token_ids": [1]}, "exactly one"),
        ({"prompt_token_ids": [1] * 2048}, "2048 tokens, but the model takes 2048"),
    ],
    ids=str,
)
def test_prompts_that_cannot_be_served(llm, prompt, message):
    with pytest.raises(RequestError, match=message):
        llm.generate([prompt] if not isinstance(prompt, dict) and prompt == [] else prompt, GREEDY, use_tqdm=False)
    assert not llm.llm_engine.has_unfinished_requests()


def test_too_many_tokens_are_refused_with_the_numbers(llm):
    with pytest.raises(RequestError, match="at most 2045 tokens"):
        llm.generate([1, 2, 3], SamplingParams(max_tokens=2046), use_tqdm=False)
    with pytest.raises(RequestError, match="stop_token_ids names token 99999"):
        llm.generate([1], SamplingParams(stop_token_ids=[99999]), use_tqdm=False)


def test_one_bad_prompt_leaves_nothing_behind(llm):
    with pytest.raises(RequestError):
        llm.generate(["fine", ""], GREEDY, use_tqdm=False)
    assert not llm.llm_engine.has_unfinished_requests()
    assert one(llm).finish_reason in ("stop", "length")


def test_unknown_arguments_name_the_nearest():
    with pytest.raises(ConfigError, match="'max_model_length': did you mean 'max_model_len'"):
        LLM("moe-model", max_model_length=3)


def test_a_failing_step_fails_its_requests_alone(tiny_model, monkeypatch):
    llm = LLM(tiny_model("llama"), skip_tokenizer_init=True, threads=1)
    engine = llm.llm_engine
    runner = engine.engine.executor.runner
    forward = runner.model.forward
    monkeypatch.setattr(runner.model, "forward", lambda *args: (_ for _ in ()).throw(RuntimeError("broken")))
    output = llm.generate([1, 2], SamplingParams(max_tokens=3), use_tqdm=False)[0]
    assert output.outputs[0].finish_reason == "error" and "broken" in output.error
    monkeypatch.setattr(runner.model, "forward", forward)
    assert llm.generate([1, 2], SamplingParams(max_tokens=3), use_tqdm=False)[0].error is None
    engine.engine.check_integrity()


def test_logits_that_are_not_finite_are_an_error(tiny_model):
    llm = LLM(tiny_model("llama"), skip_tokenizer_init=True, threads=1)
    with torch.no_grad():
        llm.llm_engine.engine.executor.model.norm.weight.fill_(math.nan)
    output = llm.generate([1, 2], SamplingParams(max_tokens=3), use_tqdm=False)[0]
    assert output.outputs[0].finish_reason == "error" and "not finite" in output.error
