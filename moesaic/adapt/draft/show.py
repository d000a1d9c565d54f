"""A draft in the terminal: what it resembles, what was taken for what, what is open, and whether it fits."""

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from moesaic.adapt.draft.drafting import SAME, Draft
from moesaic.adapt.draft.questions import Question


def show(draft: Draft, file: str | None, console: Console) -> None:
    """Print a draft that was written to `file`; None where it was not."""
    s = draft.structure
    console.print(f"[bold]{escape(draft.architecture)}[/bold] in {escape(draft.path)}", highlight=False)
    if draft.nearest:
        near = draft.nearest[0]
        differs = f"; differs in {', '.join(near.differs[:4])}" if near.differs else ""
        console.print(f"nearest known: {near.architecture} ({near.score:.2f}){escape(differs)}", highlight=False)
    known = len(s.groups) - len(s.unmatched) - len(s.foreign)
    console.print(f"tensors: {known} of {len(s.groups)} kinds of names recognised", highlight=False)
    guessed = [q for q in draft.questions if q.confidence < 1]
    if guessed:
        console.print(_table(guessed))
    if draft.difference is not None:
        said = "[green]reproduced[/green]" if draft.difference <= SAME else "[red]not reproduced[/red]"
        console.print(f"reference: {said}, off by at most {draft.difference:.1g} of the largest logit", highlight=False)
    asked = {q.name for q in guessed}
    for line in draft.open:
        if line.partition(":")[0] not in asked:
            console.print(f"[yellow]open[/yellow]: {escape(line)}", highlight=False)
    if draft.by_hand:
        console.print("[red]not drafted whole[/red]: a part is to be written by hand (docs/add-an-architecture.md)")
    elif draft.misfit:
        console.print(f"[red]does not load[/red]: {escape(draft.misfit)}", highlight=False)
    else:
        console.print("[green]loads[/green]: every tensor has its place, and every parameter is filled once")
    if file is not None:
        count = len(draft.source.splitlines())
        console.print(f"written: {escape(file)} ({count} lines)", highlight=False)


def _table(questions: list[Question]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("", "what", "taken", "evidence"):
        table.add_column(column, overflow="fold")
    for q in questions:
        table.add_row(_state(q), q.name, escape(str(q.choice)), escape(q.evidence))
    return table


def _state(q: Question) -> str:
    if q.settled:
        return "[green]settled[/green]"
    return f"[yellow]open {q.confidence:.1f}[/yellow]" if q.open else f"[dim]guess {q.confidence:.1f}[/dim]"
