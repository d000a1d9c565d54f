"""A packed checkpoint: files of packed matrices, and a file of the vectors beside them. Torch-free.

model-00001-of-00002.moepack ...    matrices as kernels read them (`weights.containers.packed`)
vectors.safetensors                 norms, biases and the like, by canonical name
"""

import glob
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from moesaic.core.errors import CheckpointError
from moesaic.core.formats import WeightFormat
from moesaic.weights.containers import safetensors
from moesaic.weights.containers.packed import SUFFIX, Packed, read_header
from moesaic.weights.rules import Index
from moesaic.weights.tensors import ReadableInfo, merge_shards

if TYPE_CHECKING:
    import torch

PACKED = "packed"  # the naming: canonical names
VECTORS = "vectors.safetensors"
TWIN = "embed.weight.twin"  # the LM head of tied embeddings, where its format is not the table's


@dataclass
class PackedSource:
    """The tensors of a packed checkpoint, by canonical name. `tensors` are all; of them only vectors can be read, for
    matrices go where they belong as they are (`weights.packed_model`).

    Attributes:
        files: in the order of the model.
        vectors: those that are kept as numbers.
    """

    files: tuple[Packed, ...]
    vectors: Mapping[str, ReadableInfo]
    tensors: Mapping[str, ReadableInfo]
    naming: str = PACKED

    @property
    def formats(self) -> dict[str, WeightFormat]:
        """Parameter in a matrix -> the format of that; the LM head's too where it is a copy of the embeddings."""
        found = {name: format for file in self.files for name, format in file.formats.items()}
        for file in self.files:
            found.update(("lm_head.weight", matrix.format) for matrix in file.matrices if matrix.name == TWIN)
        return found

    def read(self, name: str, index: Index, into: "torch.Tensor") -> None:
        """As of Source."""
        self.tensors[name].read(index, into)


def open_packed(folder: str) -> PackedSource | None:
    """The packed checkpoint in `folder`; None where there is none. Raises CheckpointError, UnsupportedError."""
    paths = sorted(glob.glob(os.path.join(glob.escape(folder), f"model*{SUFFIX}")))
    if not paths:
        return None
    files = sorted((read_header(path) for path in paths), key=lambda file: file.number)
    if [file.number for file in files] != list(range(files[0].files)):
        raise CheckpointError(
            f"{folder} holds {len(files)} of the {files[0].files} files of a packed checkpoint (numbers "
            f"{', '.join(str(file.number + 1) for file in files)}): copy it whole, or convert it again"
        )
    path = os.path.join(folder, VECTORS)
    if not os.path.isfile(path):
        raise CheckpointError(f"{folder} holds packed matrices, but no {VECTORS} beside them: copy it whole")
    vectors = safetensors.read_header(path)
    matrices = merge_shards(file.tensors for file in files)
    return PackedSource(tuple(files), vectors, merge_shards([matrices, vectors]))
