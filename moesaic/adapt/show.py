"""A report on a terminal, 100 columns wide where there is room: groups of tensors rather than thousands of lines."""

import sys
from collections.abc import Iterable, Iterator

from rich import box
from rich.console import Console, RenderableType
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from moesaic.adapt.memory import Memory
from moesaic.adapt.report import Report
from moesaic.adapt.uses import Use
from moesaic.core.units import count_of, size_of

WIDTH = 100
SERVED = {
    "native": "[green]served by moesaic's own kernels[/]",
    "transformers": "[green]served through transformers' code[/]",
    "its own code": "[yellow]computed by code in its folder[/]",
    "": "[red]not known here[/]",
}
STATES = {
    "ignored": "[dim]not needed[/]",
    "unused": "[red]no use[/]",
    "unknown": "",
    "checked": "[dim]must equal[/] ",
    "guessed": "[yellow]?[/] ",
}
MOST_PROBLEMS = 40
DESCRIBED = 2  # of the nearest architectures, how many are told about


def console(width: int | None = None) -> Console:
    """Where reports are shown: as wide as the terminal, up to WIDTH; WIDTH where there is none."""
    there = Console()
    return Console(width=width or (min(there.width, WIDTH) if sys.stdout.isatty() else WIDTH), highlight=False)


def show(report: Report, to: Console) -> None:
    """Print all of a report."""
    near = _nearest(report)
    for part in (_head(report), _sizes(report), *_memory(report), _tensors(report), *near, *_wrong(report)):
        to.print(part)


def _head(r: Report) -> RenderableType:
    name = r.identity.architecture or r.identity.model_type or "no architecture is named"
    kind = f" [dim]({escape(r.identity.model_type)})[/]" if r.identity.model_type and r.identity.architecture else ""
    lines = [f"[bold]{escape(name)}[/]{kind}: {SERVED[r.identity.served]}"]
    if r.identity.why:
        lines.append(f"[yellow]{escape(r.identity.why)}[/]")
    files = f"{r.files:,} {escape(r.format) or 'unknown'} file{'s' * (r.files != 1)}"
    dtypes = " + ".join(r.dtypes)
    method = f", quantised by {escape(r.quantization)}" if r.quantization else ""
    lines.append(
        f"{escape(r.path)}: {files}, {r.tensors:,} tensors, {size_of(r.nbytes)} of {dtypes or 'nothing'}{method}"
    )
    facts = [f"[bold]{count_of(r.parameters)}[/] parameters"] if r.parameters else []
    if r.active is not None and r.active != r.parameters:
        facts.append(f"[bold]{count_of(r.active)}[/] active ({r.active / r.parameters:.0%})")
    if r.layers:
        facts.append(f"[bold]{r.layers}[/] layers")
    if r.experts:
        top_k = f", [bold]{r.top_k}[/] a token" if r.top_k else ""
        facts.append(f"[bold]{r.experts}[/] experts{top_k}")
    if facts:
        lines.append(" · ".join(facts) + (" [dim](by names alone)[/]" if r.told_from == "names" else ""))
    return Padding("\n".join(lines), (0, 0, 1, 0))


def _table(title: str, *columns: str) -> Table:
    """Columns whose names begin with `>` are aligned to the right."""
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        right = column.startswith(">")
        table.add_column(column.removeprefix(">"), justify="right" if right else "left", overflow="fold")
    return table


def _sizes(r: Report) -> RenderableType:
    table = _table("Parts", "part", ">parameters", ">share", ">stored")
    total = sum(part.parameters for part in r.parts) or 1
    for part in r.parts:
        table.add_row(part.name, count_of(part.parameters), f"{part.parameters / total:.1%}", size_of(part.nbytes))
    return table


def _memory(r: Report) -> Iterator[RenderableType]:
    if r.memory is None:
        return
    yield _weights(r.memory)
    yield _caches(r.memory)


def _weights(m: Memory) -> Table:
    table = _table(
        "Memory to serve: weights", "--quantization", ">weights", ">experts", ">the rest", ">with one request"
    )
    request = next((c.full_length for c in m.caches if c.dtype == m.dtype), 0)
    for w in m.weights:
        experts = w.parts.get("experts", 0)
        name = f"{w.scheme} [dim]({m.dtype})[/]" if w.scheme == "none" else w.scheme
        sizes = (w.nbytes, experts, w.nbytes - experts, w.nbytes + request)
        table.add_row(name, *(size_of(size) if size else "" for size in sizes))
    return table


