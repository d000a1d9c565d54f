"""What the tools do with a mutated checkpoint."""

import io
import json
import os
from contextlib import suppress

from tests.fuzz.bases import CONFIG, VOCABULARY

NAMES = CONFIG["architectures"]


def draft(path: str, file: str) -> None:
    """Draft a description and show it; of a checkpoint that nothing else describes it is written to `file`."""
    from rich.console import Console

    from moesaic.adapt.draft.drafting import adapt
    from moesaic.adapt.draft.show import show
    from moesaic.core.errors import CheckpointError

    made = adapt(path)
    show(made, None, Console(file=io.StringIO(), width=100))
    if made.architecture not in NAMES:
        with open(file, "w", encoding="utf-8") as f:
            f.write(made.source)
    if made.misfit:
        raise CheckpointError(made.misfit[:4000])


def plan_it(path: str, arch: str) -> None:
    """Plan for a machine that is given, in words and as JSON."""
    from moesaic.entrypoints.cli.plan import command

    rest = ["--memory", "2GiB", "--bandwidth", "10", "--compute", "10", "--threads", "1"]
    rest += ["--arch", arch] if os.path.exists(arch) else []
    for more in ([], ["--json"]):
        with suppress(SystemExit):  # it does not fit, or would not load
            command.main(
                [path, *rest, *(["--arch", arch] if os.path.exists(arch) else []), *more], standalone_mode=False
            )


def convert_it(path: str, out: str, format: str, arch: str) -> None:
    """Convert into folder `out`."""
    from moesaic.adapt import convert

    convert(path, out, format=format, arch=arch if os.path.exists(arch) else None)


def read_recorded(file: str) -> None:
    """Read a recorded reference as `verify` does, and as `adapt --reference` does."""
    from moesaic.adapt.draft.oracle import Reference
    from moesaic.adapt.proof.recorded import load_recorded

    found = load_recorded(file, VOCABULARY)
    json.dumps([prompt.tokens for prompt in found.prompts])
    Reference(file)
