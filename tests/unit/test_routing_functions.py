"""Routing functions alone: what they are given, how they are told apart, composed and checked, what identifies them."""

import logging
import time

import pytest
import torch

from moesaic.core.errors import ConfigError
from moesaic.core.routing import LayerShape, MoeShape
from moesaic.experts.function_signature import signature_of
from moesaic.experts.function_types import DomainTags, RequestIds, RoutingDecision, RoutingInput
from moesaic.experts.functions import RoutingFunctionError, RoutingFunctions

EXPERTS = 8
SHAPE = MoeShape([LayerShape(3, EXPERTS, 2), LayerShape(4, EXPERTS, 2)])
TAGS = [("finance",), (), ("law", "finance")]


def given(rows=6, tags=TAGS, seed=0):
    logits = torch.randn(rows, EXPERTS, generator=torch.Generator().manual_seed(seed))
    sequence = torch.arange(rows) % len(tags)
    return RoutingInput(
        layer=3,
        logits=logits,
        scores=logits.softmax(-1),
        tags=DomainTags(tags, sequence),
        positions=torch.arange(rows),
        request_ids=RequestIds([(f"r{i}",) for i in range(len(tags))], sequence),
        k=torch.full((rows,), 2),
    )


def functions(*registered, **options):
    made = RoutingFunctions(SHAPE)
    for function in registered:
        made.register(function, **options)
    return made


def test_tags_compare_tokens_by_their_request():
    tags = given().tags
    assert (tags == "finance").tolist() == [True, False, True] * 2
    assert (tags != "finance").tolist() == [False, True, False] * 2
    assert (tags == "law").tolist() == [False, False, True] * 2
    assert (tags == "unknown").sum() == 0 and (tags != "unknown").all()
    assert tags.isin(["law", "medicine"]).tolist() == [False, False, True] * 2
    assert len(tags) == 6 and tags.shape == (6,)
    assert tags[2] == ("law", "finance") and tags[-1] == ("law", "finance") and tags[1] == ()
    assert list(tags[2:4]) == [("law", "finance"), ("finance",)]
    assert (tags[torch.tensor([1, 2])] == "finance").tolist() == [False, True]
    assert (tags == "finance").dtype == torch.bool
    for wrong in (lambda: tags == 3, lambda: tags == ["law"], lambda: tags.isin("law")):
        with pytest.raises(TypeError):
            wrong()


def test_a_mask_is_its_own():
    tags = given().tags
    mask = tags == "finance"
    mask[:] = True
    assert (tags == "finance").tolist() == [True, False, True] * 2


def test_the_snippet_of_the_documentation():
    def domain_aware_routing(scores, domain_tags):
        finance_mask = (domain_tags == "finance")  # fmt: skip
        scores[finance_mask, 4:] *= 0.1
        return scores

    before = given()
    kept = before.scores.clone()
    after = functions(domain_aware_routing)(before)
    expected = kept.clone()
    for row in (0, 2, 3, 5):
        expected[row, 4:] = kept[row, 4:] * 0.1
    assert torch.equal(after.scores, expected)
    assert torch.equal(before.scores, kept)  # it writes into its own copy


def test_signatures_are_told_apart():
    def annotated(x: RoutingInput) -> RoutingDecision: ...
    def annotated_with_more(x: RoutingInput, factor: float = 2.0) -> RoutingDecision: ...
    def with_options(scores, domain_tags, factor=0.5): ...
    def anything(*args): ...
    def one_too_many(scores, tags, other): ...
    def by_keyword(scores, tags, *, factor): ...

    class Callable:
        def __call__(self, scores, domain_tags): ...
        def method(self, given): ...

    assert signature_of(annotated, "f") == signature_of(annotated_with_more, "f") == "full"
    assert signature_of(lambda given: None, "f") == signature_of(Callable().method, "f") == "full"
    assert signature_of(lambda scores, tags: scores, "f") == signature_of(with_options, "f") == "simple"
    assert signature_of(Callable(), "f") == "simple"
    for wrong in (anything, one_too_many, by_keyword, lambda: None):
        with pytest.raises(ConfigError, match="must take"):
            signature_of(wrong, "f")
    made = functions()
    assert made.register(anything, signature="simple") == "anything"
    with pytest.raises(ConfigError, match="simple or full"):
        made.register(anything, name="other", signature="both")


def test_functions_compose_in_order():
    def first(scores, tags):
        return scores * 2

    def second(x: RoutingInput) -> RoutingDecision:
        return RoutingDecision(x.scores + 1, k=torch.where(x.tags == "finance", 1, x.k))

    def third(x: RoutingInput) -> RoutingDecision:
        return RoutingDecision(k=x.k + 1)

    x = given()
    made = functions(first, second, third)(x)
    assert torch.equal(made.scores, x.scores * 2 + 1)
    assert made.k.tolist() == [2, 3, 2] * 2


def test_the_full_input():
    seen = []

    def look(x: RoutingInput) -> RoutingDecision:
        seen.append(x)
        return RoutingDecision(k=3)

    x = given()
    made = functions(look)(x)
    assert made.k.tolist() == [3] * 6 and made.scores is x.scores
    last = seen[-1]
    assert last.layer == 3 and torch.equal(last.logits, x.logits)
    assert last.request_ids[4] == ("r1",) and last.positions.tolist() == list(range(6))


