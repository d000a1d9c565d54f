"""What lies in a checkpoint's folder: its config, its tensors from headers alone, and what is wrong with it.

Everything that inspects, adapts, proves or converts a checkpoint starts from a `Survey`. It is torch-free, and made of
whatever is there: a damaged file is a problem in the list, and the others are surveyed all the same.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from moesaic.adapt.names import Group, group_names, listed
from moesaic.core.errors import CheckpointError, MoesaicError
from moesaic.core.files import parse_json, read_file
from moesaic.core.formats import WeightFormat
from moesaic.engine.resolve import find_model
from moesaic.models.config_reader import config_with_gguf, read_config
from moesaic.weights.codecs import decoded
from moesaic.weights.codecs.codes import is_coded
from moesaic.weights.containers import torch_file
from moesaic.weights.containers.gguf import GgufSource, gguf_shards, survey_gguf
from moesaic.weights.containers.safetensors import survey_header
from moesaic.weights.layouts.directories import tensor_name
from moesaic.weights.layouts.files import holds_weights
from moesaic.weights.layouts.packed import PackedSource
from moesaic.weights.rules import Index
from moesaic.weights.sources import OPENERS, Source, openers_of
from moesaic.weights.tensors import TensorInfo

if TYPE_CHECKING:
    import torch

MAX_FILES = 200_000  # of one folder that are looked at
# What no reader here is for: how its files end, and what to call it.
FOREIGN = {
    ".distcp": "torch distributed checkpoint", ".zarr": "zarr", ".msgpack": "Flax", ".onnx": "ONNX",
    ".tflite": "TensorFlow Lite", ".ckpt": "TensorFlow or Lightning checkpoint", ".npz": "NumPy archive",
    ".npy": "NumPy array", ".pdparams": "PaddlePaddle", ".engine": "TensorRT engine", ".nemo": "NeMo archive",
    ".tar": "archive", ".zip": "archive", ".gz": "archive", ".mlmodel": "Core ML", ".ot": "rust-bert",
    ".llamafile": "llamafile", ".ggml": "GGML (before GGUF)", ".exl2": "ExLlama", ".keras": "Keras",
}  # fmt: skip
HEADERS: dict[str, Callable[[str], tuple[Mapping[str, TensorInfo], str]]] = {
    ".safetensors": survey_header,
    **dict.fromkeys(torch_file.SUFFIXES, lambda path: (torch_file.read_header(path), "")),
}


@dataclass(frozen=True)
class Problem:
    """Something that is wrong.

    Attributes:
        where: the file, relative to the folder, or the part of the checkpoint; "" for all of it.
    """

    where: str
    what: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}" if self.where and self.where not in self.what else self.what


@dataclass(frozen=True)
class Survey:
    """What is known of a checkpoint from its headers.

    Attributes:
        path: the folder.
        kind: the format of its weights, as `weights.sources` calls it; "" where there are none that are read here.
        config: config.json; None where it is missing or no JSON object.
        tensors: as they are stored.
        weights: the same with what codes stand for in place of codes, scales and zero points, by the weight's own name.
        naming: whose names the tensors have (`Source.naming`).
        quantization: the method that the config states; "" where it states none.
        formats: weights that are used as they are quantised -> the format.
        files: that hold weights.
        problems: what is damaged, absent or foreign.
    """

    path: str
    kind: str
    config: Mapping[str, Any] | None
    tensors: Mapping[str, TensorInfo] = field(repr=False)
    weights: Mapping[str, TensorInfo] = field(repr=False)
    naming: str = "hf"
    quantization: str = ""
    formats: Mapping[str, WeightFormat] = field(default_factory=dict, repr=False)
    files: tuple[str, ...] = ()
    problems: tuple[Problem, ...] = ()

    @cached_property
    def groups(self) -> list[Group]:
        """The stored tensors, by names that differ in numbers alone."""
        return group_names(self.tensors)

    @cached_property
    def weight_groups(self) -> list[Group]:
        """The same of `weights`."""
        return self.groups if self.weights is self.tensors else group_names(self.weights)

    @property
    def nbytes(self) -> int:
        """Of all tensors, as stored."""
        return sum(info.nbytes for info in self.tensors.values())

    @property
    def where(self) -> str:
        """The config's file, for messages."""
        return os.path.join(self.path, "config.json")


