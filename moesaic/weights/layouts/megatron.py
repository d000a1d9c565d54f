"""Megatron-core's checkpoints of one file a rank: `mp_rank_{tp}[_{pp or ep}][_{ep}]/model_optim_rng.pt`, alone or in
the folder of a step, `iter_{n}`, that `latest_checkpointed_iteration.txt` names.

Ranks are put together under Megatron's own names, with layers and experts counted over all ranks: tensor-parallel parts
are joined, each rank's gate over up apart; a pipeline rank's layers follow those of the ranks before it; an
expert-parallel rank's experts likewise, and both spellings of an expert (`experts.linear_fc1.weight7`,
`experts.local_experts.7.linear_fc1.weight`) become the second. `models.megatron_naming` says what the names mean.
"""

import os
import re
from collections.abc import Iterable, Mapping
from itertools import product

from moesaic.core.errors import CheckpointError, UnsupportedError
from moesaic.weights.containers.torch_file import read_header
from moesaic.weights.layouts.files import folder_of_step
from moesaic.weights.layouts.joined import join
from moesaic.weights.tensors import ReadableInfo

LATEST = "latest_checkpointed_iteration.txt"
FILE = "model_optim_rng.pt"
RANK = re.compile(r"mp_rank_(\d{2,})(?:_(\d{3,}))?(?:_(\d{3,}))?")
EXPERT = re.compile(
    r"(.*\.experts\.)(?:local_experts\.(\d+)\.(linear_fc[12])\.(\w+)|(linear_fc[12])\.(weight|bias)(\d+))"
)
LAYER = re.compile(r"(decoder\.layers\.)(\d+)(\..*)")
ROWS = re.compile(  # what tensor-parallel ranks share by rows
    r".*\.(linear_qkv|linear_fc1)\.(weight|bias)|embedding\.word_embeddings\.weight|output_layer\.(weight|bias)"
)
COLUMNS = re.compile(r".*\.(linear_proj|linear_fc2)\.weight")  # and by columns
GATED = re.compile(r"(.*\.)linear_fc1\.(weight|bias)")

Rank = tuple[int, int, int]  # tensor-, pipeline- and expert-parallel
Tensors = Mapping[str, ReadableInfo]


def open_megatron(folder: str) -> dict[str, ReadableInfo] | None:
    """The tensors of a checkpoint of Megatron's, in `folder` or in that of its last step; None for another.

    Raises:
        CheckpointError: a file is damaged or missing, by name.
        UnsupportedError: it is one of the kinds that are not read, by name.
    """
    where = folder_of_step(folder, LATEST, _step_name)
    found = {name: match for name in sorted(os.listdir(where)) if (match := RANK.fullmatch(name))}
    found = {name: match for name, match in found.items() if os.path.isdir(os.path.join(where, name))}
    if not found:
        return None
    keys = {name: tuple(int(n) for n in match.groups() if n is not None) for name, match in found.items()}
    _refuse_gaps(where, keys)
    headers = {key: _header(os.path.join(where, name, FILE)) for name, key in keys.items()}
    return _put_together(where, _ranks(headers))


def _step_name(stated: str) -> str:
    return f"iter_{int(stated):07d}" if stated.isdecimal() else stated


def _refuse_gaps(where: str, keys: Mapping[str, tuple[int, ...]]) -> None:
    """The ranks make a full grid, each with its file."""
    ranks = set(keys.values())
    if len({len(key) for key in ranks}) > 1:
        raise CheckpointError(f"{where} holds folders of ranks of two kinds: {', '.join(sorted(keys))}")
    grid = product(*(range(max(numbers) + 1) for numbers in zip(*ranks, strict=True)))
    wanted = [f"mp_rank_{key[0]:02d}" + "".join(f"_{n:03d}" for n in key[1:]) for key in grid]
    absent = [name for name in wanted if not os.path.isfile(os.path.join(where, name, FILE))]
    if absent:
        more = f" and {len(absent) - 8} more" if len(absent) > 8 else ""
        raise CheckpointError(
            f"{where} lacks the files of {len(absent)} ranks: {', '.join(f'{n}/{FILE}' for n in absent[:8])}{more}"
        )


