"""Waiting threads spin briefly and then sleep, unless the user says otherwise or it is too late."""

import os
import subprocess
import sys

import pytest

SHOW = "import os; {before}; from moesaic import SamplingParams; print(os.environ.get('GOMP_SPINCOUNT'))"


@pytest.mark.parametrize(
    ("before", "variables", "expected"),
    [
        ("pass", {}, "1000"),
        ("pass", {"GOMP_SPINCOUNT": "7"}, "7"),
        ("pass", {"OMP_WAIT_POLICY": "active"}, "None"),
        ("import sys; sys.modules['torch'] = os", {}, "None"),
    ],
)
def test_the_wait_is_settled_before_torch_loads(before, variables, expected):
    environment = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    code = SHOW.format(before=before)
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment | variables)
    assert out.stdout.split() == [expected], out.stderr
