"""`moesaic advise`: what to change about a server that runs, by its own figures."""

import os
import textwrap
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from moesaic.entrypoints.cli.strict_json import strict_json
from moesaic.entrypoints.server.settings import API_KEY_VARIABLE

if TYPE_CHECKING:
    from moesaic.advice.report import Report
    from moesaic.advice.tree import Outcome

WIDTH = 110


@click.command("advise")
@click.argument("url", metavar="[URL]", default="http://127.0.0.1:8000")
@click.option("--api-key", metavar="KEY", help=f"of the server; else {API_KEY_VARIABLE}")
@click.option("--json", "as_json", is_flag=True, help="print one JSON object")
def command(url: str, api_key: str | None, as_json: bool) -> None:
    """Read the figures of the server at URL and say what to change, with the figures behind it.

    Asked are: load of the experts, compute efficiency, memory, latency (docs/operate/tuning.md has the same tree).
    """
    from moesaic.advice.fetch import advise_server

    report = advise_server(url, api_key or os.environ.get(API_KEY_VARIABLE))
    if as_json:
        click.echo(strict_json(asdict(report), indent=1))
    else:
        click.echo("\n".join(_lines(report)))


def _lines(report: "Report") -> list[str]:
    lines = [f"{report.model}: {report.traffic}"]
    if not report.has_traffic:
        return [*lines, "Nothing can be said before there is traffic: send requests, or run moesaic bench serve."]
    lines.append("")
    for outcome in report.outcomes:
        lines += _of_branch(outcome)
    count = len(report.findings)
    return [*lines, "", "all is well" if not count else f"{count} thing{'s' * (count > 1)} to look at"]


def _of_branch(outcome: "Outcome") -> list[str]:
    mark = "✗" if outcome.findings else "✓" if outcome.figures else "?"
    lines = [f"{mark} {outcome.branch}"]
    problems = {finding.problem for finding in outcome.findings}
    for finding in outcome.findings:
        lines.append(_wrapped(f"✗ {finding.problem}"))
        lines += [_wrapped(f"  {reason}") for reason in finding.because]
        lines.append(_wrapped(f"→ {finding.advice}"))
    lines += [_wrapped(f"✓ {figure}") for figure in outcome.figures if figure not in problems]
    return lines + [_wrapped(f"? {missing}") for missing in outcome.unknown]


def _wrapped(text: str) -> str:
    return textwrap.fill(text, WIDTH, initial_indent="  ", subsequent_indent="    ", break_on_hyphens=False)
