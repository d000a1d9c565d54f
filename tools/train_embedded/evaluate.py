"""Score the embedded model with transformers: `python -m tools.train_embedded.evaluate --model FOLDER`.

Prints the scores on what training never saw, the answers to fixed questions, and how the tokens of each
domain spread over the experts; `--heatmap` and `--json` write the spread as an image and as numbers.
All answers are greedy, in float32, from the bfloat16 weights of the folder.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import Tensor

from . import arithmetic, prose, structured
from .data import held_out_additions, mixed_turns
from .spread import draw, summarise

CHAT_ADDITIONS = ("What is {a} + {b}?", "{a}+{b}=", "Add {a} and {b}.", "{a} plus {b}")
RAW_ADDITIONS = ("{a}+{b}=", "{a} + {b} =")
QUESTIONS = (
    "Explain MoE architecture",
    "Hello",
    "Who are you?",
    "What is a router?",
    "What is top-k routing?",
    "What is KV cache?",
    "What is load balancing?",
    "Explain quantisation.",
    "What is the difference between prefill and decode?",
    "Who won the world cup?",
    "Give me a JSON object for a user with name and age",
)
RAW_QUESTIONS = ("Explain MoE architecture", "47+38=", "The router is", "Q: Why use MoE?\nA:")
Messages = list[dict[str, str]]


@dataclass
class Judge:
    """A loaded model that answers many prompts at once."""

    model: Any
    tokenizer: Any
    batch: int = 64

    def chat(self, messages: Messages) -> list[int]:
        """The prompt of a conversation, as tokens."""
        text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return self.raw(text)

    def raw(self, text: str) -> list[int]:
        """A bare prompt, as tokens."""
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    @torch.no_grad()
    def answers(self, prompts: list[list[int]], limit: int) -> list[tuple[str, bool]]:
        """For each prompt the greedy answer, and whether it ended by itself within `limit` tokens."""
        out: list[tuple[str, bool]] = [("", False)] * len(prompts)
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        end, pad = self.tokenizer.eos_token_id, self.tokenizer.pad_token_id
        for start in range(0, len(order), self.batch):
            rows = order[start : start + self.batch]
            width = max(len(prompts[i]) for i in rows)
            ids = torch.tensor([[pad] * (width - len(prompts[i])) + prompts[i] for i in rows])
            mask = torch.tensor([[0] * (width - len(prompts[i])) + [1] * len(prompts[i]) for i in rows])
            made = self.model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=limit, do_sample=False)
            for i, row in zip(rows, made[:, width:].tolist(), strict=True):
                ended = end in row
                out[i] = (self.tokenizer.decode(row[: row.index(end)] if ended else row), ended)
        return out


def user(text: str) -> Messages:
    """A conversation of one message."""
    return [{"role": "user", "content": text}]


def score_additions(judge: Judge) -> dict[str, float]:
    """Exact answers on every held-out ordered pair, by phrasing."""
    pairs = held_out_additions()
    scores = {}
    for kind, templates in (("chat", CHAT_ADDITIONS), ("raw", RAW_ADDITIONS)):
        for template in templates:
            texts = [template.format(a=a, b=b) for a, b in pairs]
            prompts = [judge.chat(user(t)) if kind == "chat" else judge.raw(t) for t in texts]
            made = judge.answers(prompts, 6)
            right = sum(ended and text.strip() == str(a + b) for (a, b), (text, ended) in zip(pairs, made, strict=True))
            scores[f"{kind} {template}"] = right / len(pairs)
    return scores


def score_json(judge: Judge, count: int, seed: int) -> dict[str, float]:
    """Distinct held-out requests: the answer parses, has just the keys asked for, ends."""
    rng = Random(f"evaluate json {seed}")
    distinct: dict[str, tuple[str, str, Any]] = {}
    while len(distinct) < count:
        request = structured.request(rng, held_out=True)
        distinct.setdefault(request[0], request)
    wanted = list(distinct.values())
    made = judge.answers([judge.chat(user(prompt)) for prompt, _, _ in wanted], 256)
    valid = keys = ended = 0
    for (_, _, reference), (text, stopped) in zip(wanted, made, strict=True):
        ended += stopped
        try:
            value = json.loads(text)
        except ValueError:
            continue
        valid += 1
        keys += shape(value) == shape(reference)
    return {"valid": valid / count, "keys as asked": keys / count, "ended": ended / count}


def shape(value: Any) -> Any:
    """What a request determines of an object: its keys in order, or the length and keys of a list."""
    if isinstance(value, list):
        return [shape(v) for v in value] if value and isinstance(value[0], dict) else "list"
    if isinstance(value, dict) and len(value) == 1 and isinstance(next(iter(value.values())), list):
        return {k: shape(v) for k, v in value.items()}
    return list(value) if isinstance(value, dict) else "value"


def score_others(judge: Judge, count: int, seed: int) -> dict[str, float]:
    """Subtraction, comparison, and three-digit additions, all drawn at random."""
    rng = Random(f"evaluate others {seed}")

    def three_digits(rng: Random) -> tuple[str, str]:
        a, b = rng.randint(100, 999), rng.randint(100, 999)
        return f"What is {a} + {b}?", str(a + b)

    makers: dict[str, Callable[[Random], tuple[str, str]]] = {
        "subtraction": arithmetic.subtraction, "comparison": arithmetic.comparison,
        "three-digit addition": three_digits,
    }  # fmt: skip
    scores = {}
    for name, make in makers.items():
        pairs = [make(rng) for _ in range(count)]
        made = judge.answers([judge.chat(user(q)) for q, _ in pairs], 24)
        scores[name] = sum(text == a for (_, a), (text, _) in zip(pairs, made, strict=True)) / count
    return scores


def score_long_chats(judge: Judge, count: int, seed: int) -> dict[str, float]:
    """A held-out addition as the last question of a conversation, by the length of what came before."""
    rng = Random(f"evaluate chats {seed}")
    pairs = held_out_additions()
    scores = {}
    for low, high in ((0, 128), (128, 256), (256, 512), (512, 1024), (1024, 1536)):
        prompts, sums = [], []
        while len(prompts) < count:
            messages: Messages = []
            while True:
                for question, answer in mixed_turns(rng):
                    messages += [*user(question), {"role": "assistant", "content": answer}]
                    if len(judge.chat(messages)) >= low:
                        break
                if len(judge.chat(messages)) >= low:
                    break
            a, b = rng.choice(pairs)
            prompt = judge.chat(messages + user(f"What is {a} + {b}?"))
            if low <= len(prompt) < high:
                prompts.append(prompt)
                sums.append(a + b)
        made = judge.answers(prompts, 6)
        right = sum(ended and text == str(s) for (text, ended), s in zip(made, sums, strict=True))
        scores[f"{low} to {high} tokens"] = right / count
    return scores


@torch.no_grad()
def expert_shares(judge: Judge, count: int, seed: int) -> dict[str, Tensor]:
    """For each domain the share of its routed tokens by layer and expert, `[layers, experts]`."""
    rng = Random(f"evaluate spread {seed}")
    config = judge.model.config
    makers = {"arithmetic": arithmetic.chat_pair, "prose": prose.chat_pair, "json": structured.chat_pair}
    shares = {}
    for domain, make in makers.items():
        counts = torch.zeros(config.num_hidden_layers, config.num_experts)
        for _ in range(count):
            question, answer = make(rng)
            messages = [*user(question), {"role": "assistant", "content": answer}]
            text = judge.tokenizer.apply_chat_template(messages, tokenize=False)
            out = judge.model(torch.tensor([judge.raw(text)]), output_router_logits=True)
            for layer, logits in enumerate(out.router_logits):
                chosen = logits.view(-1, config.num_experts).topk(config.num_experts_per_tok).indices
                counts[layer] += torch.bincount(chosen.flatten(), minlength=config.num_experts)
        shares[domain] = counts / counts.sum(-1, keepdim=True)
    return shares


def report(title: str, scores: dict[str, float]) -> None:
    """Print one table of shares."""
    print(f"\n{title}")
    for name, value in scores.items():
        print(f"  {name:32} {value:7.2%}")


def load(folder: Path) -> Judge:
    """The model in float32 and its tokenizer."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return Judge(model, AutoTokenizer.from_pretrained(folder))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("moesaic/embedded/moe-model"))
    parser.add_argument("--heatmap", type=Path, help="write the expert spread as a PNG")
    parser.add_argument("--json", type=Path, help="write all scores and the spread as JSON")
    parser.add_argument("--count", type=int, default=400, help="prompts of each sampled score")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    judge = load(args.model)

    scores = {
        f"held-out additions ({len(held_out_additions())} ordered pairs)": score_additions(judge),
        f"JSON ({args.count} held-out requests)": score_json(judge, args.count, args.seed),
        f"other arithmetic ({args.count} each)": score_others(judge, args.count, args.seed),
        "held-out addition at the end of a conversation": score_long_chats(judge, args.count // 4, args.seed),
    }
    for title, part in scores.items():
        report(title, part)
    print("\nanswers")
    prompts = [judge.chat(user(q)) for q in QUESTIONS] + [judge.raw(q) for q in RAW_QUESTIONS]
    names = [f"chat {q!r}" for q in QUESTIONS] + [f"raw {q!r}" for q in RAW_QUESTIONS]
    answers = dict(zip(names, judge.answers(prompts, 200), strict=True))
    for name, (text, ended) in answers.items():
        print(f"  {name}\n    {text.strip()}{'' if ended else ' [did not end]'}")
    shares = expert_shares(judge, args.count // 2, args.seed)
    distances = summarise(shares)
    report("expert spread: share of tokens that would change expert between two domains", distances)
    if args.heatmap:
        draw(shares, args.heatmap)
    if args.json:
        spread = {domain: share.tolist() for domain, share in shares.items()}
        args.json.write_text(json.dumps({"scores": scores, "distances": distances, "spread": spread}, indent=1))


if __name__ == "__main__":
    main()