def _header(path: str) -> Tensors:
    tensors = {name: info for name, info in read_header(path, lenient=True).items() if "_extra_state" not in name}
    if not any(LAYER.fullmatch(name) for name in tensors):
        some = ", ".join(sorted(tensors)[:3]) or "nothing"
        raise UnsupportedError(
            f"{path} holds no decoder.layers.*, as Megatron-core calls them, but {some}: older Megatron-LM, and stages "
            "of an interleaved pipeline, are not read"
        )
    return tensors


def _ranks(headers: Mapping[tuple[int, ...], Tensors]) -> dict[Rank, Tensors]:
    """The ranks by their three numbers. A folder with two numbers is one of an expert-parallel rank where all have the
    same tensors beside experts, and else of a pipeline's."""
    length = len(next(iter(headers)))
    if length != 2:
        return {(*key, *(0,) * (3 - length)): tensors for key, tensors in headers.items()}  # type: ignore[misc]
    beside = {frozenset(name for name in tensors if not EXPERT.fullmatch(name)) for tensors in headers.values()}
    experts = len(beside) == 1
    return {((t, 0, n) if experts else (t, n, 0)): tensors for (t, n), tensors in headers.items()}


def _put_together(where: str, ranks: Mapping[Rank, Tensors]) -> dict[str, ReadableInfo]:
    parts: dict[str, dict[int, ReadableInfo]] = {}  # name -> what each tensor-parallel rank holds
    first_layer = 0
    for pipeline in sorted({p for _, p, _ in ranks}):
        here = {(t, e): tensors for (t, p, e), tensors in ranks.items() if p == pipeline}
        layers = {int(found[2]) for name in here[0, 0] if (found := LAYER.fullmatch(name))}
        offset = first_layer if min(layers) == 0 else 0  # newer ones count over all ranks
        first_layer = offset + max(layers) + 1
        for (tensor, expert), tensors in sorted(here.items()):
            counts = _experts_of(where, tensors)
            for name, info in tensors.items():
                # what is no expert's, all expert-parallel ranks have alike
                parts.setdefault(_numbered(name, offset, expert, counts), {}).setdefault(tensor, info)
    gated = _gated(parts)
    return {name: _joined(where, name, [of[t] for t in sorted(of)], gated) for name, of in parts.items()}


def _experts_of(where: str, tensors: Iterable[str]) -> dict[str, int]:
    """How many experts a rank has, by what their names begin with."""
    numbers: dict[str, set[int]] = {}
    for name in tensors:
        if found := EXPERT.fullmatch(name):
            numbers.setdefault(found[1], set()).add(int(found[2] or found[7]))
    for prefix, found_numbers in numbers.items():
        if found_numbers != set(range(len(found_numbers))):
            raise CheckpointError(f"{where}: a rank's experts {prefix}* are not numbered from 0 on: {found_numbers}")
    return {prefix: len(of) for prefix, of in numbers.items()}


def _numbered(name: str, first_layer: int, expert_rank: int, experts: Mapping[str, int]) -> str:
    """The name with layer and expert counted over all ranks."""
    if found := EXPERT.fullmatch(name):
        number = int(found[2] or found[7]) + expert_rank * experts[found[1]]
        name = f"{found[1]}local_experts.{number}.{found[3] or found[5]}.{found[4] or found[6]}"
    if found := LAYER.fullmatch(name):
        name = f"{found[1]}{int(found[2]) + first_layer}{found[3]}"
    return name


def _gated(parts: Mapping[str, Mapping[int, ReadableInfo]]) -> set[str]:
    """What the feed-forwards are called that have a gate: as many rows in again as columns out."""
    return {
        found[1]
        for name, of in parts.items()
        if (found := GATED.fullmatch(name))
        and (down := parts.get(f"{found[1]}linear_fc2.weight"))
        and min(of) in down
        and of[min(of)].shape[0] == 2 * down[min(of)].shape[-1]
    }


def _joined(where: str, name: str, infos: list[ReadableInfo], gated: set[str]) -> ReadableInfo:
    up = GATED.fullmatch(name)
    try:
        if COLUMNS.fullmatch(name):
            return join(infos, 1)
        if ROWS.fullmatch(name):
            return join(infos, 0, halves=up is not None and up[1] in gated)
    except ValueError as e:
        raise CheckpointError(f"{where}: {name} cannot be put together: {e}") from e
    if len({(info.dtype, info.shape) for info in infos}) > 1:
        raise CheckpointError(
            f"{where}: tensor-parallel ranks hold {name} in several shapes, and Megatron does not say how they join"
        )
    return infos[0]
