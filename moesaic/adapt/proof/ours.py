"""A model of ours under the glass: experts called alone, layers given what one likes, whole sequences in chunks.

In fp32 with the reference backend it is the oracle, plain torch that shares weight rules and config with the engine;
with the engine's own kernels it is what is proven.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from moesaic.adapt.proof.captured import Ops, Probe, Prompt, dense_weights
from moesaic.core.batch import Batch
from moesaic.experts.layer import MoE
from moesaic.experts.routing import Router, Routing
from moesaic.layers.kv_cache import Cache, ExpertPagesSpec, StateSpec
from moesaic.layers.step import Step
from moesaic.models.decoder import Decoder, DecoderLayer

BLOCK = 16


class OurModel:
    """A decoder that a spec built; see `captured.Model`.

    Args:
        group: layers of ours that are one of the reference's.
    """

    name = "moesaic's own plain fp32 model"
    shares = "weight rules and config with the engine, but no kernel"

    def __init__(self, model: Decoder, group: int = 1) -> None:
        self.model = model
        self.group = group
        self.dtype = model.norm.weight.dtype
        self.moes = [found for layer in model.layers if (found := moe_of(layer)) is not None]
        self.layer_of_moe = [i for i, layer in enumerate(model.layers) if moe_of(layer) is not None]

    @property
    def num_layers(self) -> int:
        return len(self.model.layers) // self.group

    @torch.inference_mode()
    def apply(self, probe: Probe) -> Tensor:
        """The output `[T, W]` of a probe."""
        routing = Routing(probe.ids.int().contiguous(), probe.weights.float().contiguous())
        return self.moes[probe.moe].compute(probe.hidden.to(self.dtype), routing).float().clone()

    @torch.inference_mode()
    def run(self, tokens: list[int], trace: bool, chunks: Sequence[int] = ()) -> Prompt:
        """All logits of a sequence, computed whole or in chunks of these sizes (the last one repeats)."""
        caches, rows, at = self._caches(len(tokens)), [], 0
        with self._watched(trace) as ops:
            for turn in range(len(tokens)):
                size = chunks[min(turn, len(chunks) - 1)] if chunks else len(tokens)
                hidden = self.model(_batch(tokens, at, min(at + size, len(tokens))), caches)
                rows.append(self.model.logits(hidden).float().clone())
                at += size
                if at >= len(tokens):
                    break
        self.model.forget([0])
        inputs = [self._plain(own.pop("input"), i) for i, own in enumerate(ops)]
        inputs += [own["layer"] for own in ops[-1:]]
        return Prompt(tokens, len(tokens), torch.cat(rows), inputs, ops)

    @torch.inference_mode()
    def follow(self, tokens: list[int], inputs: Sequence[Tensor]) -> list[Ops]:
        """What every layer makes of the given inputs, each by itself."""
        step, caches = Step(_batch(tokens, 0, len(tokens))), self._caches(len(tokens))
        own, at = [], 0
        for layer in self.model.layers:
            own.append(caches[at : at + len(layer.cache_specs)])
            at += len(layer.cache_specs)
        self.model.pools.lend(caches[at:])
        with self._watched(True) as ops:
            for i in range(self.num_layers):
                first = i * self.group
                hidden, delta = self._streamed(inputs[i], i).to(self.dtype), None
                for j in range(first, first + self.group):
                    hidden, delta = self.model.layers[j](hidden, delta, step, own[j])
        self.model.forget([0])
        groups = [ops[i : i + self.group] for i in range(0, len(ops), self.group)]
        return groups_of(groups)

    @torch.inference_mode()
    def embed(self, tokens: list[int]) -> Tensor:
        """What the first layer is given: `[T, H]`."""
        batch, model = _batch(tokens, 0, len(tokens)), self.model
        hidden = model.embed(batch.token_ids, model.spec.multipliers.embedding)
        if model.positions is not None:
            hidden = hidden + model.positions(batch.positions)
        return hidden.float().clone()

    @torch.inference_mode()
    def head(self, hidden: Tensor) -> Tensor:
        """Logits `[T, V]` of what the last layer gives, `[T, H]`."""
        stream = self._streamed(hidden, self.num_layers).to(self.dtype)
        return self.model.logits(self.model.norm(stream)).float().clone()

    def _caches(self, length: int) -> list[Cache]:
        blocks = -(-length // BLOCK) + 1
        caches: list[Cache] = []
        for spec in self.model.cache_specs():
            if isinstance(spec, StateSpec):
                caches.append(spec.allocate(1))
            elif isinstance(spec, ExpertPagesSpec):
                caches.append(spec.allocate(blocks, 1, BLOCK, "cpu"))
            else:
                caches.append(spec.allocate(blocks, BLOCK, "cpu"))
        return caches

    def _streamed(self, hidden: Tensor, layer: int) -> Tensor:
        """The stream as the decoder keeps it: a plain sum, also where the model divides it by a root."""
        return hidden.clone() * (self._root(layer) if self._divides else 1.0)

    def _plain(self, stream: Tensor, layer: int) -> Tensor:
        return stream / self._root(layer) if self._divides else stream

    @property
    def _divides(self) -> bool:
        return bool(self.model.spec.residual == "root_mean")

    def _root(self, layer: int) -> float:
        return float((2 * layer * self.group + 1) ** 0.5)

    @contextmanager
    def _watched(self, wanted: bool) -> Iterator[list[Ops]]:
        """What goes through the layers while this is open."""
        ops: list[Ops] = [{} for _ in self.model.layers] if wanted else []
        hooks = []
        for i, layer in enumerate(self.model.layers if wanted else []):
            hooks += self._hooks(i, layer, ops[i])
        try:
            yield ops
        finally:
            for hook in hooks:
                hook.remove()

    def _hooks(self, index: int, layer: DecoderLayer, ops: Ops) -> list[Any]:
        alpha = layer.residual_multiplier

        def total(pair: Any) -> Tensor:
            hidden, delta = pair[0], pair[1]
            return (hidden if delta is None else hidden + alpha * delta).float().clone()

        def entered(module: Any, args: Any) -> None:
            ops["input"] = total(args)

        def left(module: Any, args: Any, output: Any) -> None:
            ops["layer"] = self._plain(total(output), (index + 1) // self.group)

        def keep(name: str) -> Any:
            def hook(module: Any, args: Any, output: Tensor) -> None:
                ops[name] = output.float().clone()

            return hook

        def routed(module: Router, args: Any, output: Routing) -> None:
            logits = module.logits(args[0]).float().clone()
            ops["router logits"], ops["chosen experts"] = logits, output.ids.long().clone()
            ops["weights"] = dense_weights(output.ids, output.weights, logits.shape[1])

        hooks = [layer.register_forward_pre_hook(entered), layer.register_forward_hook(left)]
        if layer.attention is not None:
            hooks.append(layer.attention.register_forward_hook(keep("attention")))
        if layer.mlp is not None:
            hooks.append(layer.mlp.register_forward_hook(keep("feed-forward")))
        moe = moe_of(layer)
        if moe is not None:
            hooks.append(moe.router.register_forward_hook(routed))
        return hooks


def moe_of(layer: DecoderLayer) -> MoE | None:
    """The layer's experts, wherever they are."""
    return layer.mlp if isinstance(layer.mlp, MoE) else layer.shortcut


