"""A draft in the terminal: what it resembles, what was taken for what, what is open, and whether it fits."""

from rich.console import Console
from rich.markup import escape

from moesaic.adapt.draft.drafting import SAME, Draft
from moesaic.adapt.draft.questions import Question


def show(draft: Draft, file: str | None, console: Console) -> None:
    """Print a draft that was written to `file`; None where it was not."""
    console.print(f"[bold]{escape(draft.architecture)}[/bold], in {escape(draft.path)}")
    if draft.nearest:
        near = draft.nearest[0]
        differs = f"differs in {', '.join(near.differs[:4])}" if near.differs else "built alike, as far as names tell"
        console.print(f"nearest known: {near.name} ({near.score:.2f}): {escape(differs)}")
    console.print(f"tensors: {_tensors(draft)}")
    _print_questions(draft, console)
    if draft.difference is not None:
        said = "reproduced" if draft.difference <= SAME else "[red]not reproduced[/red]"
        console.print(f"reference: {said}, the largest difference is {draft.difference:.1g} of the largest logit")
    for line in draft.open:
        console.print(f"[yellow]OPEN[/yellow] {escape(line)}", highlight=False)
    if draft.by_hand:
        console.print("[red]not drafted whole[/red]: a part is to be written by hand (docs/add-an-architecture.md)")
    elif draft.misfit:
        console.print(f"[red]does not load[/red]: {escape(draft.misfit)}")
    else:
        console.print("[green]loads[/green]: every tensor has its place, and every parameter is filled once")
    if file is not None:
        console.print(f"written: {escape(file)} ({len(draft.source.splitlines())} lines)")
        if not draft.misfit:
            console.print(f"next: moesaic verify {escape(draft.path)} --arch {escape(file)}", highlight=False)


def _tensors(draft: Draft) -> str:
    s = draft.structure
    known = len(s.groups) - len(s.unmatched)
    return f"{known} of {len(s.groups)} kinds of names recognised"


def _print_questions(draft: Draft, console: Console) -> None:
    for q in draft.questions:
        if q.guessed or (q.settled and q.confidence < 1):
            console.print(f"  {_state(q)} {q.name}: {escape(str(q.choice))}  [dim]{escape(q.evidence)}[/dim]")


def _state(q: Question) -> str:
    if q.settled:
        return "[green]settled[/green]"
    return f"[yellow]open {q.confidence:.1f}[/yellow]" if q.open else f"guess {q.confidence:.1f}"
