"""Checkpoints into packed matrices: the same bytes as packing each tensor whole, whatever the pieces, and from the
cache of packed weights, which is used only where it is whole and meant."""

import dataclasses
import os

import pytest
import torch
from safetensors.torch import save_file

from moesaic.core.errors import CheckpointError, ConfigError
from moesaic.kernels.cpu.arena import PAGE, Arena, Arenas, round_up
from moesaic.kernels.cpu.packed import Both, PackedMatrix, packed_bytes
from moesaic.weights import pack_cache, packed_file, pouring, staging
from moesaic.weights.containers.packed import read_raw
from moesaic.weights.loader import fill_dummy, load_weights
from moesaic.weights.pack_cache import PackCache, identify
from moesaic.weights.packing import check_plan, packed_matrices
from moesaic.weights.quantization import QuantizationPlan
from moesaic.weights.rules import fused_experts, rename, tied
from moesaic.weights.sources import open_source

pytestmark = pytest.mark.usefixtures("cpu_library")

H, INNER, EXPERTS, VOCABULARY = 96, 48, 3, 130
RULES = [
    rename("embed.weight", "embed.weight"),
    tied("lm_head.weight", "embed.weight"),
    rename("norm.weight", "norm.weight"),
    rename("{n}_proj.weight", "layers.0.attention.{n}.weight"),
    *fused_experts("gate_up", "down", target="layers.0.mlp.experts.{e}"),
]


@pytest.fixture(params=[1, 2], ids=["one thread", "two threads"])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.fixture
def checkpoint(tmp_path):
    """A function: dtype in, folder of a checkpoint out."""

    def write(dtype=torch.bfloat16, load_format="safetensors"):
        folder = tmp_path / "checkpoint"
        folder.mkdir(exist_ok=True)
        (folder / "config.json").write_text("{}")
        tensors = tensors_of(dtype)
        if load_format == "bin":
            torch.save(tensors, folder / "pytorch_model.bin")
        else:
            save_file(tensors, folder / "model.safetensors")
        return str(folder)

    return write


def tensors_of(dtype):
    generator = torch.Generator().manual_seed(1)
    shapes = {
        "embed.weight": (VOCABULARY, H), "norm.weight": (H,), "q_proj.weight": (70, H), "k_proj.weight": (20, H),
        "v_proj.weight": (20, H), "gate_up": (EXPERTS, 2 * INNER, H), "down": (EXPERTS, H, INNER),
    }  # fmt: skip
    tensors = {name: (torch.randn(shape, generator=generator) * 0.1).to(dtype) for name, shape in shapes.items()}
    return {**tensors, "lm_head.weight": tensors["embed.weight"].clone()}


class Model:
    """What layers hold, without layers: a table and a head that are tied, one matrix of q, k and v, expert pages."""

    def __init__(self, plan):
        memory = Arenas()
        make = lambda name, *shape: PackedMatrix.empty(*shape, plan.format_of(name), allocator=memory.take)  # noqa: E731
        self.norm = torch.zeros(H)
        self.table, self.head = make("embed", VOCABULARY, H), make("lm_head", VOCABULARY, H)
        self.qkv = make("layers.0.attention.q", 110, H)
        formats = [plan.format_of(f"layers.0.mlp.experts.{e}.{n}") for e in range(EXPERTS) for n in ("gate", "down")]
        sizes = [
            round_up(packed_bytes(*shape), PAGE)
            for shape in zip(
                [2 * INNER, H] * EXPERTS, [H, INNER] * EXPERTS, formats, [True, False] * EXPERTS, strict=True
            )
        ]
        arena = Arena(sum(sizes))
        take = lambda nbytes: arena.take(nbytes, PAGE)  # noqa: E731
        self.gate_up = [PackedMatrix.empty(2 * INNER, H, f, True, take) for f in formats[::2]]
        self.down = [PackedMatrix.empty(H, INNER, f, False, take) for f in formats[1::2]]

    @property
    def matrices(self):
        return [self.table, self.head, self.qkv, *self.gate_up, *self.down]

    def parameters(self):
        found = {"embed.weight": Both(self.table.sink(), self.head.sink()), "norm.weight": self.norm}
        for name, first, count in (("q", 0, 70), ("k", 70, 20), ("v", 90, 20)):
            found[f"layers.0.attention.{name}.weight"] = self.qkv.sink(first, count)
        for e in range(EXPERTS):
            found[f"layers.0.mlp.experts.{e}.gate.weight"] = self.gate_up[e].gate_sink()
            found[f"layers.0.mlp.experts.{e}.up.weight"] = self.gate_up[e].up_sink()
            found[f"layers.0.mlp.experts.{e}.down.weight"] = self.down[e].sink()
        return found

    def load(self, folder, load_format="auto", **options):
        where = open_source(folder, load_format)
        return load_weights(self.parameters(), RULES, where, folder, progress=False, **options)

    def cache(self, cache_folder, folder):
        matrices, names = packed_matrices(self.parameters())
        return PackCache(str(cache_folder), folder, identify(folder, open_source(folder, "auto")), matrices), names


