"""Drafts of checkpoints that nothing here knows: they load, and give the logits of whoever made the checkpoint."""

import ast
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from moesaic.adapt import adapt
from moesaic.adapt.draft.drafting import Drafter
from moesaic.adapt.draft.harmless import require_harmless
from moesaic.adapt.draft.oracle import Oracle, Reference
from moesaic.adapt.likeness import nearest_architectures
from moesaic.adapt.survey import survey
from moesaic.core.errors import CheckpointError, ConfigError
from moesaic.weights.tensors import TensorInfo
from tests.niche import KINDS, make_niche
from tests.renamed import rename
from tests.tiny_models import tiny_reference

RENAMED = (
    "mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "granitemoe", "dots1", "glm4_moe", "hunyuan_v1_moe", "llama",
    "gpt_oss", "phimoe", "minimax_m2",
)  # fmt: skip


@pytest.fixture(scope="module")
def niche(tmp_path_factory):
    """kind -> (folder, recorded logits)."""
    return {kind: make_niche(kind, tmp_path_factory.mktemp("niche") / kind) for kind in KINDS}


@pytest.fixture(scope="module")
def renamed(tmp_path_factory, tiny_model):
    """family -> (folder, logits as transformers computes them)."""

    def made(family):
        folder = tmp_path_factory.mktemp(family)
        recorded = {}
        model = tiny_reference(family)
        for n in range(2):
            ids = torch.randint(0, 128, (24,), generator=torch.Generator().manual_seed(n))
            with torch.no_grad():
                recorded |= {f"input_ids.{n}": ids, f"logits.{n}": model(ids[None]).logits[0].contiguous()}
        save_file(recorded, folder / "logits.safetensors")
        return str(rename(Path(tiny_model(family)), folder / "renamed")), str(folder / "logits.safetensors")

    return made


def difference(path, source, reference):
    config = json.loads((Path(path) / "config.json").read_text())
    return Oracle(path, config, Reference(reference)).difference(source)


@pytest.mark.parametrize("family", RENAMED)
def test_a_known_model_under_strange_names(renamed, family, tmp_path):
    path, reference = renamed(family)
    draft = adapt(path)
    assert draft.misfit == "" and draft.architecture == "MoEModel"
    assert difference(path, draft.source, reference) < 1e-4
    file = tmp_path / "draft.py"
    file.write_text(draft.source)
    for check in (["check", "--no-cache"], ["format", "--no-cache", "--check"]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *check, "--line-length", "120", str(file)], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + draft.source
    assert len(draft.source.splitlines()) < 100


def test_attention_experts_are_drafted_with_nothing_open(niche):
    path, reference = niche["attention"]
    draft = adapt(path)
    assert draft.ok and draft.open == () and "ExpertPagedAttentionSpec" in draft.source
    assert difference(path, draft.source, reference) < 1e-4


def test_a_reference_settles_what_is_open(niche):
    path, reference = niche["feed-forward"]
    before = adapt(path)
    assert before.misfit == "" and [q.name for q in before.questions if q.open] == ["router", "rotary positions"]
    assert difference(path, before.source, reference) > 0.1  # what was taken is not what it is
    draft = adapt(path, reference)
    assert draft.ok and draft.open == () and draft.difference < 1e-4
    settled = {q.name: q.choice for q in draft.questions if q.settled}
    assert settled["rotary positions"] == "pairs" and settled["router"] == "softmax, renormalised"
    assert "# OPEN" not in draft.source and "interleaved=True" in draft.source


def test_a_reference_of_another_model_settles_nothing(niche, tmp_path):
    path, reference = niche["feed-forward"]
    tensors = load_file(reference)
    tensors = {n: t.flip(-1).contiguous() if n.startswith("logits") else t for n, t in tensors.items()}
    save_file(tensors, tmp_path / "other.safetensors")
    draft = adapt(path, str(tmp_path / "other.safetensors"), max_runs=12)
    assert not draft.ok and draft.difference > 0.1 and draft.open
    assert not any(q.settled for q in draft.questions)


