"""A sample of the mutated checkpoints that `make fuzz` goes through."""

from tests.fuzz.run import failures_of, run, summary

SAMPLE = 100


def test_mutated_checkpoints_end_in_typed_errors():
    results = run(range(SAMPLE), workers=2)
    assert len(results) == SAMPLE
    refused = sum(any(end != "ok" for end in result["steps"].values()) for result in results)
    assert refused > SAMPLE // 2, "the mutations hardly do harm"
    assert not any(map(failures_of, results)), summary(results)
