"""Reading a checkpoint's config.json: every key is read, ignored by name, or refused. Torch-free."""

import json
import os
from collections.abc import Mapping
from types import NoneType, UnionType
from typing import Any, get_args

from moesaic.core.errors import CheckpointError, ConfigError, UnsupportedError, nearest
from moesaic.weights.codecs import method_of

_REQUIRED = object()

# Keys that say nothing about what is computed at inference. Older versions of transformers wrote all the
# generic ones into every config.json. The last line: of training in parallel, and of layers that only speculate.
_METADATA = """
    _name_or_path _commit_hash _attn_implementation attn_implementation _attn_implementation_autoset
    _experts_implementation architectures auto_map model_type transformers_version torch_dtype dtype
    use_cache use_flash_attention_2 initializer_range gradient_checkpointing torchscript use_bfloat16 unsloth_version
    bos_token_id eos_token_id pad_token_id sep_token_id decoder_start_token_id
    attention_dropout hidden_dropout embd_dropout resid_dropout output_router_logits router_aux_loss_coef
    output_attentions output_hidden_states return_dict return_dict_in_generate output_scores
    id2label label2id num_labels problem_type finetuning_task task_specific_params prefix tokenizer_class
    pruned_heads is_decoder chunk_size_feed_forward quantization_config
    max_length min_length do_sample early_stopping num_beams num_beam_groups diversity_penalty temperature top_k
    top_p typical_p repetition_penalty length_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size
    bad_words_ids num_return_sequences forced_bos_token_id forced_eos_token_id remove_invalid_values
    exponential_decay_length_penalty suppress_tokens begin_suppress_tokens tf_legacy_loss
    pretraining_tp num_nextn_predict_layers num_mtp_layers
"""
METADATA = frozenset(_METADATA.split())


class ConfigReader:
    """Hands out the values of a config and remembers which keys were understood.

    `read` and `require` take a type, or a union of types, that the JSON value must have; int is also fine where
    float is asked for, true and false are never numbers. JSON null counts as None, not as an absent key.
    """

    def __init__(self, values: Mapping[str, Any], path: str, prefix: str = "", metadata: bool = True) -> None:
        self.path = path
        self._values = values
        self._prefix = prefix
        self._metadata = METADATA if metadata else frozenset()
        self._known: set[str] = set()
        self._other_names: dict[str, str] = {}
        self._children: list[ConfigReader] = []

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def require(self, kind: Any, key: str, *aliases: str) -> Any:
        """The value of `key` (or of one of its other names), which must be there."""
        return self._get(kind, (key, *aliases), _REQUIRED)

    def read(self, kind: Any, key: str, *aliases: str, absent: Any) -> Any:
        """The value of `key`, or `absent`: what the architecture's own config class says of a missing key."""
        return self._get(kind, (key, *aliases), absent)

    def call(self, **names: str) -> None:
        """The usual keys that this architecture calls by other names: `call(hidden_size="d_model")`."""
        self._other_names.update(names)

    def positive(self, key: str, *, absent: int) -> int:
        """The value of `key`, an integer that must be at least 1, or `absent`."""
        value = int(self.read(int, key, absent=absent))
        if value < 1:
            raise self.error(key, "must be at least 1")
        return value

    def ignore(self, *keys: str) -> None:
        """Keys that change nothing of what is computed."""
        self._known.update(keys)

    def refuse_unless(self, key: str, *values: Any) -> None:
        """Raise UnsupportedError unless `key` is absent or has one of the values that are implemented."""
        self._known.add(key)
        if key in self._values and self._values[key] not in values:
            allowed = " or ".join(json.dumps(v) for v in values)
            raise UnsupportedError(
                f"{self.path}: {self._prefix}{key} = {json.dumps(self._values[key])} is not supported; "
                f"only {allowed} is"
            )

    def child(self, key: str, *aliases: str, metadata: bool = False, **instead: Any) -> "ConfigReader":
        """A reader of the object under `key` (of an empty one where it is absent or null); `finish` covers it.

        Args:
            metadata: it is a model's config of its own, and may hold what says nothing about the computation.
            instead: values that count whatever the object has under these keys.
        """
        given = [k for k in (key, *aliases) if self._values.get(k) is not None]
        if len(given) > 1:
            raise ConfigError(f"{self.path}: {' and '.join(given)} name the same thing; keep one of them")
        self.ignore(key, *aliases)
        values = self.require(dict, given[0]) if given else {}
        child = ConfigReader({**values, **instead}, self.path, f"{self._prefix}{given[0] if given else key}.", metadata)
        if metadata:
            child.refuse_unless("is_encoder_decoder", False)
            child.refuse_unless("add_cross_attention", False)
            child.ignore("cross_attention_hidden_size", "tie_encoder_decoder")
        self._children.append(child)
        return child

    def error(self, key: str, problem: str) -> ConfigError:
        """An error about the value of `key`, to raise."""
        return ConfigError(f"{self.path}: {self._prefix}{key} = {json.dumps(self._values.get(key))}: {problem}")

    def finish(self) -> None:
        """Raise UnsupportedError for all keys that nobody asked for: they may change what the model computes."""
        self._refuse_quantized()
        lines = [line for reader in self._readers() for line in reader._untouched()]
        if lines:
            raise UnsupportedError(
                f"{self.path}: not understood, and might change what the model computes:\n  " + "\n  ".join(lines)
            )

    def _readers(self) -> "list[ConfigReader]":
        """This one and all under it."""
        return [self, *(reader for child in self._children for reader in child._readers())]

    def _refuse_quantized(self) -> None:
        method_of(self._values, self.path)

    def _untouched(self) -> list[str]:
        lines = []
        for key in self._values:
            if key in self._known or key in self._metadata:
                continue
            close = nearest(key, self._known)
            hint = f" (nearest understood key: {close[0]})" if close else ""
            lines.append(f"{self._prefix}{key} = {_short(self._values[key])}{hint}")
        return lines

    def _get(self, kind: Any, keys: tuple[str, ...], absent: Any) -> Any:
        keys = (*keys, *(self._other_names[key] for key in keys if key in self._other_names))
        self._known.update(keys)
        present = [key for key in keys if key in self._values]
        if not present:
            if absent is _REQUIRED:
                raise ConfigError(f"{self.path}: {' or '.join(self._prefix + k for k in keys)} is missing")
            return absent
        if len({json.dumps(self._values[key]) for key in present}) > 1:
            raise ConfigError(f"{self.path}: {' and '.join(present)} name the same thing but differ")
        return self._typed(kind, present[0])

    def _typed(self, kind: Any, key: str) -> Any:
        value = self._values[key]
        kinds = get_args(kind) if isinstance(kind, UnionType) else (kind,)
        if float in kinds and isinstance(value, int) and not isinstance(value, bool):
            return float(value)
        if isinstance(value, kinds) and (bool in kinds or not isinstance(value, bool)):
            return value
        expected = " or ".join("null" if k is NoneType else k.__name__ for k in kinds)
        raise ConfigError(f"{self.path}: {self._prefix}{key} must be {expected}, got {_short(value)}")