def test_an_answer_that_the_reference_cannot_tell_stays_open(niche, tmp_path):
    """A single token attends to itself alone: any rotation gives the same."""
    path, reference = niche["feed-forward"]
    tensors = load_file(reference)
    short = {n: t[:1].contiguous() for n, t in tensors.items()}
    save_file(short, tmp_path / "short.safetensors")
    draft = adapt(path, str(tmp_path / "short.safetensors"))
    assert draft.difference < 1e-4
    assert [q.name for q in draft.questions if q.open] == ["rotary positions"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_draft_serves(niche, kind, tmp_path):
    from moesaic import LLM, SamplingParams

    path, reference = niche[kind]
    file = tmp_path / "my_arch.py"
    file.write_text(adapt(path, reference).source)
    llm = LLM(model=path, arch=str(file), dtype="float32", kv_cache_memory="64MiB", threads=1)
    tensors = load_file(reference)
    ids, logits = tensors["input_ids.0"].tolist(), tensors["logits.0"]
    [output] = llm.generate([ids], SamplingParams(max_tokens=1, temperature=0.0))
    assert output.outputs[0].token_ids[0] == int(logits[-1].argmax())


def test_a_part_that_needs_code_is_said_to(renamed, tmp_path):
    path, _ = renamed("deepseek_v3")
    draft = adapt(path)
    assert draft.by_hand == ("latent attention",) and not draft.ok
    assert "latent attention is to be written" in draft.misfit
    assert any("by hand" in line for line in draft.open)


def test_what_is_not_understood_is_open_and_pinned(niche, tmp_path):
    path, _ = niche["attention"]
    folder = tmp_path / "strange"
    shutil.copytree(path, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantum_flux": 3}))
    draft = adapt(str(folder))
    assert draft.misfit == "" and draft.open == ("quantum_flux = 3: it is not known what it means",)
    (folder / "config.json").write_text(json.dumps(config | {"quantum_flux": 4}))
    file = tmp_path / "arch.py"
    file.write_text(draft.source)
    from moesaic.models.load import read_spec

    with pytest.raises(ConfigError, match="quantum_flux = 4 is not supported"):
        read_spec(str(folder), str(file))


def test_nothing_to_draft_from(tmp_path, niche):
    with pytest.raises(ConfigError, match="neither a folder here nor a Hugging Face id"):
        adapt(str(tmp_path / "nowhere"))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="holds no weights"):
        adapt(str(tmp_path))
    path, _ = niche["attention"]
    with pytest.raises(CheckpointError, match="there is no such file"):
        adapt(path, str(tmp_path / "none.safetensors"))


@pytest.mark.parametrize(
    "odd",
    [
        {"n_heads": "many"},
        {"n_kv_heads": [1, 2]},
        {"experts_num": True},
        {"rope_parameters": ["default"]},
        {"rope_base": {"rope_theta": 1}},
        {"logits_scaling": 0.0},
        {"router_type": None, "d_model": None},
        {"text_config": {"hidden_size": 3, "n_layers": 2}},
        {"quantum_flux": float("nan")},
    ],
    ids=str,
)
def test_strange_configs_raise_nothing_else(niche, odd):
    found = survey(niche["attention"][0])
    draft = Drafter(replace(found, config={**found.config, **odd})).draft()
    assert not draft.ok or draft.open or draft.questions


def test_tensors_of_strange_shapes_raise_nothing_else(niche):
    found = survey(niche["feed-forward"][0])
    some = {group.template.replace("{l}", "0").replace("{e}", "3") for group in Drafter(found).structure.groups}
    for name in some & found.weights.keys():
        info = found.weights[name]
        for shape in ((), (0,), info.shape[::-1], (2, 3, 4)):
            tensors = {**found.weights, name: TensorInfo("F32", shape, "x")}
            Drafter(replace(found, weights=tensors)).draft()


def moesaic(*args):
    return subprocess.run([sys.executable, "-m", "moesaic", *args], capture_output=True, text=True, check=False)


def test_the_command(niche, tmp_path):
    path, _ = niche["attention"]
    file = tmp_path / "my_arch.py"
    done = moesaic("adapt", path, "-o", str(file))
    assert done.returncode == 0 and "loads" in done.stdout, done.stderr
    assert file.read_text().startswith('"""MoEModel')
    again = moesaic("adapt", path, "-o", str(file))
    assert again.returncode == 1 and "--force" in again.stderr and "Traceback" not in again.stderr
    found = json.loads(moesaic("adapt", path, "-o", str(file), "--force", "--json").stdout)
    assert found["open"] == [] and found["misfit"] == "" and found["source"] == file.read_text()


def test_a_missing_expert_does_not_load(niche, tmp_path):
    path, _ = niche["feed-forward"]
    folder = tmp_path / "broken"
    shutil.copytree(path, folder)
    shutil.rmtree(folder / "layer_1" / "expert_7")
    done = moesaic("adapt", str(folder), "-o", str(tmp_path / "arch.py"))
    assert done.returncode == 1 and "layer_1.expert_7" in done.stdout.replace("\n", "")


INJECTED = 'open("ran", "w")'


@pytest.mark.parametrize(
    "odd",
    [
        {"architectures": [f'x"""\n{INJECTED}\n"""']},
        {"architectures": [f'x\\"""\n{INJECTED}\r{INJECTED}\u2028"']},
        {"model_type": f"x\n{INJECTED}", "architectures": []},
        {f'a", metadata=True), {INJECTED}, c.child("b': {"x": 1, "y": [2, 3]}},
        {f'"), {INJECTED}, ("': {"hidden_size": 3}, "class": {"theta": 3}, "int_": {"q": 5}, "_ModelSpec": {"q": 5}},
        {f"strange\n{INJECTED}\n": f"\n{INJECTED}\n", "other": {"\n": "\r\n", "\\": '"""'}},
        {"size_hidden\n    hidden": 64, "\ud800": "\ud800", "\0": ["\0", "\x1b[31m", "\u202e"]},
    ],
)
def test_no_text_of_a_checkpoint_becomes_code(niche, odd, tmp_path, monkeypatch):
    """A draft is run when it is tried: what a stranger's config holds stands in it as texts, on one line each."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "c"
    shutil.copytree(niche["feed-forward"][0], folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | odd))
    source = adapt(str(folder)).source
    assert not (tmp_path / "ran").exists()
    assert all(line.isprintable() for line in source.split("\n"))
    functions = [node.func for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    called = {function.id for function in functions if isinstance(function, ast.Name)}
    assert "open" not in called and {"decoder", "MoESpec"} <= called


@pytest.mark.parametrize(
    "line",
    [
        "import os",
        "from os import system",
        "from moesaic.models.common import os",
        "exec('1')",
        "__loader__",
        "decoder.__globals__",
        "a = c.path.join",
        "def other(): pass",
        "class A: pass",
        "a = (1",
        "a = '\0'",
    ],
)
def test_a_draft_that_does_what_drafts_do_not_is_refused(line):
    good = 'from moesaic.models.common import decoder\n\n\ndef spec(c):\n    return decoder(c, [c.require(int, "a")])\n'
    require_harmless(good, {"moesaic.models.common": ["decoder"]})
    with pytest.raises(CheckpointError, match="no description can be drafted"):
        require_harmless(f"{good}\n{line}\n", {"moesaic.models.common": ["decoder"]})


def test_more_layers_or_heads_than_any_model_has_are_refused_at_once(niche, tmp_path):
    """By the config, or by the names of tensors: nothing is computed for each of them."""
    folder = tmp_path / "c"
    shutil.copytree(niche["feed-forward"][0], folder)
    file = folder / "config.json"
    given = file.read_text()
    file.write_text(json.dumps({**json.loads(given), "experts_num": 2**32}))
    with pytest.raises(ConfigError, match="4294967296 experts, which is more than any model has"):
        adapt(str(folder))
    file.write_text(json.dumps({**json.loads(given), "num_attention_heads": 2**31}))
    with pytest.raises(ConfigError, match="2147483648 attention heads, which is more than any model has"):
        adapt(str(folder))
    file.write_text(given)
    found = survey(str(folder))
    last = {f"layers.99999999.{name}": info for name, info in found.tensors.items() if "norm" in name}
    strange = {**found.tensors, **last}
    with pytest.raises(CheckpointError, match="names of its tensors count 100000000 layers"):
        Drafter(replace(found, tensors=strange, weights=strange))
    assert nearest_architectures(replace(found, config={}, tensors=strange, weights=strange))  # they are few by number
