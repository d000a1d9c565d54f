"""Recorded routes: what is counted, against plain loops; the file and what is refused of damaged ones."""

import json
from itertools import combinations
from pathlib import Path
from random import Random

import numpy as np
import pytest

from moesaic.core.errors import CheckpointError, MoesaicError
from moesaic.experts.profile_file import read_routes, write_routes
from moesaic.experts.recorder import MAX_TAGS, RouteRecorder, Rows
from tests.fuzz.mutate_bytes import mutate_bytes, mutate_safetensors

LAYERS, EXPERTS, TOP_K = [1, 4, 5], [6, 4, 6], [3, 2, 3]


def recorder(**options):
    return RouteRecorder("tiny", LAYERS, EXPERTS, TOP_K, **options)


def some_rows(seed, tokens, tags=(), width=3):
    """Random choices; layers with a smaller k, and tokens that chose fewer, are padded with -1."""
    random = np.random.default_rng(seed)
    ids = np.full((tokens, len(LAYERS), width), -1, dtype=np.int16)
    for layer, (experts, k) in enumerate(zip(EXPERTS, TOP_K, strict=True)):
        for token in range(tokens):
            ids[token, layer, :k] = random.permutation(experts)[:k]
    ids[::3, 0, 2] = -1
    weights = np.where(ids >= 0, random.random(ids.shape), 0).astype(np.float32)
    return Rows(ids, weights, tags)


def counted(all_rows):
    """Counts, sums of weights and pairs by plain loops."""
    counts, weights = np.zeros((3, 6), int), np.zeros((3, 6))
    together = np.zeros((3, 6, 6), int)
    for rows in all_rows:
        for token, layer in np.ndindex(rows.ids.shape[:2]):
            chosen = [int(e) for e in rows.ids[token, layer] if e >= 0]
            for place, expert in enumerate(chosen):
                counts[layer, expert] += 1
                weights[layer, expert] += rows.weights[token, layer, place]
                together[layer, expert, expert] += 1
            for a, b in combinations(chosen, 2):
                together[layer, a, b] += 1
                together[layer, b, a] += 1
    return counts, weights, together


@pytest.mark.parametrize("tokens", [5, 700])
def test_counts_weights_and_pairs_are_those_of_plain_loops(tokens):
    rows = [some_rows(0, tokens), some_rows(1, tokens, ["a", "b", "a"]), some_rows(2, tokens, ["b"])]
    made = recorder()
    for part in rows:
        made.add(part)
    profile = made.profile()
    for tag, chosen in ((None, rows), ("a", rows[1:2]), ("b", rows[1:])):
        counts, weights, together = counted(chosen)
        for layer, experts in enumerate(EXPERTS):
            assert profile.of(tag)[0][layer].tolist() == counts[layer, :experts].tolist()
            np.testing.assert_allclose(profile.of(tag)[1][layer], weights[layer, :experts])
            if tag is None:
                assert (profile.together(layer) == together[layer, :experts, :experts]).all()
    assert profile.tokens == 3 * tokens and profile.tokens_of_tags == [tokens, 2 * tokens]
    with pytest.raises(KeyError):
        profile.of("c")


def test_choices_are_kept_in_order_up_to_the_limit():
    rows = [some_rows(0, 4), some_rows(1, 4, width=5)]
    made = recorder(stream_tokens=6)
    for part in rows:
        made.add(part)
    stream = made.profile().stream
    assert stream.shape == (6, 3, 5)
    assert (stream[:4, :, :3] == rows[0].ids).all() and (stream[:4, :, 3:] == -1).all()
    assert (stream[4:] == rows[1].ids[:2]).all()
    assert made.profile().tokens == 8


def test_tags_beyond_the_limit_are_counted_with_all_alone():
    made = recorder()
    for i in range(MAX_TAGS + 3):
        made.add(some_rows(i, 1, [f"tag {i}"]))
    profile = made.profile()
    assert len(profile.tags) == MAX_TAGS and profile.tags_left_out
    assert profile.tokens == MAX_TAGS + 3 and profile.counts[0, 2].sum() == 3 * (MAX_TAGS + 3)


@pytest.fixture(scope="module")
def profile_path(tmp_path_factory):
    made = recorder(stream_tokens=10)
    made.add(some_rows(0, 20, ["a"]))
    path = str(tmp_path_factory.mktemp("profile") / "routes.safetensors")
    write_routes(made.profile(), path)
    return path


