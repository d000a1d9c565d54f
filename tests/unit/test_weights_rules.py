"""Rules read in both directions, and the plan accounts for every name, reporting all misses together."""

import pytest
import torch

from moesaic.core.errors import CheckpointError
from moesaic.models.archs import granitemoe, mixtral
from moesaic.weights.plan import MAX_LISTED, Copy, plan_load
from moesaic.weights.rules import (
    Rule,
    RuleBook,
    experts,
    fused_experts,
    ignore,
    numberless,
    packed,
    rename,
    tied,
    whole_shape,
)

H, I, E, LAYERS = 8, 6, 3, 2  # noqa: E741
RULES = [
    rename("model.embed.weight", "embed.weight"),
    rename("lm_head.weight", "lm_head.weight"),
    tied("lm_head.weight", "embed.weight"),
    rename("model.layers.{l}.attn.{n}.{p}", "layers.{l}.attention.{n}.{p}"),
    *experts("model.layers.{l}.moe.experts.{e}", gate="w1", up="w3", down="w2"),
    *fused_experts("model.layers.{l}.moe.gate_up", "model.layers.{l}.moe.down"),
    ignore("model.layers.{l}.inv_freq", "computed here"),
]


def parameters():
    shapes = {"embed.weight": (20, H), "lm_head.weight": (20, H)}
    for layer in range(LAYERS):
        shapes[f"layers.{layer}.attention.q.weight"] = (H, H)
        for e in range(E):
            for name, shape in (("gate", (I, H)), ("up", (I, H)), ("down", (H, I))):
                shapes[f"layers.{layer}.mlp.experts.{e}.{name}.weight"] = shape
    return shapes


def per_expert_tensors():
    tensors = {"model.embed.weight": (20, H), "lm_head.weight": (20, H)}
    for layer in range(LAYERS):
        tensors[f"model.layers.{layer}.attn.q.weight"] = (H, H)
        for e in range(E):
            for name, shape in (("w1", (I, H)), ("w3", (I, H)), ("w2", (H, I))):
                tensors[f"model.layers.{layer}.moe.experts.{e}.{name}.weight"] = shape
    return tensors


def plan(tensors, shapes=None):
    return plan_load(shapes or parameters(), RULES, tensors, "folder")


def misses(tensors, shapes=None):
    with pytest.raises(CheckpointError) as e:
        plan(tensors, shapes)
    return str(e.value)


def places(rules, name, shape):
    return [(place.source, place.index) for place in RuleBook(rules).locate(name, shape)]


def test_rules_say_where_a_parameter_lies():
    assert places(RULES, "layers.1.mlp.experts.2.up.weight", (I, H)) == [
        ("model.layers.1.moe.experts.2.w3.weight", ()),
        ("model.layers.1.moe.gate_up", (2, slice(I, 2 * I))),
    ]
    assert places(RULES, "layers.1.mlp.experts.2.down.weight", (H, I))[1] == ("model.layers.1.moe.down", (2,))
    assert places(RULES, "layers.0.attention.q.bias", (H,)) == [("model.layers.0.attn.q.bias", ())]
    assert places(RULES, "nothing.like.it", (H,)) == []


def test_the_first_of_several_rows():
    rules = [Rule("w", "b", row=2)]
    (copy,) = plan_load({"b": (H,)}, rules, {"w": (2, H)}, "folder").copies
    assert copy.index == (0,)
    with pytest.raises(CheckpointError, match="of the wrong shape"):
        plan_load({"b": (H,)}, rules, {"w": (1, H)}, "folder")


def test_what_is_packed_follows_its_neighbours():
    sizes = {"q": 8, "k": 4, "v": 2}
    shapes = {f"layers.1.{part}": (rows, H) for part, rows in sizes.items()}
    book = RuleBook(packed("{l}.qkv", *(f"layers.{{l}}.{part}" for part in sizes)), shapes)
    found = [book.locate(name, shape) for name, shape in shapes.items()]
    assert [[(p.source, p.index) for p in places] for places in found] == [
        [("1.qkv", (slice(0, 8),))],
        [("1.qkv", (slice(8, 12),))],
        [("1.qkv", (slice(12, 14),))],
    ]


