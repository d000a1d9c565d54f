"""transformers' own model of a checkpoint as the reference: its config parsing, its weight loading, its code, in fp32.

Nothing of ours takes part, neither weight rules nor the config reader. Its parts are found by what they are: decoder
layers by size, attention and feed-forward among a layer's children, experts by how they are called.
"""

import inspect
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from moesaic.adapt.proof.captured import Ops, Probe, Prompt, dense_weights
from moesaic.core.errors import CheckpointError

MIXER = re.compile("attention|attn|mixer|mamba|deltanet|conv|ssm|lightning", re.IGNORECASE)
FEED_FORWARD = re.compile("mlp|moe|ffn|feedforward|feed_forward", re.IGNORECASE)
DEQUANTISED = {"fp8": "FineGrainedFP8Config", "mxfp4": "Mxfp4Config"}  # by transformers itself, without a GPU


class HfModel:
    """See `captured.Model`."""

    shares = "nothing with the engine"

    def __init__(self, model: Any) -> None:
        import transformers

        self.model = getattr(model, "thinker", model)  # of what speaks as well, the part that reads
        self.name = f"transformers {transformers.__version__}, {type(model).__name__} in fp32"
        self.layers = decoder_layers(self.model)
        found = [experts_of(layer) for layer in self.layers]
        self.layer_of_moe = [i for i, experts in enumerate(found) if experts is not None]
        self.experts = [experts for experts in found if experts is not None]

    @property
    def num_layers(self) -> int:
        return len(self.layers)

    @torch.inference_mode()  # type: ignore[untyped-decorator]
    def apply(self, probe: Probe) -> Tensor | None:
        experts = self.experts[probe.moe]
        if isinstance(experts, nn.ModuleList):
            return _each(experts, probe)
        if not callable_alone(experts):
            return None
        try:
            out: Tensor = experts(probe.hidden.clone(), probe.ids.long(), probe.weights.float())
            return out.reshape(probe.hidden.shape).float().clone()
        except (ValueError, TypeError, RuntimeError, IndexError):  # these want to be called in another way
            return None

    @torch.inference_mode()  # type: ignore[untyped-decorator]
    def run(self, tokens: list[int], trace: bool) -> Prompt:
        with self._watched(trace) as ops:
            logits = self.model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0].float().clone()
        inputs = [own.pop("input") for own in ops]
        return Prompt(tokens, len(tokens), logits, inputs + [own["layer"] for own in ops[-1:]], ops)

    @contextmanager
    def _watched(self, wanted: bool) -> Iterator[list[Ops]]:
        ops: list[Ops] = [{} for _ in self.layers] if wanted else []
        hooks: list[Any] = []
        for layer, own in zip(self.layers if wanted else [], ops, strict=True):
            hooks += _hooks(layer, own)
        try:
            yield ops
        finally:
            for hook in hooks:
                hook.remove()


def load_hf(path: str, trust_remote_code: bool = False, num_layers: int | None = None) -> HfModel:
    """The model in fp32, computed as plainly as transformers can.

    Args:
        num_layers: only so many of its layers.

    Raises:
        CheckpointError: transformers does not know it, does not load it, or would leave parts of it random.
    """
    if os.path.isfile(path):
        raise CheckpointError(f"transformers is asked for folders, and {path} is a file")
    import transformers
    from transformers import AutoConfig

    with _quiet():
        try:
            config = AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=trust_remote_code)
            cls = _class_of(config, trust_remote_code)
            if num_layers is not None:
                _shorten(config.get_text_config(decoder=True), num_layers)
            options: dict[str, Any] = {"dtype": torch.float32, "attn_implementation": "eager"}
            stored = getattr(config, "quantization_config", None)
            if stored is not None:
                options["quantization_config"] = _dequantising(transformers, stored)
            model, info = cls.from_pretrained(
                path,
                config=config,
                local_files_only=True,
                output_loading_info=True,
                trust_remote_code=trust_remote_code,
                weights_only=True,
                **({} if trust_remote_code else {"experts_implementation": "eager"}),
                **options,
            )
        except CheckpointError:
            raise
        except Exception as error:  # code that is not ours, of every kind: why it cannot be the reference is one line
            if not trust_remote_code and "trust_remote_code" in str(error):
                raise CheckpointError(
                    f"{path} brings code of its own, and transformers has none for it: --trust-remote-code runs that"
                ) from error
            first = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise CheckpointError(f"transformers does not load {path}: {first}") from error
    absent = sorted(map(str, [*info.get("missing_keys", ()), *info.get("mismatched_keys", ())]))
    if absent:
        raise CheckpointError(
            f"transformers would leave {len(absent)} parameters of {path} random, so it is no reference: "
            f"{', '.join(absent[:5])}{', ...' if len(absent) > 5 else ''}"
        )
    return HfModel(model.float().eval())


def _class_of(config: Any, remote: bool) -> Any:
    import transformers
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    mapped = getattr(config, "auto_map", None) or {}
    if remote and mapped:
        return AutoModelForCausalLM
    for name in getattr(config, "architectures", None) or []:
        if hasattr(transformers, name):
            return getattr(transformers, name)
    for auto in (AutoModelForCausalLM, AutoModelForImageTextToText):
        if type(config) in auto._model_mapping:
            return auto._model_mapping[type(config)]
    raise CheckpointError(f"transformers has no model for a {type(config).__name__}")


