"""Quantised checkpoints stay quantised: packed matrices hold their own codes, where the format of these is one of ours
and all of a matrix has it; and what they compute is what the floats do."""

import pytest
import torch
from safetensors.torch import load_file

from moesaic import LLM, SamplingParams
from moesaic.core.errors import ConfigError
from moesaic.core.formats import WeightFormat
from moesaic.weights.packing import packed_matrices
from tests.engine.test_quantised_checkpoints import CASES, SIZES, TOKENS, quantised
from tests.parity.driver import Driver, load, relative_difference
from tests.quantised import gptq, mxfp4, rewrite, save

pytestmark = pytest.mark.usefixtures("cpu_library")

KEPT = {
    "gptq": WeightFormat("w4", 32),
    "awq": WeightFormat("w4", 32, True),
    "awq of 8 bits": WeightFormat("w8", 32, True),
    "pack-quantized": WeightFormat("w4", 32, True),
    "int-quantized": WeightFormat("w8", 0),
}
MXFP4 = WeightFormat("mxfp4")


def matrices(model):
    return dict(packed_matrices(dict(model.named_views()))[0])


def make_mxfp4(folder, to):
    stored = {}
    for name, tensor in load_file(f"{folder}/model.safetensors").items():
        stored[name] = tensor
        if name.endswith(("gate_up_proj", "down_proj")):
            made = [mxfp4(expert.T)[0] for expert in stored.pop(name)]
            stored |= {f"{name}_{kind}": torch.stack([each[kind] for each in made]) for kind in ("blocks", "scales")}
    return str(save(folder, to, stored, {"quantization_config": {"quant_method": "mxfp4"}}))


def compared(path, format, tolerance, error):
    """Loaded with its codes and as floats: formats, every weight, logits."""
    kept, floats = load(path), load(path, quantization="none")
    ours, plain = matrices(kept), matrices(floats)
    assert {str(m.format) for m in plain.values()} == {"f32"}
    coded = {name: m for name, m in ours.items() if m.format.quantised}
    assert {str(m.format) for m in coded.values()} == {str(format)}
    for name, matrix in coded.items():
        wanted = plain[name].unpack()
        assert (matrix.unpack() - wanted).norm() <= error * wanted.norm()
    assert relative_difference(*(Driver(m).run({0: TOKENS}, [64])[0] for m in (kept, floats))) <= tolerance
    return ours


@pytest.mark.parametrize("case", KEPT)
def test_codes_are_kept(tiny_model, tmp_path, caplog, case):
    family, quantise, config = CASES[case]
    rewrite(tiny_model(family, **SIZES[family]), tmp_path, quantise, config, quantised)
    path = str(tmp_path / "quantised")
    with caplog.at_level("INFO"):
        ours = compared(path, KEPT[case], 0.02, 0.003)
    assert f"in {KEPT[case]}); the others are float32" in caplog.text
    for part in (
        "layers.0.attention.o.weight",
        "layers.1.mlp.experts.3.gate.weight",
        "layers.1.mlp.experts.2.down.weight",
    ):
        assert ours[part].format == KEPT[case]
    assert not ours["lm_head.weight"].format.quantised and not ours["embed.weight"].format.quantised
    llm = LLM(path, skip_tokenizer_init=True, threads=1)
    params = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True)
    assert len(llm.generate([{"prompt_token_ids": TOKENS}], params, use_tqdm=False)[0].outputs[0].token_ids) == 4


def test_mxfp4_is_kept_to_the_bit(tiny_model, tmp_path):
    path = make_mxfp4(tiny_model("gpt_oss", **SIZES["gpt_oss"]), tmp_path / "quantised")
    ours = compared(path, MXFP4, 1e-3, 0)
    assert {name for name, m in ours.items() if m.format.quantised} == {name for name in ours if ".experts." in name}


def test_codes_of_one_matrix_are_kept_together_or_not_at_all(tiny_model, tmp_path):
    """Keys that are not quantised make floats of queries and values, too; the rest keeps its codes."""
    config = CASES["gptq"][2]
    some = lambda name: quantised(name) and "k_proj" not in name  # noqa: E731
    rewrite(tiny_model("qwen3_moe", **SIZES["qwen3_moe"]), tmp_path, gptq(), config, some)
    ours = compared(str(tmp_path / "quantised"), KEPT["gptq"], 0.02, 0.003)
    assert ours["layers.1.attention.q.weight"].format == WeightFormat("f32")
    assert ours["layers.1.attention.o.weight"].format == KEPT["gptq"]


def test_what_is_asked_for_comes_before_what_is_stored(tiny_model, tmp_path):
    family, quantise, config = CASES["gptq"]
    rewrite(tiny_model(family, **SIZES[family]), tmp_path, quantise, config, quantised)
    path = str(tmp_path / "quantised")
    exceptions = "layers.0.attention=none,layers.*.mlp.experts.2=w8a16:64"
    found = matrices(load(path, quantization_config=exceptions))
    assert found["layers.0.attention.o.weight"].format == WeightFormat("f32")
    assert found["layers.1.mlp.experts.2.down.weight"].format == WeightFormat("w8", 64)
    assert found["layers.1.mlp.experts.1.down.weight"].format == KEPT["gptq"]
    again = matrices(load(path, quantization="w4a16", quantization_group_size=64))
    assert again["layers.1.mlp.experts.1.down.weight"].format == WeightFormat("w4", 64, True)
    with pytest.raises(ConfigError, match="the two are one matrix"):
        load(path, quantization_config="layers.0.attention.k=none")


def test_without_the_kernels_codes_become_floats(tiny_model, tmp_path, caplog):
    family, quantise, config = CASES["gptq"]
    rewrite(tiny_model(family, **SIZES[family]), tmp_path, quantise, config, quantised)
    path = str(tmp_path / "quantised")
    with caplog.at_level("INFO"):
        model = load(path, backend="reference")
    assert "quantised weights become float32: codes need the C++ kernels" in caplog.text
    logits = [Driver(m).run({0: TOKENS}, [64])[0] for m in (model, load(path, quantization="none"))]
    assert relative_difference(*logits) < 1e-4


def test_kept_codes_from_the_cache_of_packed_weights(tiny_model, tmp_path):
    family, quantise, config = CASES["awq"]
    rewrite(tiny_model(family, **SIZES[family]), tmp_path, quantise, config, quantised)
    path, cache = str(tmp_path / "quantised"), str(tmp_path / "cache")
    options = [{}, {"quantization": "none"}, {"quantization": "w4a16", "quantization_group_size": 64}]
    fresh = [matrices(load(path, **each)) for each in options]
    for _ in range(2):
        for each, wanted in zip(options, fresh, strict=True):
            found = matrices(load(path, pack_cache=cache, force_pack_cache=True, **each))
            assert all(torch.equal(found[name].data, wanted[name].data) for name in wanted)
    assert len(list((tmp_path / "cache").iterdir())) == 3
