"""A sample of the mutated checkpoints that `make fuzz` goes through."""

import pytest

from tests.fuzz.run import failures_of, run, summary


@pytest.mark.parametrize(("way", "sample"), [("serve", 100), ("tools", 50)])
def test_mutated_checkpoints_end_in_typed_errors(way, sample):
    results = run(range(sample), workers=2, way=way)
    assert len(results) == sample
    refused = sum(any(end != "ok" for end in result["steps"].values()) for result in results)
    assert refused > sample // 2, "the mutations hardly do harm"
    assert not any(map(failures_of, results)), summary(results)