@dataclass
class Headers:
    """Tensors of which only headers are known, where a `Source` is asked for."""

    tensors: Mapping[str, TensorInfo]
    naming: str = "hf"

    def read(self, name: str, index: Index, into: "torch.Tensor") -> None:
        """Never: what is only surveyed is not read."""
        raise CheckpointError(f"{self.tensors[name].file} was surveyed, not opened")


def survey(path: str) -> Survey:
    """Look at the checkpoint in folder `path`, in the GGUF file that it names, or of the model that has this id.

    Raises:
        CheckpointError: there is no such checkpoint.
        ConfigError: there is no such model, here or at the Hugging Face hub.
    """
    path = os.fspath(path)
    if not os.path.isdir(path) and not gguf_shards(path):
        if os.path.exists(path):
            raise CheckpointError(f"{path!r} is a file, not a folder")
        path = find_model(path)
    damage: list[Problem] = []
    kind, source = _open(path, damage)
    problems: list[Problem] = []
    config = _config(path, source if damage else None, problems)
    told = {problem.what for problem in damage}  # what a GGUF file cannot say for itself is one problem, not two
    problems = [*(problem for problem in problems if problem.what not in told), *damage]
    quantization = config.get("quantization_config") if config is not None else None
    method = str(quantization.get("quant_method", "unknown")) if isinstance(quantization, Mapping) else ""
    weights, formats = source.tensors, {}
    try:
        if config is not None:
            floats = decoded(source, config)
            weights, formats = floats.tensors, _formats(floats)
    except MoesaicError as e:
        problems.append(Problem("config.json", str(e)))
    folder = path if os.path.isdir(path) else os.path.dirname(path)
    files = sorted(
        os.path.relpath(file, folder) for file in {f for info in source.tensors.values() for f in info.files}
    )
    stored = (source.tensors, weights, source.naming, method, formats)
    return Survey(path, kind, config, *stored, tuple(files), tuple(problems))


def _formats(source: Source) -> dict[str, WeightFormat]:
    if isinstance(source, PackedSource):
        return {name: format for name, format in source.formats.items() if format.quantised}
    if not is_coded(source):
        return {}
    found = {name: source.format_of(name) for name in source.tensors}
    return {name: format for name, format in found.items() if format is not None}


def _config(path: str, damaged: Source | None, problems: list[Problem]) -> dict[str, Any] | None:
    """The config; of a damaged GGUF checkpoint, as far as its metadata can be read."""
    try:
        if isinstance(damaged, GgufSource) and damaged.metadata:
            return config_with_gguf(path, lambda: damaged)
        return read_config(path)
    except MoesaicError as e:
        problems.append(Problem("config.json", str(e)))
        return None


def _open(path: str, problems: list[Problem]) -> tuple[str, Source]:
    """The format and the tensors; of a damaged checkpoint, those that can be seen."""
    for kind, opener in openers_of(path).items():
        try:
            source = opener(path)
        except MoesaicError as e:
            if kind == "gguf":
                return kind, _survey_gguf(path, str(e), problems)
            before = len(problems)
            found = _survey_files(path, problems)
            if len(problems) == before:  # else each file has said it better
                problems.append(Problem("", str(e)))
            return kind, Headers(found)
        if source is not None:
            return kind, source
    found = _survey_files(path, problems)
    problems.append(Problem("", _foreign(path)))
    return "", Headers(found)


