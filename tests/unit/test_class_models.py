"""Hand-written model classes: what the engine learns of them, and what it refuses."""

import json

import pytest
import torch
from torch import nn

from moesaic.core.errors import CheckpointError, ConfigError, UnsupportedError
from moesaic.library import Attention, QKVParallelLinear, RMSNorm, RowParallelLinear, VocabParallelEmbedding
from moesaic.models.registry import ModelRegistry
from tests.out_of_tree import registrations  # noqa: F401
from tests.parity.driver import load

CONFIG = {"architectures": ["Small"], "vocab_size": 12, "hidden_size": 8, "max_position_embeddings": 64, "heads": 2}


class Small(nn.Module):
    """One attention layer, whose embedding serves as the head, and a plain parameter of torch's."""

    def __init__(self, *, vllm_config, prefix=""):
        super().__init__()
        config = vllm_config.model_config.hf_config
        assert prefix == "" and vllm_config.model_config.max_model_len > 0
        hidden, heads = config.hidden_size, config.heads
        self.embed_tokens = VocabParallelEmbedding(config.vocab_size, hidden, prefix="embed_tokens")
        self.qkv = QKVParallelLinear(hidden, hidden // heads, heads, prefix="layers.0.qkv")
        self.attn = Attention(heads, hidden // heads, 0.5, prefix="layers.0.attn")
        self.o = RowParallelLinear(hidden, hidden, prefix="layers.0.o")
        self.norm = RMSNorm(hidden)
        self.gain = nn.Parameter(torch.empty(hidden))
        self.head = nn.Linear(hidden, config.vocab_size, bias=False)

    def get_input_embeddings(self, input_ids):
        return self.embed_tokens(input_ids)

    def forward(self, input_ids, positions):
        hidden = self.embed_tokens(input_ids) * self.gain
        q, k, v = self.qkv(hidden).chunk(3, -1)
        return self.norm(hidden + self.o(self.attn(q, k, v)))

    def compute_logits(self, hidden_states):
        return self.head(hidden_states)

    def load_weights(self, weights):
        params = dict(self.named_parameters())
        for name, weight in weights:
            params[name].weight_loader(params[name], weight)


WEIGHTS = {
    "embed_tokens.weight": (12, 8),
    "qkv.weight": (24, 8),
    "o.weight": (8, 8),
    "norm.weight": (8,),
    "gain": (8,),
    "head.weight": (12, 8),
}


@pytest.fixture
def checkpoint(tmp_path, registrations):  # noqa: F811
    """A function that saves a config and weights, and registers a class; returns the folder."""

    def save(cls=Small, without=(), **config):
        from safetensors.torch import save_file

        (tmp_path / "config.json").write_text(json.dumps({**CONFIG, **config}))
        generator = torch.Generator().manual_seed(0)
        save_file(
            {name: torch.randn(shape, generator=generator) for name, shape in WEIGHTS.items() if name not in without},
            tmp_path / "model.safetensors",
        )
        ModelRegistry.register_model("Small", cls)
        return str(tmp_path)

    return save


def test_what_the_engine_knows_of_a_class(checkpoint):
    model = load(checkpoint())
    size = sum(torch.Size(shape).numel() for shape in WEIGHTS.values())
    spec = model.spec
    assert (spec.vocab_size, spec.max_position_embeddings, spec.num_parameters) == (12, 64, size)
    assert spec.num_active_parameters == size
    assert model.weight_bytes() >= 4 * size
    assert [s.num_kv_heads for s in model.cache_specs()] == [2]
    assert model.expert_stats.counts.shape == (0, 0)


def test_the_class_computes_what_it_says(checkpoint):
    from tests.parity.driver import Driver

    folder = checkpoint()
    model = load(folder)
    logits = Driver(model).run({0: [3, 1, 4, 1, 5]}, [2])[0]
    from safetensors.torch import load_file

    w = load_file(f"{folder}/model.safetensors")
    hidden = w["embed_tokens.weight"][[3, 1, 4, 1, 5]] * w["gain"]
    q, k, v = (part.view(5, 2, 4).transpose(0, 1) for part in (hidden @ w["qkv.weight"].T).chunk(3, -1))
    mixed = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.5)
    hidden = hidden + mixed.transpose(0, 1).flatten(1) @ w["o.weight"].T
    hidden = hidden * (hidden.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * w["norm.weight"]
    torch.testing.assert_close(logits, hidden @ w["head.weight"].T, rtol=1e-4, atol=1e-4)


def test_dummy_weights(checkpoint):
    first, second = (load(checkpoint(), load_format="dummy", seed=seed) for seed in (1, 1))
    assert torch.equal(first.model.gain, second.model.gain) and first.model.gain.abs().sum() > 0


@pytest.mark.parametrize("name", WEIGHTS)
def test_what_is_not_filled_is_named(checkpoint, name):
    with pytest.raises(CheckpointError, match="not filled by load_weights") as e:
        load(checkpoint(without=[name]))
    assert name in str(e.value)


def test_a_part_that_is_not_filled_is_named(checkpoint):
    class Half(Small):
        def load_weights(self, weights):
            params = dict(self.named_parameters())
            for name, weight in weights:
                if name == "qkv.weight":
                    params[name].weight_loader(params[name], weight[:8], "q")
                    params[name].weight_loader(params[name], weight[:8], "v")
                    params[name].weight_loader(params[name], weight[:8], "v")
                elif name == "gain":
                    params[name].data.copy_(weight)  # by hand: it is a plain parameter, where that shows
                else:
                    params[name].weight_loader(params[name], weight)

    with pytest.raises(CheckpointError) as e:
        load(checkpoint(Half))
    message = str(e.value)
    assert "1 not filled by load_weights" in message and "qkv.weight.k: " in message
    assert "1 filled more than once" in message and "qkv.weight.v: " in message
    assert "gain" not in message


def test_a_tensor_that_is_none_of_the_models(checkpoint):
    class Asking(Small):
        def load_weights(self, weights):
            params = dict(self.named_parameters())
            for name, weight in weights:
                params[name.replace("qkv", "kvq")].weight_loader(None, weight)

    with pytest.raises(CheckpointError, match=r"'kvq.weight' at tensor 'qkv.weight'.*nearest parameter: qkv.weight"):
        load(checkpoint(Asking))


def test_a_class_without_the_methods(checkpoint):
    class Poor(nn.Module):
        def forward(self, input_ids, positions):
            return input_ids

    with pytest.raises(ConfigError, match="Poor has no get_input_embeddings, compute_logits, load_weights"):
        load(checkpoint(Poor))


def test_a_class_without_attention(checkpoint):
    class Blind(Small):
        def __init__(self, *, vllm_config, prefix=""):
            nn.Module.__init__(self)
            self.embed_tokens = VocabParallelEmbedding(12, 8, prefix="embed_tokens")

    with pytest.raises(ConfigError, match="has no Attention"):
        load(checkpoint(Blind))


def test_a_key_that_the_class_did_not_read(checkpoint):
    with pytest.raises(UnsupportedError, match="attention_twist = 3"):
        load(checkpoint(attention_twist=3))

    class Knowing(Small):
        def __init__(self, *, vllm_config, prefix=""):
            super().__init__(vllm_config=vllm_config, prefix=prefix)
            vllm_config.model_config.hf_config.ignore("attention_twist")

    load(checkpoint(Knowing, attention_twist=3))


@pytest.mark.parametrize("value", [None, 0, "12", True])
def test_a_config_without_a_vocabulary(checkpoint, value):
    with pytest.raises(ConfigError, match="vocab_size must be a whole number"):
        load(checkpoint(vocab_size=value))


def test_an_absent_key_is_an_attribute_error(checkpoint):
    class Asking(Small):
        def __init__(self, *, vllm_config, prefix=""):
            config = vllm_config.model_config.hf_config
            assert config.get("twist", 5) == 5 and not hasattr(config, "twist")
            config.twist  # noqa: B018

    with pytest.raises(AttributeError, match="config.json has no 'twist'"):
        load(checkpoint(Asking))


def test_two_attentions_with_one_prefix(checkpoint):
    class Twins(Small):
        def __init__(self, *, vllm_config, prefix=""):
            super().__init__(vllm_config=vllm_config, prefix=prefix)
            self.second = Attention(2, 4, 0.5, prefix="layers.0.attn")

    with pytest.raises(ConfigError, match="two layers have the prefix 'layers.0.attn'"):
        load(checkpoint(Twins))
