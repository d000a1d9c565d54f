"""A model's packed matrices and the files of a packed checkpoint: what headers say of them, and filling them."""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from moesaic.core.errors import CheckpointError, ConfigError
from moesaic.core.log import get_logger
from moesaic.kernels.cpu.library import isa
from moesaic.kernels.cpu.packed import PackedMatrix, pack_version
from moesaic.weights.containers.packed import PackedEntry
from moesaic.weights.layouts.packed import PackedSource
from moesaic.weights.packed_file import Region, Stored, read_regions, regions_of
from moesaic.weights.packing import matrices_by_parameter
from moesaic.weights.plan import list_misses
from moesaic.weights.quantization import QuantizationPlan
from moesaic.weights.staging import Target
from moesaic.weights.writing import in_shards

log = get_logger(__name__)

QUADS = 1  # the bit of a layout's version that says how 8-bit codes of 8-bit products lie (csrc/kernels/pack.cpp)
Place = tuple[int, int]  # region, offset in it


class PackedParts:
    """The packed matrices behind a model's parameters, and the pages that they lie in.

    Attributes:
        matrices: (name of the first parameter in it, the matrix), each once.
        inside: parameter -> names of the matrices that it fills.
        regions: the pages; `places` says where in them each matrix lies.
    """

    def __init__(self, parameters: Mapping[str, Target]) -> None:
        self.matrices: Sequence[tuple[str, PackedMatrix]]
        self.matrices, self.inside = matrices_by_parameter(parameters)
        self.shapes = {name: tuple(parameters[name].shape) for name in self.inside}
        self.regions: list[Region]
        self.regions, self.places = regions_of([matrix for _, matrix in self.matrices])

    def in_files(self, most: int) -> list[range]:
        """The regions in files of at most so many bytes each; a region that is larger has a file of its own."""
        sizes = {str(number): region.nbytes for number, region in enumerate(self.regions)}
        return [range(int(names[0]), int(names[-1]) + 1) for names in in_shards(sizes, most)]

    def within(self, regions: Iterable[range]) -> set[str]:
        """The parameters all of whose matrices lie in these regions."""
        numbers = {number for some in regions for number in some}
        here = {name for (name, _), place in zip(self.matrices, self.places, strict=True) if place[0] in numbers}
        return {name for name, inside in self.inside.items() if here.issuperset(inside)}

    def header(self, regions: range, about: Mapping[str, Any]) -> dict[str, Any]:
        """What the file of these regions says of itself."""
        entries = [
            _entry(name, matrix, (region - regions.start, offset))
            for (name, matrix), (region, offset) in zip(self.matrices, self.places, strict=True)
            if region in regions
        ]
        here = {entry.name for entry in entries}
        parameters = {
            name: [self.shapes[name], [matrix for matrix in inside if matrix in here]]
            for name, inside in self.inside.items()
            if inside[0] in here
        }
        return {
            **about,
            "pack": pack_version(),
            "isa": isa(),
            "matrices": [entry.as_json() for entry in entries],
            "parameters": parameters,
        }


def packed_plan(plan: QuantizationPlan, source: PackedSource, where: str) -> QuantizationPlan:
    """The plan with the formats that a packed checkpoint has.

    Raises:
        ConfigError: other ones are asked for, or the machine's kernels keep matrices in another way.
    """
    file = source.files[0]
    again = "convert the checkpoint that it was made of again"
    if plan.dtype != file.dtype:
        raise ConfigError(f"{where} was packed in {file.dtype}, not in {plan.dtype}: leave --dtype out, or {again}")
    asked = (plan.scheme, plan.group_size, plan.exceptions)
    packed = QuantizationPlan.read(plan.dtype, **file.quantization)
    if (plan.scheme != "auto" or plan.exceptions) and asked != (packed.scheme, packed.group_size, packed.exceptions):
        raise ConfigError(
            f"{where} was packed with quantization {packed.scheme}"
            + (f" and {file.quantization['config']}" if packed.exceptions else "")
            + f", and what is packed stays so: leave --quantization and --quantization-config out, or {again}"
        )
    formats = source.formats
    quads = any(format.kind == "w8a8" for format in formats.values())
    ours, mask = pack_version()[0], -1 if quads else ~QUADS
    if ours & mask != file.layout & mask:
        raise ConfigError(
            f"{where} was packed for the {file.isa} kernels of layout {file.layout}, but the {isa()} ones here keep "
            f"matrices in layout {ours}: {again} on this machine"
        )
    return replace(
        plan,
        scheme="auto",
        exceptions=(),
        stored={n.removesuffix(".weight"): f for n, f in formats.items() if f.quantised},
    )


def fill_packed(source: PackedSource, parameters: Mapping[str, Target], where: str) -> dict[str, Target]:
    """Fill all packed matrices of a model from the files; the parameters that lie in none.

    Raises:
        CheckpointError: the files are of another model, or not what was written.
    """
    parts = PackedParts(parameters)
    first = 0
    wanted, there, files = [], [], []
    for (name, matrix), place in zip(parts.matrices, parts.places, strict=True):
        wanted.append(_entry(name, matrix, place))
    for file in source.files:
        there += [replace(matrix, region=matrix.region + first) for matrix in file.matrices]
        regions = parts.regions[first : first + len(file.regions)]
        files.append(Stored(file.path, file.begin, regions, file.checks))
        first += len(file.regions)
    _compare(wanted, there, where)
    sizes = [size for file in source.files for size in file.regions]
    if sizes != [region.nbytes for region in parts.regions]:
        raise CheckpointError(f"{where}: its regions are not those of this model: convert it again")
    try:
        read_regions(files)
    except (OSError, ValueError) as e:
        raise CheckpointError(f"{where} cannot be loaded: {e}; copy or convert it again") from e
    for remark in dict.fromkeys(remark for file in source.files for remark in file.remarks):
        log.warning("%s", remark)
    return {name: into for name, into in parameters.items() if name not in parts.inside}


def vectors_of(parameters: Mapping[str, Target], parts: PackedParts) -> dict[str, torch.Tensor]:
    """The parameters that lie in no packed matrix."""
    return {n: p for n, p in parameters.items() if n not in parts.inside and isinstance(p, torch.Tensor)}


def _entry(name: str, matrix: PackedMatrix, place: Place) -> PackedEntry:
    return PackedEntry(name, *matrix.shape, matrix.format, matrix.gated, *place, matrix.nbytes)


def _compare(wanted: Sequence[PackedEntry], there: Sequence[PackedEntry], where: str) -> None:
    """Raise CheckpointError unless the files hold this model's matrices, each where it lies in memory."""
    if list(wanted) == list(there):
        return
    ours, theirs = {entry.name: entry for entry in wanted}, {entry.name: entry for entry in there}
    lines = [
        *list_misses("matrices missing", [name for name in ours if name not in theirs], _nothing),
        *list_misses("matrices that the model has not", [name for name in theirs if name not in ours], _nothing),
        *list_misses(
            "matrices that differ",
            [name for name in ours if name in theirs and ours[name] != theirs[name]],
            lambda name: f"{_said(theirs[name])}, the model has {_said(ours[name])}",
        ),
    ]
    raise CheckpointError(
        f"{os.path.join(where, 'config.json')} asks for another model than was packed (or another version of moesaic "
        "packed it): convert the checkpoint again\n" + "\n".join(lines)
    )


def _nothing(name: str) -> str:
    return ""


def _said(entry: PackedEntry) -> str:
    return f"[{entry.rows}, {entry.cols}] {entry.format} at {entry.region}:{entry.offset}"
