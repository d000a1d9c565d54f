"""`moesaic adapt`: draft the file that describes an unknown checkpoint's architecture."""

import json
import os
import sys
from dataclasses import asdict

import click

from moesaic.adapt.draft.drafting import Draft, adapt
from moesaic.core.errors import ConfigError


@click.command("adapt")
@click.argument("path")
@click.option(
    "-o", "--output", "file", metavar="FILE", help="where to write the draft, as my_arch.py; else it is printed"
)
@click.option("--reference", metavar="FILE", help="recorded logits: open questions are settled by what reproduces them")
@click.option("--max-runs", default=200, show_default=True, help="runs of the model for that, at most")
@click.option("--force", is_flag=True, help="write over FILE")
@click.option("--json", "as_json", is_flag=True, help="print a JSON object, with all that was found")
def command(path: str, file: str | None, reference: str | None, max_runs: int, force: bool, as_json: bool) -> None:
    """Draft a spec file for the checkpoint PATH (a folder or a Hugging Face id), which `--arch FILE` then serves.

    What is guessed is marked in it, with its evidence; what is open stands at its top. Exits with 1 where the draft
    does not load the checkpoint, or does not reproduce the reference.
    """
    if file is not None and os.path.exists(file) and not force:
        raise ConfigError(f"{file} is there already: choose another -o, or write over it with --force")
    draft = adapt(path, reference, max_runs)
    if file is not None:
        try:
            with open(file, "w", encoding="utf-8") as f:
                f.write(draft.source)
        except OSError as e:
            raise ConfigError(f"-o {file}: {e}") from e
    if as_json:
        click.echo(json.dumps(_record(draft, file), indent=1))
    else:
        from rich.console import Console

        from moesaic.adapt.draft.show import show

        show(draft, file, Console(width=100, stderr=file is None))
        if file is None:
            click.echo(draft.source, nl=False)
    sys.exit(0 if draft.ok else 1)


def _record(draft: Draft, file: str | None) -> dict[str, object]:
    return {
        "path": draft.path,
        "architecture": draft.architecture,
        "file": file,
        "source": draft.source,
        "open": draft.open,
        "questions": [{**asdict(q), "open": q.open} for q in draft.questions],
        "nearest": [{"architecture": n.architecture, "score": n.score, "differs": n.differs} for n in draft.nearest],
        "by_hand": draft.by_hand,
        "misfit": draft.misfit,
        "difference": draft.difference,
    }
