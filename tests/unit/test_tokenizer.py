"""Our torch-free tokeniser against transformers' own, and its errors."""

import json

import pytest

from moesaic.core.errors import ConfigError, RequestError
from moesaic.engine.tokenizer import Tokenizer

TEXTS = ["Hello, world", "12 + 345 = ?", '{"name": "Ada", "age": 36}', "naïve 漢字 🙂", "", " leading", "a\n\nb\t"]
CHATS = [
    [{"role": "user", "content": "Explain MoE architecture"}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is 2 + 2?"}],
    [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": "JSON?"},
    ],
]


@pytest.fixture(scope="module")
def reference(embedded_path):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(embedded_path)


@pytest.fixture(scope="module")
def tokenizer(embedded_path):
    return Tokenizer(embedded_path)


def test_encodes_and_decodes_as_transformers_does(tokenizer, reference):
    for text in TEXTS:
        ids = tokenizer.encode(text)
        assert ids == reference(text)["input_ids"]
        assert tokenizer.decode(ids) == reference.decode(ids, skip_special_tokens=True) == text


def test_each_digit_is_a_token(tokenizer):
    assert len(tokenizer.encode("90210")) == 5


@pytest.mark.parametrize("messages", CHATS, ids=len)
@pytest.mark.parametrize("generate", [True, False])
def test_chat_template_as_transformers_applies_it(tokenizer, reference, messages, generate):
    expected = reference.apply_chat_template(messages, add_generation_prompt=generate, tokenize=False)
    assert tokenizer.apply_chat_template(messages, add_generation_prompt=generate) == expected


def test_continue_final_message_ends_inside_it(tokenizer, reference):
    messages = [{"role": "user", "content": "Count"}, {"role": "assistant", "content": "One, two,"}]
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=False, continue_final_message=True)
    assert text == reference.apply_chat_template(messages, continue_final_message=True, tokenize=False)
    assert text.endswith("One, two,")


def test_token_bytes_make_up_the_text(tokenizer):
    for text in TEXTS:
        assert b"".join(tokenizer.token_bytes(t) for t in tokenizer.encode(text)) == text.encode()


def test_a_template_that_refuses_is_a_request_error(embedded_path, tmp_path):
    file = tmp_path / "strict.jinja"
    file.write_text("{{ raise_exception('only poems') }}")
    with pytest.raises(RequestError, match="only poems"):
        Tokenizer(embedded_path, str(file)).apply_chat_template(CHATS[0])


def test_a_template_cannot_reach_out_of_its_sandbox(embedded_path, tmp_path):
    file = tmp_path / "evil.jinja"
    file.write_text("{{ messages.__class__.__mro__[1].__subclasses__() }}")
    with pytest.raises(RequestError, match="chat template"):
        Tokenizer(embedded_path, str(file)).apply_chat_template(CHATS[0])


@pytest.mark.parametrize(
    "written",
    [
        "'{:>999999999999}'.format(1)",
        "'{:>{w}}'.format(1, w=999999999999)",
        "'{x:>{w}}'.format_map({'x': 1, 'w': 999999999999})",
        "'%999999999999d' % 1",
        "'%*d' | format(999999999999, 1)",
    ],
)
def test_a_template_cannot_write_without_end(embedded_path, tmp_path, written):
    """Nothing of the size is made first."""
    file = tmp_path / "wide.jinja"
    file.write_text("{{ " + written + " }}")
    with pytest.raises(RequestError, match="chat template"):
        Tokenizer(embedded_path, str(file)).apply_chat_template(CHATS[0])


def test_a_template_may_format(embedded_path, tmp_path):
    file = tmp_path / "narrow.jinja"
    file.write_text("{{ '{:>4}|{x}'.format(1, x=2) }} {{ '%03d' % 7 }} {{ '{x}'.format_map({'x': 'y'}) }}")
    assert Tokenizer(embedded_path, str(file)).apply_chat_template(CHATS[0]) == "   1|2 007 y"


def test_a_folder_without_tokenizer_json_is_converted(tmp_path):
    """A word-piece vocabulary, which transformers turns into a fast tokeniser."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "expert", "router", "##s", "a"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    tokenizer = Tokenizer(str(tmp_path))
    assert tokenizer.encode("a router experts", add_special_tokens=False) == [8, 6, 5, 7]


def test_missing_and_broken_tokenizers_say_what_to_do(tmp_path):
    with pytest.raises(ConfigError, match="skip_tokenizer_init"):
        Tokenizer(str(tmp_path))
    (tmp_path / "tokenizer.json").write_text("{not json")
    with pytest.raises(ConfigError, match="not a readable tokenizer"):
        Tokenizer(str(tmp_path))


def test_a_normalizer_that_would_take_all_memory_is_refused(embedded_path, tmp_path):
    source = json.loads((tmp_path.__class__(embedded_path) / "tokenizer.json").read_text())
    for letters in (256, 257):
        inner = {"type": "Replace", "pattern": {"String": "a"}, "content": "x" * letters}
        source["normalizer"] = {"type": "Sequence", "normalizers": [{"type": "NFC"}, inner]}
        (tmp_path / "tokenizer.json").write_text(json.dumps(source))
        if letters == 256:
            assert Tokenizer(str(tmp_path)).encode("a")
    with pytest.raises(ConfigError, match="puts 257 letters in place of what it finds"):
        Tokenizer(str(tmp_path))


def test_a_missing_template_is_a_request_error(embedded_path, tmp_path):
    source = json.loads((tmp_path.__class__(embedded_path) / "tokenizer.json").read_text())
    (tmp_path / "tokenizer.json").write_text(json.dumps(source))
    with pytest.raises(RequestError, match="no chat template"):
        Tokenizer(str(tmp_path)).apply_chat_template(CHATS[0])
