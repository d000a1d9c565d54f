"""Greedy tokens through the whole engine: transformers' own, in batches, with prompts in chunks, and preempted."""

import torch

from moesaic import LLM, SamplingParams

PROMPTS = [[5, 9, 60, 3], [7], list(range(20, 57)), [1, 1, 2, 3, 5, 8, 13, 21, 34, 55, 89] * 3]
TOKENS = 24
BLOCK_SIZE = 4


def check_greedy(expected, path, **options):
    """The checkpoint in `path` gives the `expected` tokens, by itself and with a preemption every seventh step.

    Args:
        expected: for each prompt, by `generated` or `recomputed`.
        options: of the engine; a small max_num_batched_tokens makes chunks.
    """
    llm = LLM(str(path), skip_tokenizer_init=True, threads=1, block_size=BLOCK_SIZE, max_model_len=64, **options)
    assert generate(llm) == expected
    engine = llm.llm_engine.engine
    preempt_often(engine)
    assert generate(llm) == expected
    assert engine.stats.preemptions_total > 2


def generate(llm):
    params = SamplingParams(temperature=0, max_tokens=TOKENS, ignore_eos=True)
    outputs = llm.generate([{"prompt_token_ids": p} for p in PROMPTS], params, use_tqdm=False)
    return [output.outputs[0].token_ids for output in outputs]


def preempt_often(engine):
    """From now on, every seventh step takes the blocks of a running sequence."""
    step, scheduler, count = engine.step, engine.scheduler, iter(range(10_000))

    def stepped():
        if next(count) % 7 == 5 and scheduler.running:
            scheduler.preempt(scheduler.running[-1])
        return step()

    engine.step = stepped


def generated(model):
    """What transformers' own generate gives for each prompt."""
    settings = {"max_new_tokens": TOKENS, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    expected = []
    for prompt in PROMPTS:
        ids = torch.tensor([prompt])
        with torch.inference_mode():
            out = model.generate(ids, attention_mask=torch.ones_like(ids), **settings)
        expected.append(out[0, len(prompt) :].tolist())
    return expected


def recomputed(model):
    """The best tokens by transformers' logits of everything so far, each time anew: some of its models compute with
    their caches what they do not compute without."""
    expected = []
    for prompt in PROMPTS:
        tokens = list(prompt)
        with torch.inference_mode():
            for _ in range(TOKENS):
                tokens.append(int(model(torch.tensor([tokens]), use_cache=False).logits[0, -1].argmax()))
        expected.append(tokens[len(prompt) :])
    return expected
