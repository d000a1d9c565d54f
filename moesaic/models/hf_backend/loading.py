"""transformers' model of a checkpoint, its weights read by transformers and every miss refused."""

from typing import Any

import torch

from moesaic.core.config import ModelConfig
from moesaic.core.errors import CheckpointError, UnsupportedError
from moesaic.core.log import get_logger
from moesaic.models.config_reader import read_config
from moesaic.models.hf_backend import attention, experts
from moesaic.models.hf_backend.facts import ForeignSpec, class_of, load_config, unknown_keys
from moesaic.weights.report import report_of
from moesaic.weights.scan import scan_numbers

log = get_logger(__name__)

MOST_NAMED = 20
READ_BY_TRANSFORMERS = ("auto", "safetensors", "bin", "dummy")


def load(config: ModelConfig, spec: ForeignSpec, device: torch.device) -> Any:
    """The model in inference mode. Raises CheckpointError or UnsupportedError.

    What transformers would leave random (weights that the checkpoint lacks, or has in another shape) and what it would
    drop is refused by name.
    """
    attention.register()
    experts.register()
    cls, own = class_of(spec.entry, config.path), load_config(config.path, spec.entry)
    raw = read_config(config.path)
    ours = raw[spec.entry.part[1]] if spec.entry.part else raw
    unknown = [] if spec.entry.remote else unknown_keys(type(own), ours)
    if unknown:
        log.warning("%s has no field for these keys of config.json: %s", type(own).__name__, ", ".join(unknown))
    kinds: dict[str, Any] = {"dtype": getattr(torch, config.dtype)}
    if spec.entry.mode == "packed":
        towers = own.get_text_config(decoder=True) is not own
        kinds["attn_implementation"] = {"text_config": attention.NAME} if towers else attention.NAME
    elif spec.entry.attention is not None:
        kinds["attn_implementation"] = spec.entry.attention
    if config.load_format not in READ_BY_TRANSFORMERS:
        raise UnsupportedError(
            f"transformers' own code computes this model, and transformers reads no {config.load_format} checkpoints: "
            "convert it to safetensors first (`moesaic convert`)"
        )
    if config.load_format == "dummy":
        torch.manual_seed(config.seed)
        model = cls._from_config(own, **kinds)
    else:
        model = _from_pretrained(cls, config, own, kinds)
        _look_at(model, config)
    return model.to(device).eval()


def _from_pretrained(cls: Any, config: ModelConfig, own: Any, kinds: dict[str, Any]) -> Any:
    try:
        model, info = cls.from_pretrained(
            config.path,
            config=own,
            local_files_only=True,
            weights_only=True,
            use_safetensors={"safetensors": True, "bin": False}.get(config.load_format),
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are refused below, by name
            **kinds,
        )
    except (OSError, RuntimeError) as error:
        raise CheckpointError(f"transformers does not load {config.path}: {error}") from error
    lines = [
        f"{title}: {', '.join(sorted(map(str, info[kind]))[:MOST_NAMED])}"
        + (" ..." if len(info[kind]) > MOST_NAMED else "")
        for kind, title in (
            ("missing_keys", "missing (no tensor fills this parameter)"),
            ("unexpected_keys", "superfluous (no parameter takes this tensor)"),
            ("mismatched_keys", "of the wrong shape"),
            ("error_msgs", "errors"),
        )
        if info.get(kind)
    ]
    if lines:
        raise CheckpointError(f"the checkpoint in {config.path} does not fit the model:\n  " + "\n  ".join(lines))
    return model


def _look_at(model: torch.nn.Module, config: ModelConfig) -> None:
    """As native loading looks at what it read. Raises CheckpointError for weights that are not finite."""
    weights = {name: tensor for name, tensor in model.state_dict().items() if tensor.is_floating_point()}
    scans = {name: scan_numbers(tensor) for name, tensor in weights.items()}
    report = report_of(scans, {name: tuple(t.shape) for name, t in weights.items()}, {name: name for name in weights})
    if report.not_finite and not config.allow_nonfinite:
        raise CheckpointError(report.refusal(config.path))
    for warning in report.warnings(config.path):
        log.warning("%s", warning)