def _dequantising(transformers: Any, stored: Any) -> Any:
    """How transformers reads a quantised checkpoint into plain numbers."""
    values = stored if isinstance(stored, dict) else stored.to_dict()
    method = str(values.get("quant_method"))
    if method not in DEQUANTISED:
        raise CheckpointError(f"transformers does not turn {method} weights into plain ones without a GPU")
    known = inspect.signature(getattr(transformers, DEQUANTISED[method])).parameters
    kept = {name: value for name, value in values.items() if name in known}
    return getattr(transformers, DEQUANTISED[method])(**{**kept, "dequantize": True})


def _shorten(config: Any, num_layers: int) -> None:
    """The config of a model with the first layers alone: lists with an entry a layer become shorter too."""
    whole = config.num_hidden_layers
    for name, value in list(vars(config).items()):
        if isinstance(value, list) and len(value) == whole:
            setattr(config, name, value[:num_layers])
    config.num_hidden_layers = num_layers


def decoder_layers(model: Any) -> list[nn.Module]:
    """The list of modules that holds most of the decoder's numbers."""
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList) and len(module)]
    if not lists:
        raise CheckpointError(f"{type(model).__name__} has no list of layers")
    return list(max(lists, key=lambda module: sum(p.numel() for p in module.parameters())))


def experts_of(layer: nn.Module) -> nn.Module | None:
    """A layer's experts: a module called so that holds them stacked, or a list of them; the first, for text."""
    for name, module in layer.named_modules():
        called = name.rpartition(".")[2] == "experts" or type(module).__name__.endswith("Experts")
        if called and (callable_alone(module) or isinstance(module, nn.ModuleList)):
            return module
    return None


def callable_alone(experts: nn.Module) -> bool:
    """Whether they take tokens, chosen experts and weights."""
    if isinstance(experts, nn.ModuleList):
        return True
    taken = [p for p in inspect.signature(type(experts).forward).parameters.values() if p.kind != p.VAR_KEYWORD]
    return len(taken) == 4 and any("ind" in p.name or "expert" in p.name for p in taken[1:])


def _each(experts: nn.ModuleList, probe: Probe) -> Tensor:
    """Experts that are modules of their own, summed by hand."""
    out = torch.zeros_like(probe.hidden)
    for e, expert in enumerate(experts):
        tokens, place = torch.where(probe.ids == e)
        if len(tokens):
            made = expert(probe.hidden[tokens])
            out.index_add_(
                0, tokens, (made[0] if isinstance(made, tuple) else made) * probe.weights[tokens, place, None]
            )
    return out


def _hooks(layer: nn.Module, ops: Ops) -> list[Any]:
    def entered(module: Any, args: Any, kwargs: Any) -> None:
        ops["input"] = _rows(args[0] if args else kwargs["hidden_states"])

    def keep(name: str) -> Any:
        def hook(module: Any, args: Any, output: Any) -> None:
            found = _tensor(output)
            if found is not None:
                ops[name] = _rows(found)

        return hook

    def asked(module: Any, args: Any, kwargs: Any) -> None:
        given = [*args, *kwargs.values()]
        ids = next((x for x in given[1:] if isinstance(x, Tensor) and not x.is_floating_point()), None)
        weights = next((x for x in given[1:] if isinstance(x, Tensor) and x.is_floating_point()), None)
        if ids is not None and weights is not None and ids.shape[-1] == weights.shape[-1]:
            count = getattr(module, "num_experts", None) or int(ids.max()) + 1
            ids, weights = ids.reshape(-1, ids.shape[-1]).clone(), weights.reshape(-1, weights.shape[-1])
            ops["chosen experts"], ops["weights"] = ids, dense_weights(ids, weights, max(count, int(ids.max()) + 1))

    hooks = [
        layer.register_forward_pre_hook(entered, with_kwargs=True),
        layer.register_forward_hook(keep("layer")),
    ]
    experts = experts_of(layer)
    for name, child in layer.named_children():
        inside = experts is not None and experts in child.modules()
        if not inside and MIXER.search(f"{name} {type(child).__name__}") and "norm" not in name:
            hooks.append(child.register_forward_hook(keep("attention")))
        elif (inside and child is not experts) or (
            experts is None and FEED_FORWARD.search(f"{name} {type(child).__name__}") and "norm" not in name
        ):
            hooks.append(child.register_forward_hook(keep("feed-forward")))
    if experts is not None and not isinstance(experts, nn.ModuleList):
        hooks.append(experts.register_forward_pre_hook(asked, with_kwargs=True))
        scorer = _scorer(layer, experts)
        if scorer is not None:
            hooks.append(scorer.register_forward_hook(keep("router logits")))
    return hooks


def _scorer(layer: nn.Module, experts: nn.Module) -> nn.Module | None:
    """What gives a number an expert: the module with a matrix of as many rows, the innermost."""
    count, inside = getattr(experts, "num_experts", None), set(experts.modules())
    found = [
        module
        for module in layer.modules()
        if module not in inside
        and isinstance(getattr(module, "weight", None), Tensor)
        and module.weight.dim() == 2
        and module.weight.shape[0] == count
    ]
    return found[-1] if len(found) == 1 else None


def _tensor(output: Any) -> Tensor | None:
    if isinstance(output, tuple | list):
        return next((x for x in output if isinstance(x, Tensor) and x.is_floating_point()), None)
    return output if isinstance(output, Tensor) else None


def _rows(x: Tensor) -> Tensor:
    """`[1, T, N]` or `[T, N]` -> `[T, N]`, a copy."""
    return x.detach().reshape(-1, x.shape[-1]).float().clone()


@contextmanager
def _quiet() -> Iterator[None]:
    """transformers without its progress bars and warnings, which are about other things."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
