"""AutoRound: weights in the layout of GPTQ or of AWQ, some of them by settings of their own.

Cheng et al., "Optimize Weight Rounding via Signed Gradient Descent", arXiv:2309.05516.
"""

import re
from typing import Any

from moesaic.core.errors import ConfigError
from moesaic.core.keys import KeyReader
from moesaic.weights.codecs import awq, gptq
from moesaic.weights.codecs.encoded import Codec, Encoded
from moesaic.weights.codecs.parts import Tensors, pattern

IGNORED = (
    *("quant_method", "backend", "autoround_version", "iters", "lr", "minmax_lr", "nsamples", "seqlen", "batch_size"),
    *("enable_quanted_input", "enable_minmax_tuning", "low_gpu_mem_usage", "gradient_accumulate_steps", "amp"),
    *("block_name_to_quantize", "to_quant_block_names", "scale_dtype", "quant_lm_head", "dataset", "model_free"),
    *("modules_to_not_convert", "damp_percent", "true_sequential", "super_bits", "super_group_size", "lm_head"),
    *("static_attention_dtype", "static_kv_dtype", "enable_norm_bias_tuning", "enable_quanted_input", "act_dynamic"),
    *("act_sym", "act_group_size", "act_data_type"),
)
PLAIN_BITS = 16  # of a module that is not quantised


class AutoRound(Codec):
    """The scheme that a config describes. Raises ConfigError."""

    def __init__(self, keys: KeyReader) -> None:
        keys.ignore(*IGNORED)
        keys.refuse_unless("data_type", "int")
        keys.refuse_unless("act_bits", 16, 32, None)
        layout = keys.read(str, "packing_format", absent="auto_round:auto_gptq").removeprefix("auto_round:")
        layout = layout.removeprefix("auto_")
        if layout not in ("gptq", "awq"):
            raise keys.error("packing_format", "only auto_round:auto_gptq and auto_round:auto_awq are read")
        self._gptq = layout == "gptq"
        self._known = gptq.BITS if self._gptq else awq.BITS
        self._usual = self._read(keys, None)
        self._exceptions = []
        for name, change in (keys.read(dict | None, "extra_config", absent=None) or {}).items():
            if not isinstance(change, dict):
                raise ConfigError(f"{keys.path}: quantization_config.extra_config: {name!r} must be an object")
            each = KeyReader(change, keys.path, f"quantization_config.extra_config.{name}.")
            if each.read(int, "bits", absent=0) < PLAIN_BITS:
                each.ignore("data_type", *IGNORED)
                each.refuse_unless("act_bits", 16, 32, None)
                special = re.search(r"[*+?^$()\[\]|\\]", name)
                found = pattern(name if special else re.escape(name), keys.path)
                self._exceptions.append((found, self._read(each, self._usual)))
                each.finish()

    def weights(self, tensors: Tensors) -> list[Encoded]:
        """Every quantised weight. Raises CheckpointError."""
        if self._gptq:
            return gptq.gptq_weights(tensors, self._settings, "auto-round")
        return awq.awq_weights(
            tensors, lambda m: awq.Settings(self._settings(m).bits, self._settings(m).group), "auto-round"
        )

    def _settings(self, module: str) -> gptq.Settings:
        return next((settings for found, settings in self._exceptions if found.fullmatch(module)), self._usual)

    def _read(self, keys: KeyReader, usual: gptq.Settings | None) -> gptq.Settings:
        """Settings, absent ones as usual."""
        known: Any = usual or gptq.Settings(0, 128, True, False, True)
        return gptq.Settings(
            known.bits if usual and "bits" not in keys else gptq.bits_of(keys, self._known),
            gptq.group_of(keys, "group_size", absent=known.group or -1),
            keys.read(bool, "sym", absent=known.symmetric),
            keys.read(bool, "desc_act", absent=False),
            less_one=True,
        )
