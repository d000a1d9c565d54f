"""Write docs/models.md and the table that `moesaic models` reads, from what the parity tests put on record.

usage: make_models.py LOG     (`make parity` runs the tests with MOESAIC_PARITY_LOG=LOG first)
"""

import ast
import json
import sys
from collections import defaultdict
from datetime import date
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any

import transformers

from moesaic.models import archs
from moesaic.models.hf_backend.allowed import ALLOWED
from moesaic.models.table import FILE, Entry, foreign_facts

PAGE = Path(__file__).parent.parent / "docs" / "models.md"
QUOTES = "'\""
HEAD = """# Architectures

This page is made by `make parity`, from what its tests measured; `moesaic models` shows the same on the command line.

Each architecture was compared with transformers {version} on tiny random models of as many configurations as the column
says: prompts in one piece, in chunks and token by token, several at once. *Difference* is the largest of all logits,
relative to the largest logit. *Native* ones have a spec of ours, whose words that are in use are listed; *refused*
are config keys whose other values are. Every key of a config that a native architecture does not know is refused as
well.

Those **through transformers** run its modelling code with our scheduler, and our experts where nothing else is said:
*packed* with our paged attention, *a request at a time* with one cache of transformers' a request, so that prompts are
computed in one step and prefixes are not found again. They are not quantised, and multimodal ones take text only.

Of every architecture the greedy tokens through the whole engine are transformers' too: in batches, with prompts in
chunks where they may be, and with a preemption every seventh step.
"""


def entries(log: Path) -> list[Entry]:
    """One for each architecture on record, native ones first."""
    cases: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for line in log.read_text().splitlines():
        case = json.loads(line)
        cases[case["by"], case["architecture"]].append(case)
    native = {name for by, name in cases if by == "native"}
    files = sources()
    unknown = [name for by, name in cases if name not in files and name not in ALLOWED]
    if unknown:
        raise SystemExit(f"on record, but not served: {', '.join(unknown)}")
    made = [
        entry(name, by, found, files) for (by, name), found in cases.items() if by == "native" or name not in native
    ]
    return sorted(made, key=lambda e: (e.by, e.architecture))


def entry(name: str, by: str, cases: list[dict[str, Any]], files: dict[str, Path]) -> Entry:
    """The facts of all cases of an architecture together."""

    def words(key: str) -> list[str]:
        return sorted({word for case in cases for word in case.get(key, ())})

    file = files.get(name) if by == "native" else None
    known = {key: words(key) for key in ("attention", "router", "options")} if file else foreign_facts(name)
    return Entry(
        architecture=name,
        by=by,
        lines=len(file.read_text().splitlines()) if file else 0,
        cases=len(cases),
        difference=max(case["difference"] for case in cases),
        refused=refused(file) if file else [],
        tested=date.today().isoformat(),
        against=f"transformers {transformers.__version__}",
        **known,
    )


def sources() -> dict[str, Path]:
    """Architecture -> the file of its spec."""
    found = {}
    for info in iter_modules(archs.__path__):
        module = import_module(f"{archs.__name__}.{info.name}")
        for name in (module.ARCHITECTURE, *getattr(module, "ALSO", {})):
            found[name] = Path(str(module.__file__))
    return found


def refused(file: Path) -> list[str]:
    """`key = other than values` of every `refuse_unless` in an architecture's file."""
    found = []
    tree = ast.parse(file.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "refuse_unless":
            for key, *values in [variants(loop, node.args) for loop in bindings(tree, node)]:
                found.append(f"`{key.strip(QUOTES)}` other than {' or '.join(dict.fromkeys(values))}")
    return sorted(found)


def bindings(tree: ast.Module, call: ast.Call) -> list[dict[str, str]]:
    """What the variables of the loop around a call stand for, round after round; one empty round without a loop."""
    loops = [n for n in ast.walk(tree) if isinstance(n, ast.For) and any(inner is call for inner in ast.walk(n))]
    if not loops:
        return [{}]
    names = [name.id for name in ast.walk(loops[-1].target) if isinstance(name, ast.Name)]
    rounds = listed(loops[-1].iter)
    return [dict(zip(names, [repr(v) for v in (r if len(names) > 1 else [r])], strict=True)) for r in rounds]


def listed(iterated: ast.expr) -> list[Any]:
    """What a loop goes over: literals, or the items of a literal mapping."""
    if isinstance(iterated, ast.Call) and isinstance(iterated.func, ast.Attribute) and iterated.func.attr == "items":
        return list(ast.literal_eval(iterated.func.value).items())
    return list(ast.literal_eval(iterated))


def variants(bound: dict[str, str], arguments: list[ast.expr]) -> list[str]:
    """The arguments in words: literals as they are, variables as what they stand for, the rest by a phrase."""
    words = []
    for argument in arguments:
        if isinstance(argument, ast.JoinedStr):
            parts = [v.value if isinstance(v, ast.Constant) else bound[ast.unparse(v.value)] for v in argument.values]  # type: ignore[attr-defined]
            words.append("".join(str(part).strip(QUOTES) for part in parts))
        else:
            text = bound.get(ast.unparse(argument), ast.unparse(argument))
            named = any(isinstance(part, ast.Name | ast.Call) for part in ast.walk(ast.parse(text)))
            words.append("what other keys say" if named else text)
    return words


def page(table: list[Entry]) -> str:
    """The whole page."""
    rows = [
        "| architecture | by | lines | attention | router | options in use | cases | difference | refused, limits |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for e in table:
        cells = [
            f"`{e.architecture}`",
            e.by,
            str(e.lines or ""),
            ", ".join(e.attention),
            ", ".join(e.router),
            ", ".join(f"`{option}`" for option in e.options),
            str(e.cases),
            f"{e.difference:.1e}",
            "; ".join(e.refused + e.limits),
        ]
        rows.append(f"| {' | '.join(cells)} |")
    count = sum(e.by == "native" for e in table)
    summary = f"{count} native, {len(table) - count} through transformers; measured {max(e.tested for e in table)}."
    return f"{HEAD.format(version=transformers.__version__)}\n{summary}\n\n" + "\n".join(rows) + "\n"


if __name__ == "__main__":
    table = entries(Path(sys.argv[1]))
    FILE.write_text(json.dumps([e.as_dict() for e in table], indent=1) + "\n")
    PAGE.write_text(page(table))
    print(f"{len(table)} architectures in {PAGE} and {FILE}")
