"""`python -m benchmarks.claims`: its simulations against small cases that are done by hand."""

import json

import numpy as np
import pytest
from click.testing import CliRunner

from benchmarks.claims import by_hits, grouped, last_used, main, most_used, paged_memory


def test_the_expert_used_last_is_held():
    # order before each choice: 0 1 2 | 0 1 2 | 2 0 1 | 2 0 1: places 0, 2, 0, 1
    found = last_used([np.array([[0], [2], [2]]), np.array([[0]])], 3)
    assert found.tolist() == [0, 0.5, 0.75, 1]


def test_the_expert_used_most_is_held():
    # order before each token, of equals the lowest id first: 0 1 2 | 2 0 1 | 1 2 0 | 1 2 0: places 2, 2, 0, 0
    texts = [np.array([[2], [1], [1], [1]])]
    assert most_used(texts, 3, decay=1.0).tolist() == [0, 0.5, 0.5, 1]
    # a use that counts for nothing later leaves the last one alone
    assert most_used([np.array([[2], [2], [1], [2]])], 3, decay=1e-9).tolist() == [0, 0.25, 0.5, 1]


def test_slots_go_where_they_bring_hits():
    steep, flat = np.array([0, 0.5, 0.9, 1.0]), np.array([0, 0.4, 0.6, 1.0])
    assert by_hits([steep, flat], 3) == [2, 1]
    assert by_hits([steep, flat], 6) == [3, 3]


def test_groups_bound_the_devices_of_a_token():
    found = {(figure.case, figure.metric): figure for figure in grouped()}
    for router in ("even", "uneven"):
        assert found[f"{router} router, best 4 of 8 groups", "devices of a token"].value <= 4
        assert found[f"{router} router, 1 of each of 8 groups", "devices of a token"].value == 8
        assert found[f"{router} router, 1 of each of 8 groups", "deviation of devices"].value == 0
    # the most even router there is: counts of a binomial, n = 4096 tokens, p = 8 / 256
    plain = found["even router, best 4 of 8 groups", "deviation of experts"].baseline
    assert plain == pytest.approx(((1 - 8 / 256) / (4096 * 8 / 256)) ** 0.5, rel=0.1)


def test_pages_hold_no_more_than_a_block_too_many():
    held, empty = list(paged_memory(10))[:2]
    assert held.baseline == 40960
    assert 0 < empty.value * held.value <= 10 * 7  # of blocks of 8


def test_figures_are_printed():
    result = CliRunner().invoke(main, ["--claim", "utilization", "--claim", "memory", "--count", "2", "--json-only"])
    assert result.exit_code == 0, result.output
    figures = [json.loads(line) for line in result.stdout.splitlines() if line.startswith("{")]
    assert figures[0]["value"] == figures[0]["baseline"] == 0.125  # two of sixteen