@pytest.mark.parametrize("transposed", [False, True])
def test_experts_that_may_be_transposed_are_read_as_their_shapes_tell(transposed):
    rules = fused_experts("{l}.gate_up", "{l}.down", either=True)
    shapes = {"gate": (I, H), "up": (I, H), "down": (H, I)}
    parameters = {f"layers.0.mlp.experts.{e}.{part}.weight": shapes[part] for e in range(E) for part in shapes}
    whole = {"0.gate_up": (E, 2 * I, H), "0.down": (E, H, I)}
    tensors = {name: (E, n, m) if not transposed else (E, m, n) for name, (_, n, m) in whole.items()}
    found = {copy.target: copy for copy in plan_load(parameters, rules, tensors, "folder").copies}
    up, down = (found[f"layers.0.mlp.experts.1.{part}.weight"] for part in ("up", "down"))
    stored = torch.arange(2 * I * H).view(tensors["0.gate_up"][1:])
    if transposed:
        assert up.view.transposed and down.view.transposed
        assert torch.equal(up.view.take(stored), stored[:, I:].T)
    else:
        assert (up.index, up.view, down.view) == ((1, slice(I, 2 * I)), None, None)


def test_parts_that_take_turns_and_transposes_are_read_whole():
    rules = fused_experts("l{l}.gate_up", "l{l}.down", interleaved=True, transposed=True)
    (gate,), (up,), (down,) = (
        RuleBook(rules).locate(f"layers.1.mlp.experts.2.{part}.weight", shape)
        for part, shape in (("gate", (I, H)), ("up", (I, H)), ("down", (H, I)))
    )
    assert (gate.source, gate.index, gate.shape) == ("l1.gate_up", (2,), (H, 2 * I)) and down.shape == (I, H)
    stored = torch.arange(H * 2 * I).view(H, 2 * I)
    assert torch.equal(gate.view.take(stored), stored.T[0::2]) and torch.equal(up.view.take(stored), stored.T[1::2])
    assert gate.view.transposed and down.view.transposed
    (bias,) = RuleBook(fused_experts("b", "d", interleaved=True, kind="bias", target="{e}")).locate("3.up.bias", (I,))
    assert (bias.index, bias.shape) == ((3,), (2 * I,))
    assert bias.view.take(torch.arange(2 * I)).tolist() == list(range(1, 2 * I, 2))


def test_of_every_so_many_rows_some_are_taken():
    (place,) = RuleBook([Rule("w", "t", turns=(1, 2, 5))]).locate("t", (6, H))
    assert (place.source, place.index, place.shape) == ("w", (), (15, H))
    stored = torch.arange(15 * H).view(15, H)
    assert torch.equal(place.view.take(stored), stored[[1, 2, 6, 7, 11, 12]])
    assert place.view.take(torch.arange(15)).tolist() == [1, 2, 6, 7, 11, 12]


def test_rows_of_a_flat_stack_a_single_row_and_rows_from_the_middle():
    flat = Rule("w", "{e}.weight", stacked="e", flat=True)
    assert places([flat], "2.weight", (I, H)) == [("w", (slice(2 * I, 3 * I),))]
    assert places([Rule("w", "b", row=1)], "b", (H,)) == [("w", (0,))]
    assert places([Rule("w", "t", start=2)], "t", (5, H)) == [("w", (slice(2, 7),))]


def test_families_share_canonical_names():
    name, shape = "layers.7.mlp.experts.11.gate.weight", (I, H)
    assert places(mixtral.RULES, name, shape) == [
        ("model.layers.7.block_sparse_moe.experts.11.w1.weight", ()),
        ("model.layers.7.mlp.experts.gate_up_proj", (11, slice(0, I))),
    ]
    assert ("model.layers.7.block_sparse_moe.input_linear.weight", (11, slice(0, I))) in places(
        granitemoe.RULES, name, shape
    )


def test_whole_shape_is_what_the_parts_cover():
    assert whole_shape([((), (3, 4))]) == (3, 4)
    assert whole_shape([((0, slice(0, 6)), (6, 8)), ((2, slice(6, 12)), (6, 8))]) == (3, 12, 8)
    assert whole_shape([((e,), (8, 6)) for e in range(5)]) == (5, 8, 6)


def test_numberless():
    assert numberless("layers.12.mlp.experts.3.w1.weight") == "layers.#.mlp.experts.#.w1.weight"
    assert numberless("layer_12.expert_3.fc_1.weight") == "layer_#.expert_#.fc_1.weight"


def test_a_checkpoint_that_fits_fills_everything_once():
    copies = plan(per_expert_tensors()).copies
    assert sorted(c.target for c in copies) == sorted(parameters())
    assert {c.source for c in copies} == set(per_expert_tensors())


def test_a_fused_checkpoint_fits_too():
    tensors = {n: s for n, s in per_expert_tensors().items() if ".experts." not in n}
    for layer in range(LAYERS):
        tensors[f"model.layers.{layer}.moe.gate_up"] = (E, 2 * I, H)
        tensors[f"model.layers.{layer}.moe.down"] = (E, H, I)
    copies = plan(tensors).copies
    assert sorted(c.target for c in copies) == sorted(parameters())
    assert Copy("model.layers.1.moe.gate_up", (2, slice(I, 2 * I)), "layers.1.mlp.experts.2.up.weight") in copies


