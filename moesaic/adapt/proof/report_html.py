"""A proof as one HTML file that needs nothing else: inline SVG, light or dark as the reader's system is."""

from html import escape

from moesaic.adapt.proof import pictures
from moesaic.adapt.proof.report_text import MARKS, verdict
from moesaic.adapt.proof.results import NAMES, Cause, Stage, Verification
from moesaic.core.errors import ConfigError

STYLE = """
:root { color-scheme: light dark; --ink: #1d232b; --soft: #5c6875; --paper: #ffffff; --card: #f5f7f9; --line: #d9dfe5;
  --good: #1a7f4b; --bad: #c0322b; --none: #8a6d00; --c0: #d5ebdf; --c1: #a6d8bd; --c2: #f2d16b; --c3: #e8843c;
  --c4: #c0322b; --empty: #eef1f4; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6eaee; --soft: #9aa6b2; --paper: #14181d; --card: #1d232b;
  --line: #333c46; --good: #4fc585; --bad: #ff7a70; --none: #d9b84a; --c0: #20382c; --c1: #2f6b4a; --c2: #a88a1f;
  --c3: #c9682a; --c4: #ff6359; --empty: #232a32; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 1060px; margin: 0 auto; padding: 32px 24px 64px; }
h1 { font-size: 22px; margin: 0 0 4px; } h2 { font-size: 17px; margin: 36px 0 8px; }
p { margin: 6px 0; } .soft { color: var(--soft); }
code, .mono { font-family: ui-monospace, monospace; font-size: 13px; }
code { overflow-wrap: anywhere; }
.verdict { margin: 20px 0; padding: 14px 18px; border-left: 5px solid; background: var(--card); font-weight: 600; }
.passed { color: var(--good); } .failed { color: var(--bad); } .skipped, .later { color: var(--none); }
.verdict.passed { border-color: var(--good); } .verdict.failed { border-color: var(--bad); }
.later { color: var(--soft); }
ol.stages { list-style: none; margin: 0; padding: 0; }
ol.stages li { display: grid; grid-template-columns: 34px 1fr; padding: 12px 0; border-top: 1px solid var(--line); }
.mark { font-size: 20px; line-height: 1.2; } .name { font-weight: 600; }
.problem { color: var(--bad); }
.cause { background: var(--card); padding: 10px 16px; margin: 8px 0; border-left: 4px solid var(--bad); }
.cause b { display: block; }
figure { margin: 14px 0 22px; overflow-x: auto; } figcaption { color: var(--soft); font-size: 13px; margin-top: 4px; }
svg text { fill: var(--soft); font: 11px ui-monospace, monospace; } svg { display: block; }
table { border-collapse: collapse; } th, td { padding: 3px 14px 3px 0; text-align: left; }
td { font-family: ui-monospace, monospace; font-size: 13px; } th { font-weight: 600; color: var(--soft); }
tr.other td { color: var(--bad); }
ul { margin: 6px 0; padding-left: 20px; }
"""


def write_report(v: Verification, path: str) -> None:
    """Write the report. Raises ConfigError where the file cannot be written."""
    try:
        with open(path, "w", encoding="utf-8") as file:
            file.write(page(v))
    except OSError as error:
        raise ConfigError(f"--report {path} cannot be written: {error.strerror or error}") from error


def page(v: Verification) -> str:
    """The report's text."""
    parts = [
        f"<h1>{escape(v.architecture)}</h1>",
        f'<p class="soft"><code>{escape(v.path)}</code></p>',
        f'<p class="soft">engine in {v.dtype}, against {escape(v.reference)}</p>' if v.reference else "",
        f'<p class="verdict {"passed" if v.proven else "failed"}">{escape(verdict(v))}</p>',
        _causes(v),
        "<h2>Stages</h2>",
        f'<ol class="stages">{"".join(_stages(v))}</ol>',
        *(f"<h2>{escape(title)}</h2>{body}" for title, body in pictures.all_of(v)),
        _notes(v),
    ]
    title = escape(f"{v.architecture}: {'proven' if v.proven else 'not proven'}")
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{title}</title><style>{STYLE}</style>"
    )
    return f"<!doctype html><html lang=en><head>{head}</head><body><main>{''.join(parts)}</main></body></html>\n"


def _causes(v: Verification) -> str:
    if not v.causes and not v.evidence:
        return ""
    seen = "".join(f"<li>{escape(line)}</li>" for line in v.evidence)
    causes = "".join(_cause(cause) for cause in v.causes)
    none = f'<p class="soft">no likely cause found; {v.tried} hypotheses were tried</p>'
    return f"<h2>Why</h2><ul>{seen}</ul>{causes or none}"


def _cause(cause: Cause) -> str:
    advice = f"change: {escape(cause.advice)}" if cause.advice else ""
    return f'<div class="cause"><b>{escape(str(cause))}</b>{advice}</div>'


def _stages(v: Verification) -> list[str]:
    reached = {stage.number: stage for stage in v.stages}
    return [_stage(reached[n]) if n in reached else _not_reached(n) for n in range(len(NAMES))]


def _stage(stage: Stage) -> str:
    problems = "".join(f'<p class="problem mono">{escape(line)}</p>' for line in stage.problems)
    against = f"against {stage.reference}" if stage.reference and stage.number and stage.status != "skipped" else ""
    name = f'<span class="name">{stage.number} · {escape(stage.name)}</span>'
    return (
        f'<li><span class="mark {stage.status}">{MARKS[stage.status]}</span>'
        f'<div>{name} <span class="soft">{stage.seconds:.1f} s</span>'
        f'<p>{escape(stage.summary)}</p>{problems}<p class="soft">{escape(against)}</p></div></li>'
    )


def _not_reached(number: int) -> str:
    name = escape(NAMES[number])
    return f'<li class="later"><span class="mark">·</span><div>{number} · {name}<p>not reached</p></div></li>'


def _notes(v: Verification) -> str:
    if not v.notes:
        return ""
    return "<h2>Notes</h2><ul>" + "".join(f"<li>{escape(note)}</li>" for note in v.notes) + "</ul>"
