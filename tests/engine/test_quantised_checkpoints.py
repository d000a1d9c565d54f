"""Checkpoints that others quantised compute what the floats do that they stand for, and serve the same tokens."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from moesaic import LLM, SamplingParams
from moesaic.core.errors import MoesaicError
from tests.parity.driver import Driver, load, relative_difference
from tests.quantised import awq, compressed, fp8, gptq, mxfp4, rewrite, save

TOKENS = list(range(3, 120, 5))
SIZES = {
    "qwen3_moe": {"moe_intermediate_size": 64, "num_hidden_layers": 2, "num_experts": 4},
    "mixtral": {"num_hidden_layers": 2, "num_local_experts": 4},
    "deepseek_v3": {"moe_intermediate_size": 64, "q_lora_rank": 64, "num_hidden_layers": 2},
    "gpt_oss": {"num_hidden_layers": 2, "num_local_experts": 4},
    "granitemoe": {"num_hidden_layers": 2, "num_local_experts": 4},
}
GROUP = {"num_bits": 4, "strategy": "group", "group_size": 32}
# family, what quantises, and what its config says
CASES = {
    "gptq": ("qwen3_moe", gptq(), {"quant_method": "gptq", "bits": 4, "group_size": 32}),
    "gptq in order of activations": (
        "mixtral",
        gptq(order=1, symmetric=False),
        {"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": False, "desc_act": True},
    ),
    "awq": ("mixtral", awq(), {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm"}),
    "awq of 8 bits": ("qwen3_moe", awq(bits=8), {"quant_method": "awq", "bits": 8, "group_size": 32}),
    "pack-quantized": (
        "deepseek_v3",
        compressed(symmetric=False),
        {
            "quant_method": "compressed-tensors",
            "config_groups": {"g": {"targets": ["Linear"], "weights": {**GROUP, "symmetric": False}}},
        },
    ),
    "int-quantized": (
        "qwen3_moe",
        compressed(bits=8, group=0, packed=False),
        {
            "quant_method": "compressed-tensors",
            "config_groups": {"g": {"targets": ["Linear"], "weights": {"num_bits": 8, "strategy": "channel"}}},
        },
    ),
    "fp8 in blocks": ("deepseek_v3", fp8((32, 32)), {"quant_method": "fp8", "weight_block_size": [32, 32]}),
}


def quantised(name: str) -> bool:
    """Whether a weight of a checkpoint is a projection."""
    return name.endswith(("_proj.weight", "w1.weight", "w2.weight", "w3.weight", "kv_a_proj_with_mqa.weight"))


def compared(quantised: str, plain: str) -> None:
    """Both have the same logits and serve the same tokens."""
    logits = [Driver(load(path, quantization="none")).run({0: TOKENS}, [64])[0] for path in (quantised, plain)]
    assert relative_difference(*logits) < 1e-4
    params = SamplingParams(temperature=0, max_tokens=16, ignore_eos=True)
    served = [
        LLM(path, skip_tokenizer_init=True, threads=1, dtype="float32", quantization="none").generate(
            [{"prompt_token_ids": TOKENS}], params, use_tqdm=False
        )[0].outputs[0].token_ids
        for path in (quantised, plain)
    ]  # fmt: skip
    assert served[0] == served[1]


@pytest.mark.parametrize("case", CASES)
def test_the_same_as_its_floats(tiny_model, tmp_path, case):
    family, quantise, config = CASES[case]
    rewrite(tiny_model(family, **SIZES[family]), tmp_path, quantise, config, quantised)
    compared(str(tmp_path / "quantised"), str(tmp_path / "plain"))


def test_mxfp4_experts_lie_as_gpt_oss_has_them(tiny_model, tmp_path):
    """What is stored transposed as floats is not as blocks: transformers' own conversion says how they compare."""
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    folder = tiny_model("gpt_oss", **SIZES["gpt_oss"])
    stored, floats = {}, {}
    for name, tensor in load_file(f"{folder}/model.safetensors").items():
        stored[name] = floats[name] = tensor
        if name.endswith(("gate_up_proj", "down_proj")):
            made = [mxfp4(expert.T)[0] for expert in stored.pop(name)]
            blocks, scales = (torch.stack([each[kind] for each in made]) for kind in ("blocks", "scales"))
            stored |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
            floats[name] = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32)
    config = {"quantization_config": {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}}
    compared(
        str(save(folder, tmp_path / "quantised", stored, config)), str(save(folder, tmp_path / "plain", floats, {}))
    )


def test_fp8_of_fused_experts(tiny_model, tmp_path):
    folder = tiny_model("granitemoe", **SIZES["granitemoe"])
    stored, floats = {}, {}
    for name, tensor in load_file(f"{folder}/model.safetensors").items():
        stored[name] = floats[name] = tensor
        if tensor.ndim == 3:
            made = [fp8((32, 32))(expert) for expert in tensor]
            stored[name] = torch.stack([parts["weight"] for parts, _ in made])
            stored[f"{name}_scale_inv"] = torch.stack([parts["weight_scale_inv"] for parts, _ in made])
            floats[name] = torch.stack([floats for _, floats in made])
    assert len(stored) > len(floats)
    config = {"quantization_config": {"quant_method": "fp8", "weight_block_size": [32, 32]}}
    compared(
        str(save(folder, tmp_path / "quantised", stored, config)), str(save(folder, tmp_path / "plain", floats, {}))
    )


def test_a_lost_part_is_named_and_nothing_is_read(tiny_model, tmp_path):
    family, quantise, config = CASES["gptq"]
    rewrite(tiny_model(family, **SIZES[family]), tmp_path, quantise, config, quantised)
    file = tmp_path / "quantised" / "model.safetensors"
    tensors = load_file(file)
    lost = "model.layers.1.mlp.experts.3.up_proj"
    save_file({name: tensor for name, tensor in tensors.items() if name != f"{lost}.qzeros"}, file)
    with pytest.raises(MoesaicError, match=f"{lost}.qzeros is missing"):
        load(str(tmp_path / "quantised"))
    save_file({name: tensor for name, tensor in tensors.items() if not name.startswith(lost)}, file)
    with pytest.raises(MoesaicError, match="layers.1.mlp.experts.3.up.weight"):
        load(str(tmp_path / "quantised"))
    save_file(tensors, file)
    path = tmp_path / "quantised" / "config.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps({key: value for key, value in values.items() if key != "quantization_config"}))
    with pytest.raises(MoesaicError, match="looks quantised .GPTQ or AWQ., but config.json has no quantization_config"):
        load(str(tmp_path / "quantised"))
