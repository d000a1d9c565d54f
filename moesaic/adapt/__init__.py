"""The tools of those who have a checkpoint: what it is, whether it is right, what it needs, and how to change it.

Names load when first used: looking at a checkpoint needs no torch. (A module here must not be called as a function in
this list, or importing the one would hide the other.)
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from moesaic.adapt.conversion.convert import Converted, convert
    from moesaic.adapt.diagnosis import Diagnosis, diagnose
    from moesaic.adapt.draft.drafting import Draft, adapt
    from moesaic.adapt.planning import Plan, plan
    from moesaic.adapt.proof.results import Verification
    from moesaic.adapt.proof.run import record, verify
    from moesaic.adapt.report import Report, inspect
    from moesaic.adapt.survey import Survey

_WHERE = {
    "Converted": "moesaic.adapt.conversion.convert",
    "convert": "moesaic.adapt.conversion.convert",
    "Plan": "moesaic.adapt.planning",
    "plan": "moesaic.adapt.planning",
    "Diagnosis": "moesaic.adapt.diagnosis",
    "diagnose": "moesaic.adapt.diagnosis",
    "Draft": "moesaic.adapt.draft.drafting",
    "adapt": "moesaic.adapt.draft.drafting",
    "Report": "moesaic.adapt.report",
    "inspect": "moesaic.adapt.report",
    "Survey": "moesaic.adapt.survey",
    "Verification": "moesaic.adapt.proof.results",
    "record": "moesaic.adapt.proof.run",
    "verify": "moesaic.adapt.proof.run",
}
__all__ = [
    "Converted",
    "Diagnosis",
    "Draft",
    "Plan",
    "Report",
    "Survey",
    "Verification",
    "adapt",
    "convert",
    "diagnose",
    "inspect",
    "plan",
    "record",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'moesaic.adapt' has no attribute {name!r}")
    return getattr(import_module(_WHERE[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