PLANS = {
    "plain": QuantizationPlan("bfloat16"),
    "w4a16": QuantizationPlan("bfloat16", "w4a16", 32),
    "w8a8": QuantizationPlan("float32", "w8a8", 0),
}


@pytest.fixture(params=PLANS)
def plan(request):
    return PLANS[request.param]


def same(one, other):
    return all(torch.equal(a.data, b.data) for a, b in zip(one.matrices, other.matrices, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("load_format", ["safetensors", "bin"])
def test_every_matrix_is_what_packing_its_tensors_gives(plan, dtype, load_format, checkpoint, threads, monkeypatch):
    monkeypatch.setattr(staging, "STAGING_BYTES", 64 * H)  # several pieces for every tensor
    model, tensors = Model(plan), tensors_of(dtype)
    model.load(checkpoint(dtype, load_format))
    qkv = torch.cat([tensors[f"{n}_proj.weight"] for n in "qkv"])
    assert torch.equal(model.norm, tensors["norm.weight"].float())
    expected = [(model.table, tensors["embed.weight"]), (model.head, tensors["embed.weight"]), (model.qkv, qkv)]
    expected += list(zip(model.gate_up, tensors["gate_up"], strict=True))
    expected += list(zip(model.down, tensors["down"], strict=True))
    for matrix, weight in expected:
        assert torch.equal(matrix.data, PackedMatrix.of(weight, matrix.format, matrix.gated).data)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_what_cpp_pours_is_what_python_pours(plan, dtype, checkpoint, threads, monkeypatch):
    monkeypatch.setattr(staging, "STAGING_BYTES", 64 * H)
    folder, taken = checkpoint(dtype), []
    pour_batch = pouring._pour_batch
    monkeypatch.setattr(pouring, "_pour_batch", lambda batch: taken.extend(batch) or pour_batch(batch))
    monkeypatch.setattr(pouring, "BATCH_BYTES", 5 * 64 * H)  # several batches
    fast = Model(plan)
    seen = fast.load(folder)
    assert len(taken) > 10
    monkeypatch.setattr(pouring, "_have_kernels", lambda: False)
    slow = Model(plan)
    assert slow.load(folder) == seen
    assert same(fast, slow) and torch.equal(fast.norm, slow.norm)


def test_a_tied_copy_that_differs_is_refused(checkpoint):
    folder = checkpoint()
    tensors = tensors_of(torch.bfloat16)
    tensors["lm_head.weight"][100, 5] += 1
    save_file(tensors, os.path.join(folder, "model.safetensors"))
    for plan in (PLANS["plain"], PLANS["w8a8"]):
        with pytest.raises(CheckpointError, match="holds a different lm_head.weight"):
            Model(plan).load(folder)


def test_accounting_is_as_strict_as_ever(checkpoint, threads):
    folder = checkpoint()
    tensors = tensors_of(torch.bfloat16)
    save_file({n: t for n, t in tensors.items() if n != "down"}, os.path.join(folder, "model.safetensors"))
    with pytest.raises(CheckpointError, match="3 missing"):
        Model(PLANS["w4a16"]).load(folder)


def test_a_file_that_shrinks_while_it_is_read_ends_the_load(checkpoint, threads):
    folder = checkpoint()
    source = open_source(folder, "auto")
    with open(os.path.join(folder, "model.safetensors"), "r+b") as file:
        file.truncate(os.path.getsize(file.name) // 2)
    with pytest.raises(CheckpointError, match="became shorter"):
        load_weights(Model(PLANS["plain"]).parameters(), RULES, source, folder, progress=False)


def test_dummy_weights_are_those_of_plain_tensors(monkeypatch):
    monkeypatch.setattr(staging, "STAGING_BYTES", 64 * H)
    model = Model(QuantizationPlan("float32"))
    fill_dummy(model.parameters(), 7)
    plain = {name: torch.empty(*into.shape) for name, into in model.parameters().items()}
    fill_dummy(plain, 7)
    for name, into in model.parameters().items():
        got = into if isinstance(into, torch.Tensor) else (into.first if isinstance(into, Both) else into).unpack()
        assert torch.equal(got, plain[name]), name


def test_a_plan_is_checked_against_the_model():
    model = Model(PLANS["w4a16"])
    check_plan(PLANS["w4a16"], model.parameters())
    check_plan(dataclasses.replace(PLANS["plain"], scheme="none"), Model(PLANS["plain"]).parameters())
    for config, message in (
        (
            "layers.0.attention.k=w8a16",
            r"layers.0.attention.k.weight .* another format than layers.0.attention.q.weight",
        ),
        ("layers.*.mlp.experts.0.up=none", "experts.0.up.weight .bf16. another format than .*gate"),
        ("layers.0.mlp.expert=none", "fits no weight"),
    ):
        plan = QuantizationPlan.read("bfloat16", "w4a16", 32, config)
        with pytest.raises(ConfigError, match=message):
            check_plan(plan, Model(plan).parameters())
    check_plan(QuantizationPlan.read("bfloat16", "w8a16", 32, "lm_head=none"), {})  # plain tensors: nothing to check


# ---- the cache -------------------------------------------------------------------------------------------------------


def test_a_second_start_reads_the_same_bytes(plan, checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(packed_file, "PIECE", 8192)
    folder = checkpoint()
    first, second = Model(plan), Model(plan)
    cache, _ = first.cache(tmp_path / "cache", folder)
    assert not cache.load()
    first.load(folder)
    cache.save()
    again, names = second.cache(tmp_path / "cache", folder)
    assert again.load()
    assert same(first, second)
    second.load(folder, filled=names)
    assert torch.equal(first.norm, second.norm) and same(first, second)
    assert os.path.getsize(cache.path) % PAGE == 0
    assert [p.name for p in (tmp_path / "cache").iterdir()] == [cache.path.name]


@pytest.fixture
def kept(checkpoint, tmp_path):
    """Checkpoint, folder of the cache, and the cache of a model that was loaded and kept."""
    folder = checkpoint()
    model = Model(PLANS["w4a16"])
    model.load(folder)
    cache, _ = model.cache(tmp_path / "cache", folder)
    cache.save()
    return folder, tmp_path / "cache", cache


@pytest.mark.parametrize("cold", [False, True])
def test_cold_files_are_read_past_the_page_cache(cold, kept, monkeypatch):
    folder, cache_folder, _ = kept
    if not hasattr(os, "RWF_NOWAIT"):
        pytest.skip("this system cannot say what is in its page cache")
    past = []
    real = os.preadv

    def preadv(fd, buffers, offset, flags=0):
        if flags & os.RWF_NOWAIT and cold:
            raise BlockingIOError
        past.append(flags == 0)
        return real(fd, buffers, offset, flags)

    monkeypatch.setattr(os, "preadv", preadv)
    model, other = Model(PLANS["w4a16"]), Model(PLANS["w4a16"])
    assert model.cache(cache_folder, folder)[0].load()
    other.load(folder)
    assert same(model, other)
    assert cold == all(past)


def test_other_formats_and_other_checkpoints_have_other_files(kept, checkpoint):
    folder, cache_folder, cache = kept
    other, _ = Model(PLANS["w8a8"]).cache(cache_folder, folder)
    assert other.path != cache.path and not other.load()
    checkpoint(torch.float32)  # the checkpoint is replaced
    model = Model(PLANS["w4a16"])
    changed, _ = model.cache(cache_folder, folder)
    assert changed.path != cache.path and not changed.load()
    model.load(folder)
    changed.save()  # and what was kept of it is of no use any more
    assert [p.name for p in cache_folder.iterdir()] == [changed.path.name]


def test_another_layout_is_another_file(kept, monkeypatch):
    folder, cache_folder, cache = kept
    monkeypatch.setattr(pack_cache, "pack_version", lambda: (99, 1))
    assert Model(PLANS["w4a16"]).cache(cache_folder, folder)[0].path != cache.path


def damage_tail(path):
    os.truncate(path, os.path.getsize(path) - PAGE)


def damage_header(path):
    with open(path, "r+b") as file:
        file.seek(60)
        file.write(b"#")


def damage_magic(path):
    path.write_bytes(b"something else")


def damage_middle(path):
    with open(path, "r+b", buffering=0) as file:  # a hole where a power failure kept pages from the disk
        file.seek(read_raw(file)["begin"])
        file.write(b"\0" * PAGE)


def empty(path):
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [damage_tail, damage_header, damage_magic, damage_middle, empty])
def test_a_torn_file_is_discarded_with_a_warning_and_made_anew(damage, kept, caplog):
    folder, cache_folder, cache = kept
    damage(cache.path)
    model = Model(PLANS["w4a16"])
    again, _ = model.cache(cache_folder, folder)
    with caplog.at_level("WARNING"):
        assert not again.load()
    assert "cannot be used and are made anew" in caplog.text
    assert not cache.path.exists()
    model.load(folder)
    again.save()
    assert Model(PLANS["w4a16"]).cache(cache_folder, folder)[0].load()


def test_a_folder_that_cannot_be_written_is_one_warning(checkpoint, tmp_path, caplog, monkeypatch):
    folder = checkpoint()
    model = Model(PLANS["w4a16"])
    model.load(folder)
    (tmp_path / "file").write_text("")
    with caplog.at_level("WARNING"):
        model.cache(tmp_path / "file", folder)[0].save()  # not a folder
        monkeypatch.setattr(pack_cache, "FREE_BESIDE", 1 << 60)
        model.cache(tmp_path / "full", folder)[0].save()  # too little space
        monkeypatch.setattr(pack_cache, "FREE_BESIDE", 0)

        def disk_full(*args):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(packed_file, "_write_all", disk_full)
        model.cache(tmp_path / "full", folder)[0].save()
    assert len([r for r in caplog.records if r.levelname == "WARNING"]) == 3
    assert "No space left" in caplog.text
    assert not any((tmp_path / "full").iterdir())
