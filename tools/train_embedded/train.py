"""Train the embedded model: `python -m tools.train_embedded.train --steps N --seed S --out DIR`.

The seed and the number of steps define the run: the batch of a step is a pure function of both, and
a resumed run continues with the same bits of state. The learning rate is constant after a warm-up
and falls to zero over the last steps, so that `--steps` may still be changed on resuming before then.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections import defaultdict
from dataclasses import asdict
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor

from .arithmetic import held_out_additions
from .data import Batch, make_batch, tokenizer_texts
from .model import TrainConfig, TrainModel
from .tokenizer import ASSISTANT, END, USER, save_tokenizer, train_tokenizer

BALANCE = 0.01  # weight of the load-balancing loss
WARMUP = 100
DECAY_SHARE = 0.25  # of the steps


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Linear warm-up, a plateau, and a linear fall to zero."""
    decay = int(steps * DECAY_SHARE)
    return peak * min(1.0, (step + 1) / WARMUP, (steps - step) / decay)


def prepare_tokenizer(out: Path, seed: int, vocab_size: int) -> Tokenizer:
    """Train the tokenizer once for a run, or read it back."""
    if not (out / "tokenizer.json").exists():
        save_tokenizer(train_tokenizer(tokenizer_texts(seed), vocab_size), out)
    return Tokenizer.from_file(str(out / "tokenizer.json"))


def make_optimizer(model: TrainModel, peak: float) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices only."""
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() == 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=peak, betas=(0.9, 0.95), eps=1e-8, fused=True)


def losses(model: TrainModel, batch: Batch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Weighted loss, balance loss, each row's loss `[N]`, expert shares `[layers, E]`."""
    x, balance, shares = model.hidden(batch.ids, batch.groups, batch.valid)
    rows = F.cross_entropy(model.logits(x.index_select(0, batch.rows)), batch.labels, reduction="none")
    return (rows * batch.weights).sum() / batch.weights.sum(), balance, rows.detach(), shares


@torch.no_grad()
def addition_accuracy(model: TrainModel, tokenizer: Tokenizer, template: str, count: int = 400) -> float:
    """Share of held-out sums that greedy decoding would write exactly, end included.

    Teacher forcing suffices: a greedy answer is right if and only if each of its tokens is the best one.
    """
    pairs = held_out_additions()
    pairs = pairs[:: max(1, len(pairs) // count)]
    groups: dict[int, list[tuple[list[int], list[int]]]] = defaultdict(list)
    for a, b in pairs:
        prompt = tokenizer.encode(template.format(a=a, b=b), add_special_tokens=False).ids
        answer = tokenizer.encode(f"{a + b}{END}", add_special_tokens=False).ids
        groups[len(prompt) + len(answer)].append((prompt, answer))
    right = 0
    for length, items in groups.items():
        ids = torch.tensor([p + a for p, a in items])
        x, _, _ = model.hidden(ids.flatten(), [(len(items), length)], torch.ones(ids.numel()))
        best = model.logits(x).argmax(-1).view(ids.shape)
        for row, (prompt, answer) in zip(best, items, strict=True):
            right += row[len(prompt) - 1 : -1].tolist() == answer
    return right / len(pairs)


def save(path: Path, model: TrainModel, optimizer: torch.optim.Optimizer, step: int, seed: int) -> None:
    """Write a checkpoint so that a reader never sees half of one."""
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step, "seed": seed,
             "config": asdict(model.c)}  # fmt: skip
    temporary = path.with_suffix(".tmp")
    torch.save(state, temporary)
    os.replace(temporary, path)


def parse() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="folder of the run: tokenizer, checkpoint, log")
    parser.add_argument("--tokens", type=int, default=4096, help="padded tokens of a step")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--stop-at", type=int, help="stop here, to resume later")
    parser.add_argument("--save-seconds", type=float, default=240)
    return parser.parse_args()


def main() -> None:
    """Run or resume the training."""
    args = parse()
    torch.set_num_threads(1)
    torch.manual_seed(args.seed)
    args.out.mkdir(parents=True, exist_ok=True)
    config = TrainConfig()
    tokenizer = prepare_tokenizer(args.out, args.seed, config.vocab_size)
    model = TrainModel(config)
    optimizer = make_optimizer(model, args.lr)
    print(f"{sum(p.numel() for p in model.parameters())} parameters", flush=True)
    checkpoint, step = args.out / "checkpoint.pt", 0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        step = state["step"]
        assert state["seed"] == args.seed, "the checkpoint is of another seed"
        print(f"resumed at step {step}", flush=True)

    last = min(args.steps, args.stop_at or args.steps)
    tick = saved = time.monotonic()
    sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    tokens = 0
    while step < last:
        batch = make_batch(tokenizer, args.seed, step, args.tokens)
        rate = learning_rate(step, args.steps, args.lr)
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss, balance, rows, shares = losses(model, batch)
        (loss + BALANCE * balance).backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step += 1

        tokens += int(batch.valid.sum())
        for domain, value in zip(batch.domains, rows.tolist(), strict=True):
            sums[domain][0] += value
            sums[domain][1] += 1
        if step % 25 == 0 or step == last:
            now = time.monotonic()
            entry = {"step": step, "lr": rate, "loss": loss.item(), "balance": balance.item(), "norm": norm.item(),
                     "tokens_per_s": tokens / (now - tick), "share_max": shares.max().item(),
                     "share_min": shares.min().item(), **{d: a / b for d, (a, b) in sorted(sums.items())}}  # fmt: skip
            if step % 250 == 0 or step == last:
                entry["add_raw"] = addition_accuracy(model, tokenizer, "{a}+{b}=")
                chat = USER + "What is {a} + {b}?" + END + ASSISTANT
                entry["add_chat"] = addition_accuracy(model, tokenizer, chat)
            line = json.dumps({k: round(v, 5) for k, v in entry.items()})
            print(line, flush=True)
            with open(args.out / "log.jsonl", "a") as log:
                print(line, file=log)
            sums.clear()
            tick, tokens = time.monotonic(), 0
        if time.monotonic() - saved > args.save_seconds or step == last:
            save(checkpoint, model, optimizer, step, args.seed)
            saved = time.monotonic()


if __name__ == "__main__":
    main()