def _survey_gguf(path: str, why: str, problems: list[Problem]) -> GgufSource:
    """What the headers of a damaged GGUF checkpoint tell, and a problem for each file that is damaged, beside `why` the
    whole is not opened."""
    found, wrong = survey_gguf(path)
    if why not in wrong.values():
        problems.append(Problem("", why))
    folder = path if os.path.isdir(path) else os.path.dirname(path)
    for file, what in wrong.items():
        held = {name: info for name, info in found.tensors.items() if info.file == file}
        size = os.path.getsize(file) if os.path.exists(file) else 0  # a link may lead nowhere
        problems.append(Problem(os.path.relpath(file, folder), what + _beyond(held, size)))
    return found


def _survey_files(path: str, problems: list[Problem]) -> dict[str, TensorInfo]:
    """The tensors of every file whose header can be read by itself, and a problem for each that cannot."""
    tensors: dict[str, TensorInfo] = {}
    for file in _files(path):
        header = HEADERS.get(os.path.splitext(file)[1])
        if header is None or not holds_weights(os.path.basename(file)):
            continue
        where = os.path.relpath(file, path)
        try:
            by_key, damage = header(file)
            found = {tensor_name(where, key): info for key, info in by_key.items()}
        except MoesaicError as e:
            problems.append(Problem(where, str(e)))
            continue
        if damage:
            problems.append(Problem(where, damage + _beyond(found, os.path.getsize(file))))
        twice = tensors.keys() & found.keys()
        if twice:
            others = sorted({os.path.relpath(tensors[name].file, path) for name in twice})
            problems.append(Problem(where, f"{len(twice)} of its tensors are in {listed(others)} too: {min(twice)}"))
        tensors.update(found)
    if os.path.isdir(path):
        problems += _absent(path, tensors)
    return tensors


def _beyond(tensors: Mapping[str, TensorInfo], size: int) -> str:
    """Which tensors of a file of `size` bytes are cut off; "" for none."""
    cut = {name: info for name, info in tensors.items() if info.offset + info.nbytes > size}
    return f". Cut off: {listed(cut, 3)}" if cut else ""


def _absent(path: str, tensors: Mapping[str, TensorInfo]) -> Iterator[Problem]:
    """What each index names and no file holds."""
    if not os.path.isdir(path):
        return
    for file in sorted(os.listdir(path)):
        if not file.endswith(".index.json"):
            continue
        try:
            wanted = dict(parse_json(read_file(os.path.join(path, file)))["weight_map"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
            yield Problem(file, f"is damaged ({e!r})")
            continue
        lost = Counter(shard for name, shard in wanted.items() if name not in tensors and isinstance(shard, str))
        for shard, count in sorted(lost.items()):
            if not os.path.isfile(os.path.join(path, shard)):
                names = {n: TensorInfo("F32", (), shard) for n, s in wanted.items() if s == shard}
                layers = sorted({layer for group in group_names(names) for layer in group.layers})
                of = f", of layers {listed(layers)}" if layers else ""
                yield Problem(shard, f"is not there, though {file} names it for {count} tensors{of}")
        here = [n for n, s in wanted.items() if n not in tensors and os.path.isfile(os.path.join(path, str(s)))]
        if here:
            yield Problem(file, f"names {len(here)} tensors that their files do not hold: {listed(here, 3)}")


def _files(path: str) -> list[str]:
    found: list[str] = []
    for folder, _, names in os.walk(path):
        found += [os.path.join(folder, name) for name in names]
        if len(found) > MAX_FILES:
            break
    return sorted(found)


def _foreign(path: str) -> str:
    """What a folder holds in place of weights that are read here."""
    kinds: Counter[str] = Counter()
    for file in _files(path):
        name = os.path.basename(file)
        suffix = ".zarr" if name == ".zarray" else os.path.splitext(name)[1]
        if suffix in FOREIGN or ".data-0000" in name:
            kinds[FOREIGN.get(suffix, "TensorFlow checkpoint")] += 1
    if kinds:
        what = listed(f"{count} file{'s' * (count > 1)} of {kind}" for kind, count in kinds.most_common())
        return f"holds {what}, which are not read here; formats that are: {listed(OPENERS, 12)}"
    names = sorted(os.listdir(path))
    return f"holds no weights as {' or '.join(OPENERS)} (it holds: {listed(names, 10) or 'nothing'})"
