"""GGUF files through the engine: the logits and tokens of the models that they were made of."""

import json
from pathlib import Path

import gguf
import pytest
import torch
from gguf import GGMLQuantizationType as Type

from moesaic import LLM, SamplingParams
from moesaic.core.errors import MoesaicError, UnsupportedError
from moesaic.engine.tokenizer import Tokenizer
from tests.engine.test_greedy_parity import PROMPTS, transformers_greedy
from tests.gguf_files import ARCHITECTURES, OPTIONS, blocks_of, describe_tokenizer, write_gguf
from tests.parity.driver import Driver, load

IDS = [5, 9, 60, 3, 70, 120, 44, 17, 90, 11, 2, 8]
WIDE = {"hidden_size": 256, "intermediate_size": 256, "moe_intermediate_size": 256, "num_attention_heads": 8}
KINDS = ["Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS", "MXFP4"]


def logits(path, **options):
    return Driver(load(path, **options)).step({0: IDS})[0]


def reference(folder):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.inference_mode():
        return model(torch.tensor([IDS])).logits[0]


def made(tiny_model, family, **overrides):
    return tiny_model(family, **OPTIONS.get(family, {}), **overrides)


@pytest.mark.parametrize("family", ARCHITECTURES)
def test_logits_are_those_of_transformers(tiny_model, tmp_path, family):
    folder = made(tiny_model, family)
    file = write_gguf(folder, tmp_path / "model.gguf")
    torch.testing.assert_close(logits(file), reference(folder), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("family", "overrides", "how"),
    [
        ("qwen3_moe", {}, {"fused": True}),
        ("mixtral", {}, {"old_experts": True}),
        ("mixtral", {"num_key_value_heads": 1}, {}),
        ("deepseek_v2", {"q_lora_rank": None}, {"old_latent": True}),
        ("deepseek_v3", {}, {"old_latent": True}),
        ("qwen3_moe", {"tie": True}, {"split": 7}),
        ("llama", {"attention_bias": True, "mlp_bias": True}, {}),
    ],
    ids=str,
)
def test_other_ways_of_writing_the_same(tiny_model, tmp_path, family, overrides, how):
    folder = made(tiny_model, family, **overrides)
    write_gguf(folder, tmp_path / "model.gguf", **how)
    where = tmp_path if "split" in how else tmp_path / "model.gguf"
    assert len(list(tmp_path.glob("*-of-*.gguf"))) > 1 or "split" not in how
    torch.testing.assert_close(logits(where), reference(folder), atol=1e-4, rtol=1e-4)


def test_positions_scaled_by_a_table(tiny_model, tmp_path):
    """Llama 3.1's scaling is in a file as the factor of each frequency."""
    rope = {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 64}  # fmt: skip
    folder = tiny_model("llama", rope_parameters=rope)
    frequencies = 10000.0 ** -(torch.arange(0, 16, 2) / 16)
    turns = 64 * frequencies / (2 * torch.pi)  # in the original length
    smooth = ((turns - 1) / (4 - 1)).clamp(0, 1)
    factors = 1 / ((1 - smooth) / 8 + smooth)
    plain = write_gguf(folder, tmp_path / "plain.gguf")
    scaled = write_gguf(
        folder, tmp_path / "scaled.gguf", tokenizer=lambda w: w.add_tensor("rope_freqs.weight", factors.numpy())
    )
    wanted = reference(folder)
    torch.testing.assert_close(logits(scaled), wanted, atol=1e-4, rtol=1e-4)
    assert (logits(plain) - wanted).abs().max() > 1e-2


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", ["qwen3_moe", "mixtral"])
def test_quantised_ones_compute_what_their_blocks_stand_for(tiny_model, tmp_path, family, kind):
    """Against the same model with the floats that the gguf package makes of the blocks."""
    folder = tiny_model(family, num_hidden_layers=1, **WIDE)
    quantize, seen = blocks_of(Type[kind]), {}

    def remember(name, floats):
        data, stored = quantize(name, floats)
        seen[name] = floats if stored is None else gguf.quants.dequantize(data, stored)
        return data, stored

    file = write_gguf(folder, tmp_path / "quantised.gguf", remember)
    floats = write_gguf(folder, tmp_path / "floats.gguf", lambda name, _: (seen[name], None))
    assert any(info["type"] == kind for info in types(file))
    wanted = logits(floats)
    torch.testing.assert_close(logits(file, quantization="none"), wanted, atol=1e-4, rtol=1e-4)
    kept = logits(file)  # as codes, where the kernels can: scales lose what bf16 does not hold, and a token may turn
    assert ((kept - wanted).norm(dim=1) / wanted.norm(dim=1)).median() < 0.06  # to another expert