def test_ignored_tensors_may_be_there():
    plan({**per_expert_tensors(), "model.layers.0.inv_freq": (4,)})
    assert "model.layers.x.inv_freq" in misses({**per_expert_tensors(), "model.layers.x.inv_freq": (4,)})


def test_a_tied_copy_is_checked_where_it_is_there():
    shapes = {name: shape for name, shape in parameters().items() if name != "lm_head.weight"}
    assert plan(per_expert_tensors(), shapes).checks == [Copy("lm_head.weight", (), "embed.weight")]
    without = {name: shape for name, shape in per_expert_tensors().items() if name != "lm_head.weight"}
    assert plan(without, shapes).checks == []
    assert "lm_head.weight: is [21, 8]" in misses({**without, "lm_head.weight": (21, H)}, shapes)


def test_all_misses_are_reported_together_with_their_nearest():
    tensors = per_expert_tensors()
    tensors["model.layers.0.attn.q_proj.weight"] = tensors.pop("model.layers.0.attn.q.weight")
    tensors["model.layers.1.attn.q.weight"] = (H, H + 1)
    tensors["totally.different"] = (1,)
    tensors["model.layers.0.moe.gate_up"] = (E, 2 * I, H)
    del tensors["lm_head.weight"]
    message = misses(tensors)
    assert "2 missing" in message and "2 superfluous" in message and "1 of the wrong shape" in message
    assert (
        "layers.0.attention.q.weight: expected as model.layers.0.attn.q.weight "
        "(nearest: model.layers.0.attn.q_proj.weight)" in message
    )
    assert "lm_head.weight: expected as lm_head.weight" in message
    assert "model.layers.0.attn.q_proj.weight: shape [8, 8] (nearest: model.layers.0.attn.q.weight)" in message
    assert "totally.different: shape [1]\n" in message
    assert "model.layers.1.attn.q.weight: is [8, 9], the config asks for [8, 8]" in message
    assert f"{2 * E} filled twice" in message
    assert "from model.layers.0.moe.experts.0.w1.weight and from model.layers.0.moe.gate_up" in message


def test_names_that_differ_in_numbers_share_a_line():
    tensors = {name: shape for name, shape in per_expert_tensors().items() if ".w3." not in name}
    message = misses(tensors)
    assert f"{LAYERS * E} missing" in message
    assert message.count("up.weight: expected as") == 1
    assert f"[and {LAYERS * E - 1} more like it]" in message


def test_a_long_list_is_cut():
    extra = {f"odd_{chr(97 + i)}.weight": (1,) for i in range(MAX_LISTED + 6)}
    message = misses({**per_expert_tensors(), **extra})
    assert f"{MAX_LISTED + 6} superfluous" in message and "... and 6 more kinds of names" in message


def test_a_wrong_number_of_experts_in_a_fused_tensor_shows():
    tensors = {n: s for n, s in per_expert_tensors().items() if ".experts." not in n}
    for layer in range(LAYERS):
        tensors[f"model.layers.{layer}.moe.gate_up"] = (E + 1, 2 * I, H)
        tensors[f"model.layers.{layer}.moe.down"] = (E, H, I)
    assert f"is [{E + 1}, {2 * I}, {H}], the config asks for [{E}, {2 * I}, {H}]" in misses(tensors)


def test_layers_that_are_two():
    rules = [Rule(f"block.{{l}}.{i}.weight", "layers.{l}.weight", every=2, offset=i) for i in (0, 1)]
    copies = plan_load(
        {f"layers.{i}.weight": (3,) for i in range(4)},
        rules,
        {f"block.{i}.{j}.weight": (3,) for i in (0, 1) for j in (0, 1)},
        "here",
    ).copies
    assert [copy.source for copy in copies] == [f"block.{i}.{j}.weight" for i in (0, 1) for j in (0, 1)]


def test_what_is_optional_may_be_zero():
    rules = [Rule("a", "a"), Rule("b", "b", optional=True)]
    shapes = {"a": (2,), "b": (3,)}
    assert plan_load(shapes, rules, {"a": (2,)}, "here").zeros == ["b"]
    found = plan_load(shapes, rules, shapes, "here")
    assert (found.zeros, len(found.copies)) == ([], 2)
    with pytest.raises(CheckpointError, match="a: expected as a"):
        plan_load(shapes, rules, {"b": (3,)}, "here")


def test_a_parameter_that_no_rule_knows():
    assert "new.weight: expected as no rule says where from" in misses(
        per_expert_tensors(), {**parameters(), "new.weight": (1,)}
    )