@pytest.mark.parametrize(
    "function, words",
    [
        (lambda s, t: None, "must return the scores"),
        (lambda s, t: s[:, :4], r"\[6, 4\]"),
        (lambda s, t: s[:1], "for scores of"),
        (lambda s, t: s.double(), "float64"),
        (lambda s, t: s.tolist(), "list"),
        (lambda s, t: s / 0, "not finite"),
        (lambda s, t: s * float("nan"), "not finite"),
        (lambda s, t: s - 0.5, "negative"),
        (lambda s, t: s * (t != "finance")[:, None], "no expert to choose"),
        (lambda s, t: 1 / 0, "ZeroDivisionError"),
        (lambda x: x.scores, "not a RoutingDecision"),
        (lambda x: RoutingDecision(k=0), "must be 1 to 8"),
        (lambda x: RoutingDecision(k=9), "must be 1 to 8"),
        (lambda x: RoutingDecision(k=x.k[:2]), "one a token"),
        (lambda x: RoutingDecision(k=x.k.float()), "one a token"),
    ],
)
def test_what_cannot_be_chosen_by_is_named(function, words):
    made = functions()
    made.register(function, name="mine")
    with pytest.raises(RoutingFunctionError, match=words) as caught:
        made(given())
    assert "'mine'" in str(caught.value) and "layer 3" in str(caught.value)


def test_a_model_with_nan_is_not_the_functions_fault():
    x = given()
    x.scores[1] = float("nan")
    made = functions(lambda scores, tags: scores * 0.5)(x)
    assert made.scores[1].isnan().all() and torch.equal(made.scores[0], x.scores[0] * 0.5)


def test_an_empty_batch():
    made = functions(lambda scores, tags: scores * 0.5)(given(rows=0))
    assert made.scores.shape == (0, EXPERTS)


def test_a_function_that_mixes_tokens_is_called_row_by_row(caplog):
    def mixes(scores, tags):
        return scores + scores.mean(0, keepdim=True)

    with caplog.at_level(logging.WARNING, "moesaic"):
        made = functions(mixes)
    assert "one token at a time" in caplog.text and "pure=False" in caplog.text
    x = given()
    together = made(x)
    assert torch.equal(together.scores, x.scores * 2)
    assert torch.equal(made(x.of(slice(2, 3))).scores, together.scores[2:3])


def test_one_that_mixes_tokens_of_a_tag_alone_is_found_too():
    def mixes(scores, tags):
        finance = tags == "finance"
        scores[finance] = scores[finance] + scores[finance].sum(0)
        return scores

    assert next(iter(functions(mixes))).by_row


def test_impure_functions_are_called_once_and_said_to_be_so(caplog):
    def mixes(scores, tags):
        return scores + scores.mean(0, keepdim=True)

    with caplog.at_level(logging.WARNING, "moesaic"):
        made = functions(mixes, pure=False)
    assert "looks across tokens" in caplog.text
    x = given()
    assert torch.equal(made(x).scores, x.scores + x.scores.mean(0, keepdim=True))


def test_elementwise_functions_are_called_once():
    made = functions()
    made.register(lambda scores, tags: scores**2, name="a")
    made.register(lambda scores, tags: torch.where((tags == "finance")[:, None], scores, scores * 0.5), name="b")
    assert [function.by_row for function in made] == [False, False]


def test_identity_changes_with_the_source_the_version_and_the_order():
    def one(scores, tags):
        return scores

    def other(scores, tags):
        return scores * 2

    keys = {functions(one).key, functions(other).key, functions(one, other).key, functions(other, one).key}
    keys |= {functions(one, version="7").key, functions(one, version="8").key, functions().key}
    assert len(keys) == 7
    assert functions(one).key == functions(one).key
    assert functions(one, version="7").key == "one@7"
    made = functions(one)
    before = made.key
    made.unregister("one")
    assert not made and made.key == ""
    made.register(one)
    assert made.key != before  # what it holds may have changed meanwhile


def test_registrations_that_cannot_be():
    made = functions(lambda scores, tags: scores, name="mine")
    with pytest.raises(ConfigError, match="registered already"):
        made.register(lambda scores, tags: scores, name="mine")
    with pytest.raises(ConfigError, match="must be callable"):
        made.register("mine")
    with pytest.raises(ConfigError, match="did you mean 'mine'"):
        made.unregister("mina")
    for shape, refused, words in (
        (None, "", "no experts"),
        (MoeShape([], ""), "", "no experts"),
        (MoeShape(SHAPE.layers, "transformers routes"), "", "transformers routes"),
        (SHAPE, "its router does not score", "does not score"),
    ):
        with pytest.raises(ConfigError, match=words):
            RoutingFunctions(shape, refused).register(lambda scores, tags: scores)


def test_time_spent_is_measured():
    def sleeps(scores, tags):
        time.sleep(0.01)
        return scores

    made = functions(sleeps)
    [function] = made
    assert function.seconds == 0  # trying it does not count
    made(given())
    made(given())
    assert 0.02 <= function.seconds < 1
