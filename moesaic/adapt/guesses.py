"""What the tensors of an unknown architecture most likely are: as a draft takes them to be. Torch-free."""

import re
from collections import defaultdict

from moesaic.adapt.compare import Match
from moesaic.adapt.draft.fields import read_fields
from moesaic.adapt.draft.names import apart
from moesaic.adapt.draft.structure import read_structure
from moesaic.adapt.likeness import Likeness
from moesaic.adapt.parts import named_together
from moesaic.adapt.survey import Survey

_VARIABLE = re.compile(r"\{\w+\}")


def guess(found: Survey, near: Likeness | None) -> list[Match]:
    """A match for each pattern of tensors of which names and shapes tell what it is.

    Args:
        near: the nearest known architecture; it says what the draft does not, of parameters that the draft has not
            found elsewhere.
    """
    if found.naming != "hf":
        return list(near.matches) if near is not None else []
    structure = read_structure(found.weight_groups, read_fields(found.config or {}).values)
    targets: dict[str, list[str]] = defaultdict(list)
    for match in structure.matches:
        targets[match.source].append(_VARIABLE.sub("#", match.target))
    drafted = []
    for group in found.weight_groups:
        templates = [named.template for named in apart(group)]
        parameters = tuple(dict.fromkeys(target for template in templates for target in targets.get(template, ())))
        if parameters:
            words = named_together(list(parameters))
            drafted.append(Match(group.pattern, group.pattern, words, parameters, 1.0))
    patterns = {match.pattern for match in drafted}
    taken = {parameter for match in drafted for parameter in match.parameters}
    others = near.matches if near is not None else ()
    return drafted + [m for m in others if m.pattern not in patterns and not taken & set(m.parameters)]