def test_what_was_written_is_read(profile_path):
    made = recorder(stream_tokens=10)
    made.add(some_rows(0, 20, ["a"]))
    written, read = made.profile(), read_routes(profile_path)
    for name in ("model", "layers", "num_experts", "top_k", "tags", "tokens", "tokens_of_tags", "tags_left_out"):
        assert getattr(read, name) == getattr(written, name), name
    for name in ("counts", "weights", "pairs", "stream"):
        assert getattr(read, name).dtype == getattr(written, name).dtype
        assert (getattr(read, name) == getattr(written, name)).all(), name


def rewritten(path, folder, change):
    """A copy of a file whose metadata and arrays `change` has changed."""
    from safetensors import safe_open
    from safetensors.numpy import save_file

    with safe_open(path, framework="numpy") as file:
        metadata, arrays = dict(file.metadata()), {name: file.get_tensor(name).copy() for name in file.keys()}  # noqa: SIM118
    about = json.loads(metadata.pop("about"))
    change(metadata, about, arrays)
    metadata.setdefault("about", json.dumps(about))
    save_file(arrays, folder / "changed.safetensors", metadata)
    return str(folder / "changed.safetensors")


WRONG = [
    (lambda m, a, t: m.update(format="pt"), "holds no recorded routes"),
    (lambda m, a, t: m.update(version="2"), "of version 2"),
    (lambda m, a, t: m.update(about="{"), "no legible `about`"),
    (lambda m, a, t: a.pop("layers"), "must be an object of"),
    (lambda m, a, t: a.update(surplus=1), "must be an object of"),
    (lambda m, a, t: a.update(layers=[0, 1, -1]), "layers must be"),
    (lambda m, a, t: a.update(layers=[]), "an entry for each MoE layer"),
    (lambda m, a, t: a.update(num_experts=[6, 4]), "an entry for each MoE layer"),
    (lambda m, a, t: a.update(num_experts=[6, 0, 6]), "from 1 to"),
    (lambda m, a, t: a.update(num_experts=[6, 4, 1 << 40]), "from 1 to"),
    (lambda m, a, t: a.update(num_experts=[6, 3, 6]), "does not have"),
    (lambda m, a, t: a.update(tags=["a", "b"]), "an entry for each tag"),
    (lambda m, a, t: a.update(tags=[1]), "list of texts"),
    (lambda m, a, t: a.update(tokens="many"), "tokens a whole number"),
    (lambda m, a, t: a.update(tags_left_out=1), "true or false"),
    (lambda m, a, t: t.pop("pairs"), "has no pairs"),
    (lambda m, a, t: t.update(counts=t["counts"][:1]), "counts is"),
    (lambda m, a, t: t.update(counts=t["counts"].astype(np.int32)), "must be int64"),
    (lambda m, a, t: t["counts"].__isub__(1), "below 0"),
    (lambda m, a, t: t["weights"].fill(np.nan), "below 0, or none"),
    (lambda m, a, t: t.update(stream=t["stream"][0]), "stream is"),
    (lambda m, a, t: t["stream"].fill(4), "not there"),
]


@pytest.mark.parametrize(("change", "words"), WRONG, ids=[words for _, words in WRONG])
def test_what_does_not_fit_together_is_refused(profile_path, tmp_path, change, words):
    with pytest.raises(CheckpointError, match=words):
        read_routes(rewritten(profile_path, tmp_path, change))


def test_damaged_files_are_one_clear_error(profile_path, tmp_path):
    whole = Path(profile_path).read_bytes()
    path = tmp_path / "damaged.safetensors"
    refused = 0
    for number in range(300):
        random = Random(number)
        path.write_bytes((mutate_safetensors if number % 2 else mutate_bytes)(whole, random))
        try:
            read_routes(str(path))
        except MoesaicError as error:
            assert str(path) in str(error)
            refused += 1
    assert refused > 100


@pytest.mark.parametrize("content", [b"", b"{}", b"\x08\0\0\0\0\0\0\0{}      "])
def test_other_files_are_refused(tmp_path, content):
    path = tmp_path / "other"
    path.write_bytes(content)
    with pytest.raises(CheckpointError):
        read_routes(str(path))


def test_an_absent_file_and_a_folder_are_refused(tmp_path):
    for path in (tmp_path, tmp_path / "absent"):
        with pytest.raises(CheckpointError, match="cannot read"):
            read_routes(str(path))