def _caches(m: Memory) -> Table:
    full = f">one request of {m.length:,} tokens"
    state = any(c.sequence for c in m.caches)
    beside = (">beside, a request",) if state else ()
    table = _table("Memory to serve: keys and values", "--kv-cache-dtype", ">a token", *beside, full)
    for c in m.caches:
        sequence = (size_of(c.sequence),) if state else ()
        table.add_row(c.dtype, size_of(round(c.token)), *sequence, size_of(c.full_length))
    return table


def _tensors(r: Report) -> RenderableType:
    table = _table("Tensors", "name", ">count", "shape", "dtype", "becomes")
    by_head: dict[str, list[Use]] = {}
    for use in r.uses:
        head, layer, _ = use.pattern.partition("{l}")
        by_head.setdefault(f"{head}{layer}" if layer else "", []).append(use)
    for head, uses in by_head.items():
        layers = max((use.layers for use in uses), key=_size)
        if head:
            table.add_row(f"[bold]{escape(head)}[/] [dim]l = {layers}[/]")
        for use in uses:
            rest = use.pattern.removeprefix(head) if head else use.pattern
            where = f" [dim]l = {use.layers}[/]" if head and use.layers != layers else ""
            what = STATES.get(use.state, "") + escape(use.becomes)
            shape = "×".join(map(str, use.shape)) or "scalar"
            name = f"{'  ' * bool(head)}{escape(rest)}{where}"
            table.add_row(name, _count(use), shape, " ".join(use.dtypes), what or f"[dim]{use.part}?[/]")
    return table


def _count(use: Use) -> str:
    """`16×64` of layers and experts, where each has each."""
    layers, experts = _size(use.layers), _size(use.experts)
    return f"{layers}×{experts}" if layers and experts and layers * experts == use.count else f"{use.count:,}"


def _size(ranges: str) -> int:
    """How many numbers `0..3, 5` are."""
    total = 0
    for run in filter(None, ranges.split(", ")):
        first, _, last = run.partition("..")
        total += int(last or first) - int(first) + 1
    return total


def _nearest(r: Report) -> Iterator[RenderableType]:
    if not r.nearest:
        return
    table = _table("Known architectures that are built alike", "architecture", ">score", ">tensors", ">config")
    for like in r.nearest:
        table.add_row(like.architecture, *(f"{share:.2f}" for share in (like.score, like.tensors, like.config)))
    yield table
    for like in r.nearest[:DESCRIBED]:
        differs = like.differs
        yield Text(f"{like.architecture}: {'differs in' if differs else 'differs in nothing that shows'}", style="bold")
        for what in differs:
            yield _item(" ", "", what)
    yield Text("")


def _wrong(r: Report) -> Iterator[RenderableType]:
    for text in r.remarks:
        yield _item("note", "yellow", text)
    wrong = [str(problem) for problem in r.problems] + [misfit.what for misfit in r.misfits]
    for text in wrong[:MOST_PROBLEMS]:
        yield _item("wrong", "red", text)
    if len(wrong) > MOST_PROBLEMS:
        yield Text(f"... and {len(wrong) - MOST_PROBLEMS} more of these (--json lists all)", style="red")
    yield verdict(r)


def _item(word: str, style: str, text: str) -> RenderableType:
    grid = Table.grid(padding=(0, 1))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    grid.add_row(Text(word, style=f"bold {style}"), Text(text))
    return grid


def verdict(r: Report) -> Text:
    """The last line: whether it can be served as it is."""
    if not r.ok:
        count = len(r.problems) + len(r.misfits)
        return Text(
            f"It cannot be used as it is: {count} thing{'s are' if count > 1 else ' is'} wrong.", style="bold red"
        )
    if r.identity.served == "native" and r.told_from == "spec":
        return Text("Every tensor has its use, and every parameter is filled: it can be served.", style="bold green")
    if r.identity.served == "transformers":
        return Text("The files are whole; what each tensor is, transformers' code knows when it loads.", style="green")
    if r.identity.served == "native":
        return Text(
            "The files are whole; its hand-written class says when it loads what each tensor is.", style="green"
        )
    return Text(
        f"The files are whole, but what they compute is not known: see `moesaic adapt {r.path}`.", style="yellow"
    )


def show_tensors(rows: Iterable[tuple[str, str, tuple[int, ...], str]], to: Console) -> None:
    """Every tensor on a line of its own: name, dtype, shape, file."""
    for name, dtype, shape, file in rows:
        to.print(Text(f"{name}  {dtype} {list(shape)}  {file}"), soft_wrap=True)
