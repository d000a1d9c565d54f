"""What the backend refuses, and that it says why: before weights are read where it can be."""

import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from moesaic.core.errors import CheckpointError, ConfigError, RequestError, UnsupportedError
from moesaic.core.request import EngineRequest
from moesaic.core.sampling_params import SamplingParams
from moesaic.models.hf_backend import attention, experts, masks
from moesaic.models.hf_backend.allowed import ALLOWED
from moesaic.models.implementation import choose_implementation
from moesaic.models.registry import Architecture
from tests.families.backend import model_of
from tests.parity.driver import load
from tests.tiny_models import draw, make_tiny

PACKED, REQUEST = "AfmoeForCausalLM", "NemotronHForCausalLM"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A function: the folder of a tiny checkpoint, with changes to its config."""
    made = {}

    def folder(architecture=PACKED, **changes):
        if architecture not in made:
            path = tmp_path_factory.mktemp(architecture)
            draw(model_of(architecture)).save_pretrained(path)
            made[architecture] = path
        path = tmp_path_factory.mktemp("copy")
        for file in made[architecture].iterdir():
            (path / file.name).write_bytes(file.read_bytes())
        config = json.loads((path / "config.json").read_text())
        (path / "config.json").write_text(json.dumps({**config, **changes}))
        return path

    return folder


def choose(names, **options):
    return choose_implementation({"architectures": names, **options.pop("config", {})}, "folder", **options)


def test_native_wins_unless_the_other_is_asked_for():
    name = "MixtralForCausalLM"
    assert isinstance(choose([name]), Architecture)
    assert isinstance(choose([name], wanted="native"), Architecture)
    with pytest.raises(UnsupportedError, match="'MixtralForCausalLM' is not served through transformers"):
        choose([name], wanted="transformers")
    with pytest.raises(UnsupportedError, match="auto serves it natively"):
        choose(["MixtralForCausalLM"], wanted="transformers")
    with pytest.raises(UnsupportedError, match="'ZayaForCausalLM' is not supported.*auto serves it through transf"):
        choose(["ZayaForCausalLM"], wanted="native")
    assert choose([PACKED], wanted="transformers") is ALLOWED[PACKED]


def test_an_architecture_that_is_not_on_the_list():
    with pytest.raises(
        UnsupportedError, match=r"'NemotronForCausalLM' is not supported.*nearest is NemotronHForCausalLM"
    ):
        choose(["NemotronForCausalLM"])
    with pytest.raises(UnsupportedError, match="nearest that is: NemotronHForCausalLM"):
        choose(["NemotronForCausalLM"], wanted="transformers")


def test_an_architecture_that_is_refused_for_a_reason():
    with pytest.raises(UnsupportedError, match="'DogeForCausalLM' is not served: its experts are chosen by"):
        choose(["DogeForCausalLM"])


def test_remote_code_is_named_and_not_run(tmp_path):
    config = {"auto_map": {"AutoModelForCausalLM": "modeling_mine.MineForCausalLM"}}
    with pytest.raises(UnsupportedError, match=r"class MineForCausalLM in modeling_mine\.py.*--trust-remote-code"):
        choose(["MineForCausalLM"], config=config)
    assert choose(["MineForCausalLM"], config=config, trust_remote_code=True).remote == "modeling_mine.MineForCausalLM"
    assert choose([PACKED], config=config) is ALLOWED[PACKED] or isinstance(
        choose([PACKED], config=config), Architecture
    )


MINE = """
from transformers import LlamaConfig, LlamaForCausalLM

class MineConfig(LlamaConfig):
    model_type = "mine"

class MineForCausalLM(LlamaForCausalLM):
    config_class = MineConfig