def groups_of(groups: list[list[Ops]]) -> list[Ops]:
    """Of layers that are one to the reference: their routers, and what the last one gives."""
    merged = []
    for ops in groups:
        if len(ops) == 1:
            merged.append(ops[0])
            continue
        routed = [own for own in ops if "chosen experts" in own]
        own = {n: t for o in routed[:1] for n, t in o.items() if n in ("router logits", "chosen experts", "weights")}
        merged.append({**own, "layer": ops[-1]["layer"]})
    for own in merged:
        own.pop("input", None)
    return merged


def _batch(tokens: list[int], start: int, end: int) -> Batch:
    """Tokens [start, end) of one sequence, whose blocks are 0, 1, 2, ..."""
    positions = torch.arange(start, end)
    return Batch(
        token_ids=torch.tensor(tokens[start:end]),
        positions=positions,
        slots=positions.clone(),
        query_start=torch.tensor([0, end - start]),
        seq_lens=torch.tensor([end]),
        block_tables=torch.arange(-(-len(tokens) // BLOCK) + 1)[None],
        table_rows=torch.zeros(1, dtype=torch.int64),
        logits_rows=torch.arange(end - start),
        query_lens_host=[end - start],
        seq_lens_host=[end],
        table_rows_host=[0],
        seq_ids=[0],
        state_slots=torch.zeros(1, dtype=torch.int64),
    )
