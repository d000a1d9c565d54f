"""How the kernels' threads wait for each other. Torch-free: settled before torch loads its OpenMP library."""

import os
import sys

SPIN_COUNT = 1000  # about 60 microseconds: longer than the serial parts of a layer, shorter than a time slice
SETTINGS = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")


def settle_waiting() -> None:
    """Let waiting threads spin for a moment and then sleep, unless the environment says otherwise.

    By default they spin for milliseconds: where anything else wants a core, they burn the time that the thread they
    wait for would need. OpenMP reads its settings when it is loaded, so this does nothing once torch is imported.
    """
    if "torch" not in sys.modules and not any(name in os.environ for name in SETTINGS):
        os.environ["GOMP_SPINCOUNT"] = str(SPIN_COUNT)