"""


def test_trusted_remote_code_serves(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    make_tiny("llama", tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    mapped = {"AutoConfig": "mine.MineConfig", "AutoModelForCausalLM": "mine.MineForCausalLM"}
    config |= {"architectures": ["MineForCausalLM"], "model_type": "mine", "auto_map": mapped}
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    (tmp_path / "model" / "mine.py").write_text(MINE)
    with pytest.raises(UnsupportedError, match="trust-remote-code"):
        load(tmp_path / "model")
    model = load(tmp_path / "model", trust_remote_code=True)
    assert type(model.model).__name__ == "MineForCausalLM"
    assert model.spec.whole_prompts


def test_missing_and_superfluous_weights(checkpoint):
    path = checkpoint()
    state = load_file(path / "model.safetensors")
    name = next(name for name in state if name.endswith("o_proj.weight"))
    save_file(
        {**{n: t for n, t in state.items() if n != name}, "mine.weight": torch.zeros(3)}, path / "model.safetensors"
    )
    with pytest.raises(CheckpointError) as error:
        load(path, model_impl="transformers")
    assert f"missing (no tensor fills this parameter): {name}" in str(error.value)
    assert "superfluous (no parameter takes this tensor): mine.weight" in str(error.value)


def test_weights_of_another_shape(checkpoint):
    path = checkpoint()
    state = load_file(path / "model.safetensors")
    state["lm_head.weight"] = state["lm_head.weight"][:100].contiguous()
    save_file(state, path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"lm_head\.weight"):
        load(path, model_impl="transformers")


def test_quantised_checkpoints(checkpoint):
    path = checkpoint(quantization_config={"quant_method": "fp8"})
    with pytest.raises(UnsupportedError, match="method fp8"):
        load(path, model_impl="transformers")


def test_quantisation_of_ours(checkpoint):
    with pytest.raises(UnsupportedError, match="--quantization"):
        load(checkpoint(), model_impl="transformers", quantization="w8a16")


def test_a_config_that_transformers_does_not_read(checkpoint):
    with pytest.raises(ConfigError, match="transformers does not read it"):
        load(checkpoint(num_hidden_layers="three"), model_impl="transformers")


def test_a_config_that_makes_no_model(checkpoint):
    with pytest.raises(ConfigError, match="transformers builds no model of it: KeyError: 'softsilu'"):
        load(checkpoint(hidden_act="softsilu"), model_impl="transformers")


def test_keys_that_transformers_has_no_field_for_are_named(checkpoint, caplog):
    load(checkpoint(), model_impl="transformers")
    assert "no field" not in caplog.text
    load(checkpoint(attention_swizzle=3, head_size=5), model_impl="transformers")
    assert "AfmoeConfig has no field for these keys of config.json: attention_swizzle, head_size" in caplog.text


def test_a_prompt_longer_than_a_step(checkpoint):
    from moesaic import LLM

    llm = LLM(str(checkpoint(REQUEST)), skip_tokenizer_init=True, max_num_batched_tokens=8, model_impl="transformers")
    engine = llm.llm_engine.engine
    with pytest.raises(RequestError, match="prompt has 9 tokens, and this model computes prompts whole"):
        engine.add(request(9))
    with pytest.raises(RequestError, match="has 9 tokens.*shorten it, or start with a larger --max-num-batched-tokens"):
        llm.generate([{"prompt_token_ids": [1] * 9}], use_tqdm=False)
    engine.add(request(8))
    while engine.has_unfinished:
        engine.step()
    engine.step()
    assert not engine.executor.model._kept, "caches of sequences that are gone"


def request(length):
    params = SamplingParams(max_tokens=3, n=2, temperature=0)
    return EngineRequest(
        request_id=str(length),
        prompt_token_ids=list(range(length)),
        params=params,
        max_tokens=3,
        eos_token_ids=[],
        stop_token_ids=[],
        seed=0,
    )


def test_transformers_is_not_imported_before_it_is_needed():
    code = "import sys, moesaic.models.load; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# ---------------------------------------------------------------- masks


def mask(create, **keys):
    from transformers import LlamaConfig

    attention.register()
    config = LlamaConfig(attn_implementation=attention.NAME)
    for name, value in keys.pop("config", {}).items():
        setattr(config, name, value)
    positions = torch.tensor([[3, 4, 0, 1, 2]])
    return create(config, torch.zeros(1, 5, 8), None, None, position_ids=positions, **keys)


def test_masks_are_read_from_what_they_are_composed_of():
    from transformers import masking_utils as made

    assert masks.mask_of(mask(made.create_causal_mask)) == masks.Mask(None)
    window = mask(made.create_sliding_window_causal_mask, config={"sliding_window": 7})
    assert masks.mask_of(window) == masks.Mask(7)
    with pytest.raises(UnsupportedError, match="chunked"):
        masks.mask_of(mask(made.create_chunked_causal_mask, config={"attention_chunk_size": 7}))
    other = mask(made.create_causal_mask, or_mask_function=lambda b, h, q, kv: q >= 0)
    with pytest.raises(UnsupportedError, match="composed of"):
        masks.mask_of(other)


@pytest.mark.parametrize("change", [lambda m: None, lambda m: m[..., :1], lambda m: m + 1])
def test_masks_that_a_model_changed(change):
    from transformers.masking_utils import create_causal_mask

    tagged = mask(create_causal_mask)
    assert tagged.isnan().all(), "what computes with it must show"
    with pytest.raises(UnsupportedError, match="computes with masks"):
        masks.mask_of(change(tagged))


def test_what_attention_is_passed():
    tensors = [torch.zeros(1, 2, 3, 4)] * 3
    from transformers.masking_utils import create_causal_mask

    tagged = mask(create_causal_mask)
    with pytest.raises(UnsupportedError, match="passes position_bias"):
        attention.paged_attention(nn.Identity(), *tensors, tagged, position_bias=torch.zeros(1))
    with pytest.raises(UnsupportedError, match="a window of 5"):
        attention.paged_attention(nn.Identity(), *tensors, tagged, sliding_window=5)


# ---------------------------------------------------------------- experts


def module(apply_gate=None, act=nn.SiLU(), **attributes):  # noqa: B008
    flags = {"has_gate": apply_gate is not None, "act_fn": act, "_apply_gate": apply_gate}
    return SimpleNamespace(**{**flags, **attributes})


def halves(x):
    return x.chunk(2, -1)


def clamped(x, limit=7.0):
    gate, up = halves(x)
    gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
    return (up + 1) * gate * torch.sigmoid(gate * 1.702)


ACTIVATIONS = {
    "silu": (lambda x: nn.functional.silu(halves(x)[0]) * halves(x)[1], experts.Activation("silu")),
    "relu2": (None, experts.Activation("relu2")),
    "interleaved": (
        lambda x: nn.functional.gelu(x[..., ::2]) * x[..., 1::2],
        experts.Activation("gelu", interleaved=True),
    ),
    "clamped": (clamped, experts.Activation("swigluoai", 1.702, 7.0)),
    "a bound far away": (lambda x: clamped(x, 900.0), None),
    "up, then gate": (lambda x: nn.functional.silu(halves(x)[1]) * halves(x)[0], None),
    "another scale": (lambda x: 1.001 * nn.functional.silu(halves(x)[0]) * halves(x)[1], None),
}


@pytest.mark.parametrize("case", ACTIVATIONS)
def test_activations_are_found_by_what_they_do(case):
    gate, found = ACTIVATIONS[case]
    act = (lambda x: nn.functional.relu(x).square()) if gate is None else nn.SiLU()
    assert experts.find_activation(module(gate, act)) == found
