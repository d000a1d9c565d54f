"""A drafted model as the plain fp32 reference computes it, on a few tokens: what a draft's answers are tried with."""

import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from moesaic.adapt.draft.described import describe
from moesaic.core.batch import Batch
from moesaic.core.errors import CheckpointError, ConfigError, MoesaicError
from moesaic.layers.base import BuildContext, Layer
from moesaic.layers.kv_cache import Cache, ExpertPagesSpec, StateSpec
from moesaic.models.decoder import Decoder
from moesaic.weights.codecs import decoded
from moesaic.weights.containers.safetensors import read_header
from moesaic.weights.loader import load_weights
from moesaic.weights.rules import Index
from moesaic.weights.sources import Source, open_source
from moesaic.weights.tensors import TensorInfo

BLOCK_SIZE = 16
MAX_TOKENS = 256  # of a reference that are run
SMALL_BYTES = 64 << 20  # of weights, up to which one thread is fastest
MEMORY_SHARE = 0.45  # of the machine's that the weights may take in fp32


class Reference:
    """Tokens, and the logits that a right model gives for them.

    Attributes:
        cases: token ids int64 `[T]` and logits fp32 `[T, V]` of each prompt.
    """

    def __init__(self, path: str) -> None:
        """Raises CheckpointError: the file is none such."""
        if not os.path.isfile(path):
            raise CheckpointError(f"--reference {path}: there is no such file")
        tensors = read_header(path)
        names = sorted(name.partition(".")[2] for name in tensors if name.startswith("input_ids."))
        self.cases: list[tuple[Tensor, Tensor]] = []
        tokens = 0
        for name in names:
            ids, logits = tensors[f"input_ids.{name}"], tensors.get(f"logits.{name}")
            if logits is None or len(ids.shape) != 1 or len(logits.shape) != 2 or logits.shape[0] != ids.shape[0]:
                raise CheckpointError(f"{path}: logits.{name} must have a row for each token of input_ids.{name}")
            if self.cases and tokens + ids.shape[0] > MAX_TOKENS:
                break
            tokens += ids.shape[0]
            pair = torch.empty(ids.shape, dtype=torch.int64), torch.empty(logits.shape)
            ids.read((), pair[0])
            logits.read((), pair[1])
            self.cases.append(pair)
        if not self.cases:
            raise CheckpointError(f"{path} holds no input_ids.<n> and logits.<n>")


class Oracle:
    """Builds drafts of one checkpoint, fills them, and compares what they give with a reference."""

    def __init__(self, path: str, config: Mapping[str, Any], reference: Reference) -> None:
        """Raises ConfigError: the weights do not fit into memory in fp32."""
        self.path, self.config, self.reference = path, dict(config), reference
        self.source: Source = _Kept(decoded(open_source(path), config))
        needed = sum(4 * torch.Size(info.shape).numel() for info in self.source.tensors.values())
        self._small = needed < SMALL_BYTES
        there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        if needed > MEMORY_SHARE * there:
            raise ConfigError(
                f"--reference: the weights take {needed / 2**30:.1f} GiB in fp32, of {there / 2**30:.1f} GiB memory; "
                "settle open questions on a checkpoint of the same architecture with fewer layers"
            )

    def difference(self, source: str) -> float:
        """The largest difference of a drafted file's logits from the reference's, relative to their largest; infinite
        where the draft cannot be run. Raises nothing for a draft that is wrong."""
        threads = torch.get_num_threads()
        if self._small:
            torch.set_num_threads(1)  # they would only wait for each other
        try:
            model = self._model(source)
            return max(_difference(_logits(model, ids), logits) for ids, logits in self.reference.cases)
        except MoesaicError:
            return float("inf")
        finally:
            torch.set_num_threads(threads)

    def _model(self, source: str) -> Decoder:
        where = os.path.join(self.path, "config.json")
        architecture, spec = describe(source, self.config, where)
        model = Decoder(spec, BuildContext(torch.device("cpu"), torch.float32))
        parameters = dict(model.named_views())
        load_weights(parameters, architecture.rules(spec), self.source, self.path, progress=False)
        for module in model.modules():
            if isinstance(module, Layer):
                module.loaded()
        model.eval()
        return model


class _Kept:
    """A source whose tensors, once read whole or in part, are kept in memory as fp32: they are read many times."""

    def __init__(self, source: Source) -> None:
        self._source, self._kept = source, dict[str, Tensor]()
        self.naming = source.naming

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        return self._source.tensors

    def read(self, name: str, index: Index, into: Tensor) -> None:
        if name not in self._kept:
            whole = torch.empty(self.tensors[name].shape)
            self._source.read(name, (), whole)
            self._kept[name] = whole
        into.copy_(self._kept[name][index])


def _logits(model: Decoder, ids: Tensor) -> Tensor:
    """`[T]` -> `[T, V]`, as one chunk."""
    count = len(ids)
    blocks = -(-count // BLOCK_SIZE)
    caches: list[Cache] = []
    for spec in model.cache_specs():
        if isinstance(spec, StateSpec):
            caches.append(spec.allocate(2, "cpu"))
        elif isinstance(spec, ExpertPagesSpec):
            caches.append(spec.allocate(blocks, 2, BLOCK_SIZE, "cpu"))
        else:
            caches.append(spec.allocate(blocks, BLOCK_SIZE, "cpu"))
    places = torch.arange(count)
    batch = Batch(
        token_ids=ids,
        positions=places,
        slots=places,
        query_start=torch.tensor([0, count]),
        seq_lens=torch.tensor([count]),
        block_tables=torch.arange(blocks)[None],
        table_rows=torch.zeros(1, dtype=torch.int64),
        logits_rows=places,
        query_lens_host=[count],
        seq_lens_host=[count],
        table_rows_host=[0],
        seq_ids=[0],
        state_slots=torch.zeros(1, dtype=torch.int64),
    )
    logits = model.logits(model(batch, caches))
    model.forget([0])
    return logits


def _difference(ours: Tensor, theirs: Tensor) -> float:
    if ours.shape != theirs.shape or not ours.isfinite().all():
        return float("inf")
    return float((ours - theirs).abs().max() / theirs.abs().max())
