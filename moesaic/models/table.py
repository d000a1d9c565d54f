"""What is known of every architecture that is served: the table that `make parity` measured, read without torch."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from moesaic.models.hf_backend.allowed import ALLOWED, Allowed
from moesaic.models.hf_backend.kinds import KINDS
from moesaic.models.registry import ModelRegistry

FILE = Path(__file__).parent / "table.json"
FORMATS = ["w8a16", "w4a16", "w8a8"]


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One architecture.

    Attributes:
        by: "native", or "transformers" for its modelling code.
        attention, router: their kinds; of native ones.
        options: words of the spec that are in use; of native ones.
        lines: of the file with the spec.
        cases: configurations that were compared.
        difference: the largest relative one of a logit; None where nothing was compared yet.
        refused: config keys whose other values are not served.
        limits: what this way of running it does not do.
        tested: the day, and `against` what; empty where nothing was compared yet.
    """

    architecture: str
    by: str
    attention: list[str] = field(default_factory=list)
    router: list[str] = field(default_factory=list)
    options: list[str] = field(default_factory=list)
    lines: int = 0
    cases: int = 0
    difference: float | None = None
    refused: list[str] = field(default_factory=list)
    limits: list[str] = field(default_factory=list)
    tested: str = ""
    against: str = ""

    @property
    def quantization(self) -> list[str]:
        """Formats that its weights can be kept in."""
        return FORMATS if self.by == "native" else []

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def limits_of(entry: Allowed) -> list[str]:
    """What the backend does not do for an architecture."""
    limits = [] if entry.mode == "packed" else ["no prefix caching", "prompts in one step"]
    if entry.experts == "transformers":
        limits.append("experts by transformers")
    return limits + ([entry.remarks] if entry.remarks else [])


def architectures() -> list[Entry]:
    """Every architecture that is served here and now, native ones first; plugins' too."""
    measured = {(e["by"], e["architecture"]): Entry(**e) for e in json.loads(FILE.read_text())}
    native = ModelRegistry.get_supported_archs()
    names = [("native", name) for name in native]
    names += [("transformers", name) for name in sorted(ALLOWED.keys() - native)]
    return [measured.get(key) or _unmeasured(*key) for key in names]


def _unmeasured(by: str, name: str) -> Entry:
    return Entry(architecture=name, by=by, **(foreign_facts(name) if by == "transformers" else {}))


def foreign_facts(name: str) -> dict[str, list[str]]:
    """Of an architecture that transformers' code computes: what is known without running it."""
    attention, router = KINDS.get(name, ("", ""))
    known = {"attention": [attention], "router": [router]} if attention else {}
    return {**known, "limits": limits_of(ALLOWED[name])}
