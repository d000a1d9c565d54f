"""DeepSpeed's checkpoints of mixtures of experts: a file for each expert of each layer,
`layer_{l}_expert_{e}_mp_rank_{mm}_model_states.pt` (l counts the layers that have experts), and the rest under `module`
in `mp_rank_{mm}_model_states.pt`.

DeepSpeed puts a module of its own around the experts; names are given back as the model's own code has them:
`x.deepspeed_moe.experts.deepspeed_experts.7.w1.weight` is `x.experts.7.w1.weight`, and `x.deepspeed_moe.gate.wg.weight`
is `x.gate.weight`.
"""

import os
import re
from collections import defaultdict
from itertools import product

from moesaic.core.errors import CheckpointError, UnsupportedError
from moesaic.weights.containers.torch_file import read_header
from moesaic.weights.layouts.files import folder_of_step, natural
from moesaic.weights.tensors import ReadableInfo, merge_shards

LATEST = "latest"  # a file that names the folder of the last step
EXPERT = re.compile(r"layer_(\d+)_expert_(\d+)_mp_rank_(\d+)_model_states\.pt")
REST = re.compile(r"mp_rank_(\d+)_model_states\.pt")
ZERO3 = re.compile(r"zero_pp_rank_\d+_mp_rank_\d+_model_states\.pt")
OWN = {".deepspeed_moe.experts.deepspeed_experts.": ".experts.", ".deepspeed_moe.gate.wg.": ".gate."}


def open_deepspeed(folder: str) -> dict[str, ReadableInfo] | None:
    """The tensors of a checkpoint of DeepSpeed's, in `folder` or in the one that its `latest` names; None for another.

    Raises:
        CheckpointError: a file is damaged or missing, by name.
        UnsupportedError: it is one of the kinds that are not read, by name.
    """
    where = folder_of_step(folder, LATEST)
    names = natural(os.listdir(where))
    if any(ZERO3.fullmatch(name) for name in names):
        raise UnsupportedError(
            f"{where} holds parts of parameters (ZeRO stage 3): make whole ones with DeepSpeed's zero_to_fp32.py"
        )
    experts = {tuple(map(int, found.groups())): name for name in names if (found := EXPERT.fullmatch(name))}
    rest = {int(found[1]): name for name in names if (found := REST.fullmatch(name))}
    if not rest and not experts:
        return None
    _refuse_gaps(where, experts, rest)
    if len(rest) > 1:
        raise UnsupportedError(
            f"{where} is split over {len(rest)} tensor-parallel ranks (mp_rank_00 to mp_rank_{len(rest) - 1:02d}), and "
            "DeepSpeed does not say along which dimension each tensor is: save it with one rank, or as a universal "
            "checkpoint (ds_to_universal.py)"
        )
    files = [*rest.values(), *experts.values()]
    return merge_shards(
        {_own_name(name): info for name, info in read_header(os.path.join(where, file), lenient=True).items()}
        for file in files
    )


def _refuse_gaps(where: str, experts: dict[tuple[int, ...], str], rest: dict[int, str]) -> None:
    """Every layer has a file for each expert, of each rank."""
    ranks = sorted(rest.keys() | {rank for _, _, rank in experts})
    absent = [f"mp_rank_{rank:02d}_model_states.pt" for rank in range(ranks[-1] + 1) if rank not in rest]
    of_layer = defaultdict(set)
    for layer, expert, _ in experts:
        of_layer[layer].add(expert)
    for layer in range(max(of_layer, default=-1) + 1):
        count = max(max(e) for e in of_layer.values()) + 1
        wanted = product([layer], range(count), ranks)
        absent += [
            f"layer_{n}_expert_{e}_mp_rank_{rank:02d}_model_states.pt"
            for n, e, rank in wanted
            if (n, e, rank) not in experts
        ]
    if absent:
        more = f" and {len(absent) - 8} more" if len(absent) > 8 else ""
        raise CheckpointError(f"{where} lacks {len(absent)} files: {', '.join(absent[:8])}{more}")


def _own_name(name: str) -> str:
    name = name.removeprefix("module.")
    for theirs, ours in OWN.items():
        name = name.replace(theirs, ours)
    return name
