"""Reading a checkpoint's config.json: every key is read, ignored by name, or refused. Torch-free."""

import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from moesaic.core.errors import CheckpointError, ConfigError
from moesaic.core.files import parse_json, read_file
from moesaic.core.keys import KeyReader, short
from moesaic.models.gguf.config import gguf_config
from moesaic.weights.codecs import method_of
from moesaic.weights.containers.gguf import GgufSource, gguf_alone, open_gguf

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
    pruned_heads is_decoder chunk_size_feed_forward quantization_config compression_config
    max_length min_length do_sample early_stopping num_beams num_beam_groups diversity_penalty temperature top_k
    top_p typical_p repetition_penalty length_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size
    bad_words_ids num_return_sequences forced_bos_token_id forced_eos_token_id remove_invalid_values
    exponential_decay_length_penalty suppress_tokens begin_suppress_tokens tf_legacy_loss
    pretraining_tp num_nextn_predict_layers num_mtp_layers
"""
PACKED_KEY = "moesaic_packed"  # how `moesaic convert` packed the weights
METADATA = frozenset([*_METADATA.split(), PACKED_KEY])
MAX_CONFIG_BYTES = 16 << 20
MAX_TEXT = 8192  # letters of a key or a text in it


class ConfigReader(KeyReader):
    """A reader of a model's config, or of an object in it."""

    subject = "the model computes"

    def __init__(self, values: Mapping[str, Any], path: str, prefix: str = "", metadata: bool = True) -> None:
        super().__init__(values, path, prefix)
        self._metadata = METADATA if metadata else frozenset()

    def call(self, **names: str) -> None:
        """The usual keys that this architecture calls by other names: `call(hidden_size="d_model")`."""
        self._other_names.update(names)

    def suppose(self, **values: Any) -> None:
        """What this architecture means by usual keys that its configs do not have: `suppose(rope_theta=10000.0)`."""
        self._values = {**values, **self._values}

    def child(self, key: str, *aliases: str, metadata: bool = False, **instead: Any) -> "ConfigReader":
        """A reader of the object under `key` (of an empty one where it is absent or null); `finish` covers it.

        Args:
            metadata: it is a model's config of its own, and may hold what says nothing about the computation.
            instead: values that count whatever the object has under these keys.
        """
        values, path, prefix = self._object(key, aliases)
        child = self._another({**values, **instead}, path, prefix, metadata)
        if metadata:
            child.refuse_unless("is_encoder_decoder", False)
            child.refuse_unless("add_cross_attention", False)
            child.ignore("cross_attention_hidden_size", "tie_encoder_decoder")
        self._children.append(child)
        return child

    def _another(self, values: Mapping[str, Any], path: str, prefix: str, metadata: bool) -> "ConfigReader":
        """A reader of the same kind, of an object within."""
        return ConfigReader(values, path, prefix, metadata)

    def finish(self) -> None:
        """Raise UnsupportedError for all keys that nobody asked for, and for weights quantised in a way that is not
        read."""
        method_of(self._values, self.path)
        super().finish()


def read_config(path: str) -> dict[str, Any]:
    """The config.json of the checkpoint in folder `path`, or what the metadata of a GGUF file say in its place: of that
    which lies in the folder, or is itself what `path` names.

    Raises:
        CheckpointError, ConfigError: one clear message.
    """
    shards = gguf_alone(path)
    if shards:
        return config_with_gguf(path, lambda: open_gguf(shards))
    if not os.path.isdir(path):
        what = "is a file, not a folder" if os.path.exists(path) else "does not exist"
        raise CheckpointError(f"model folder {path!r} {what}")
    if not os.listdir(path):
        raise CheckpointError(f"model folder {path!r} is empty")
    config = _read_json(os.path.join(path, "config.json"))
    if config is None:
        raise CheckpointError(
            f"model folder {path!r} holds no config.json, which says what weights compute: put the one of the model's "
            "Hugging Face layout there"
        )
    return config


def config_with_gguf(path: str, opened: Callable[[], GgufSource]) -> dict[str, Any]:
    """The config of weights in GGUF, in the folder or file `path`: a config.json that says so itself as it stands, else
    with what the metadata add. Raises as `read_config`."""
    config = _read_json(os.path.join(path, "config.json")) if os.path.isdir(path) else None
    stated = config.get("quantization_config") if config is not None else None
    if config is not None and isinstance(stated, Mapping) and stated.get("quant_method") == "gguf":
        return config
    made = gguf_config(opened())
    return made if config is None else config | {"quantization_config": made["quantization_config"]}


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
            raise ConfigError(f"{source}: eos_token_id must be a token id or a list of them, got {short(eos)}")
        return ids
    return []


def _read_json(file: str) -> dict[str, Any] | None:
    """The JSON object in `file`, None when there is no such file."""
    try:
        data = read_file(file, MAX_CONFIG_BYTES)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as e:
        raise CheckpointError(f"cannot read {file}: {e}") from e
    try:
        value = parse_json(data)
    except UnicodeDecodeError as e:
        raise CheckpointError(f"cannot read {file}: {e}") from e
    except ValueError as e:
        raise ConfigError(f"{file} is not JSON: {e}") from e
    if not isinstance(value, dict):
        raise ConfigError(f"{file} must hold a JSON object, not {type(value).__name__}")
    longest = max(map(len, _texts(value)), default=0)
    if longest > MAX_TEXT:
        raise ConfigError(f"{file} has a text of {longest} letters, and at most {MAX_TEXT} are read")
    return value


def _texts(value: Any) -> Iterator[str]:
    """All texts in a JSON value, keys too."""
    values = [value]
    while values:
        value = values.pop()
        if isinstance(value, str):
            yield value
        elif isinstance(value, list):
            values += value
        elif isinstance(value, dict):
            values += value
            values += value.values()