def read_config(path: str) -> dict[str, Any]:
    """The config.json of the checkpoint in folder `path`. Raises CheckpointError or ConfigError, one clear message."""
    if not os.path.isdir(path):
        what = "is a file, not a folder" if os.path.exists(path) else "does not exist"
        raise CheckpointError(f"model folder {path!r} {what}")
    if not os.listdir(path):
        raise CheckpointError(f"model folder {path!r} is empty")
    file = os.path.join(path, "config.json")
    config = _read_json(file)
    if config is None:
        raise CheckpointError(f"model folder {path!r} holds no config.json")
    return config


def eos_token_ids(path: str, config: Mapping[str, Any]) -> list[int]:
    """Tokens that end a sequence: generation_config.json's eos_token_id, else the config's, else its language model's;
    [] if none has one."""
    file = os.path.join(path, "generation_config.json")
    text = config.get("text_config")
    for source, values in ((file, _read_json(file)), ("config.json", config), ("config.json: text_config", text)):
        eos = values.get("eos_token_id") if isinstance(values, Mapping) else None
        if eos is None:
            continue
        ids = eos if isinstance(eos, list) else [eos]
        if not all(isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in ids):
            raise ConfigError(f"{source}: eos_token_id must be a token id or a list of them, got {_short(eos)}")
        return ids
    return []


def _read_json(file: str) -> dict[str, Any] | None:
    """The JSON object in `file`, None when there is no such file."""
    try:
        with open(file, encoding="utf-8") as f:
            value = json.load(f)
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as e:
        raise CheckpointError(f"cannot read {file}: {e}") from e
    except json.JSONDecodeError as e:
        raise ConfigError(f"{file} is not JSON: {e.msg} in line {e.lineno}, column {e.colno}") from e
    if not isinstance(value, dict):
        raise ConfigError(f"{file} must hold a JSON object, not {type(value).__name__}")
    return value


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else text[:77] + "..."
