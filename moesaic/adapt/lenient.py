"""Reading a config as some architecture would, whatever is missing or refused: what it has to say is written down.

Torch-free. Only for comparing architectures: what is not stated is taken from the tensors, or made up.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import NoneType, UnionType
from typing import Any, get_args

from moesaic.core.errors import ConfigError
from moesaic.models.config_reader import METADATA, ConfigReader

# Keys that say the same in different configs, a line a fact.
_SAME = """
hidden_size d_model n_embd dim model_dim embed_dim hidden_dim
num_hidden_layers n_layers num_layers n_layer depth
num_attention_heads n_heads num_heads n_head heads
num_key_value_heads n_kv_heads num_kv_heads kv_n_heads kv_heads
head_dim d_head head_size
vocab_size n_vocab vocabulary_size padded_vocab_size
max_position_embeddings max_seq_len max_sequence_length n_positions context_length seq_length n_ctx
rms_norm_eps norm_eps layer_norm_eps layer_norm_epsilon layernorm_epsilon
rope_theta rope_base rotary_emb_base theta
tie_word_embeddings tie_embeddings tied_embeddings
hidden_act activation hidden_activation activation_function
num_experts num_local_experts n_routed_experts moe_num_experts experts_num n_experts num_moe_experts
num_experts_per_tok num_experts_per_token moe_topk moe_k moe_top_k top_k_experts experts_per_token
intermediate_size ffn_dim ffn_hidden_size d_ff n_inner ffn_size
moe_intermediate_size expert_ffn_hidden_size expert_ffn_dim expert_dim expert_size expert_intermediate_size
n_shared_experts num_shared_experts moe_num_shared_experts shared_experts_num
norm_topk_prob moe_renormalize renormalize normalize_topk
"""
SAME: dict[str, tuple[str, ...]] = {
    key: tuple(line.split()) for line in _SAME.strip().splitlines() for key in line.split()
}
STAND_INS: dict[type, Any] = {int: 1, float: 1.0, str: "", bool: False, list: [], dict: {}}


@dataclass
class Reading:
    """What one architecture said of a config.

    Attributes:
        facts: values of the usual keys that are known from elsewhere, such as the tensors.
        missing: keys that it requires, and nobody has.
        refused: values that it does not serve.
        renamed: keys that it found under another name -> that name.
    """

    facts: Mapping[str, Any]
    missing: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    renamed: dict[str, str] = field(default_factory=dict)


class LenientReader(ConfigReader):
    """A reader that always has an answer."""

    def __init__(self, values: Mapping[str, Any], reading: Reading, prefix: str = "", metadata: bool = True) -> None:
        super().__init__(values, "config.json", prefix, metadata)
        self.reading = reading

    def refuse_unless(self, key: str, *values: Any) -> None:
        """Write down what is not served."""
        self._known.add(key)
        if key in self._values and self._values[key] not in values:
            self.reading.refused.append(f"{self._prefix}{key} = {self._values[key]!r}")

    def not_understood(self) -> list[str]:
        """Keys that nobody asked for."""
        renamed = set(self.reading.renamed.values())
        return [
            reader._prefix + key
            for reader in self._readers()
            for key in reader._values
            if key not in reader._known and key not in METADATA and key not in renamed
        ]

    def _another(self, values: Mapping[str, Any], path: str, prefix: str, metadata: bool) -> ConfigReader:
        return LenientReader(values, self.reading, prefix, metadata)

    def _get(self, kind: Any, keys: tuple[str, ...], absent: Any) -> Any:
        keys = (*keys, *(self._other_names[key] for key in keys if key in self._other_names))
        self._known.update(keys)
        others = [other for key in keys for other in SAME.get(key, ())]
        for key in (*keys, *others):
            if key in self._values:
                try:
                    value = self._typed(kind, key)
                except ConfigError:
                    continue
                if key not in keys:
                    self.reading.renamed[keys[0]] = key
                return value
        known = next((self.reading.facts[key] for key in keys if self.reading.facts.get(key) is not None), None)
        if known is not None:
            return known
        if isinstance(absent, int | float | str | bool | list | dict | tuple | NoneType):
            return absent
        self.reading.missing.append(f"{self._prefix}{keys[0]}")
        kinds = get_args(kind) if isinstance(kind, UnionType) else (kind,)
        return next((STAND_INS[k] for k in STAND_INS if k in kinds), None)