def types(file):
    reader = gguf.GGUFReader(file)
    return [{"name": t.name, "type": t.tensor_type.name} for t in reader.tensors]


@pytest.mark.parametrize("family", ["granitemoe", "gpt_oss"])
def test_greedy_tokens_are_those_of_transformers(tiny_model, tmp_path, family):
    folder = made(tiny_model, family)
    llm = LLM(str(write_gguf(folder, tmp_path / "model.gguf")), skip_tokenizer_init=True, threads=1)
    params = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True)
    for prompt, output in zip(PROMPTS, llm.generate([{"prompt_token_ids": p} for p in PROMPTS], params), strict=True):
        assert output.outputs[0].token_ids == transformers_greedy(folder, prompt, 24)


@pytest.fixture(scope="module")
def embedded_gguf(embedded_path, tmp_path_factory):
    """The embedded model, with its tokenizer, as a GGUF file."""
    out = tmp_path_factory.mktemp("embedded") / "embedded.gguf"
    return str(write_gguf(embedded_path, out, tokenizer=describe_tokenizer(embedded_path)))


def test_the_embedded_model_chats_alike(embedded_path, embedded_gguf):
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is 12 + 34?"}]
    params = SamplingParams(temperature=0, max_tokens=24)
    answers = [
        LLM(model, dtype="float32", threads=1).chat([messages], params)[0] for model in (embedded_path, embedded_gguf)
    ]
    assert answers[0].prompt_token_ids == answers[1].prompt_token_ids
    assert answers[0].outputs[0].text == answers[1].outputs[0].text
    assert answers[1].outputs[0].finish_reason == "stop"  # at the token that the file names


def test_its_tokenizer_is_the_same(embedded_path, embedded_gguf):
    ours, theirs = Tokenizer(embedded_gguf), Tokenizer(embedded_path)
    for text in ("12345 o'clock, I'LL go", "  two\n\n\tlines  ", "naïve 你好 😀", "<|user|>hi<|end|>", ""):
        ids = theirs.encode(text)
        assert ours.encode(text) == ids
        assert ours.decode(ids, skip_special_tokens=False) == theirs.decode(ids, skip_special_tokens=False)
    assert ours.vocab_size == theirs.vocab_size


def test_own_files_of_a_folder_go_before_the_metadata(tiny_model, tmp_path):
    folder = tiny_model("qwen3_moe")
    write_gguf(folder, tmp_path / "model.gguf")
    config = json.loads((Path(folder) / "config.json").read_text()) | {"rope_parameters": {"rope_theta": 500.0}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with_own, without = logits(tmp_path), logits(tmp_path / "model.gguf")
    assert (with_own - without).abs().max() > 1e-3


def test_weights_beside_it_go_first(tiny_model, tmp_path):
    folder = tiny_model("qwen3_moe")
    write_gguf(folder, tmp_path / "model.gguf")
    (tmp_path / "config.json").write_text((Path(folder) / "config.json").read_text())
    (tmp_path / "model.safetensors").symlink_to(Path(folder) / "model.safetensors")
    torch.testing.assert_close(logits(tmp_path), logits(folder), atol=0, rtol=0)
    with pytest.raises(MoesaicError, match=r"name the .gguf file itself"):
        logits(tmp_path, load_format="gguf")


@pytest.mark.parametrize("kind", ["gguf", "gptq"])
def test_what_transformers_code_cannot_read_is_said(tiny_model, tmp_path, kind):
    folder, path = tiny_model("deepseek_v3", **OPTIONS["deepseek_v3"]), tmp_path
    if kind == "gguf":
        path = write_gguf(folder, tmp_path / "model.gguf")
    else:
        config = json.loads((Path(folder) / "config.json").read_text())
        config["quantization_config"] = {"quant_method": "gptq", "bits": 4, "group_size": 32}
        (path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedError, match=rf"is quantised \(method {kind}\).*--model-impl"):
        LLM(str(path), skip_tokenizer_init=True, model_impl="transformers", threads=1)
