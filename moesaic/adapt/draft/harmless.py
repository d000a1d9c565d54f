"""Seeing that a draft is what drafts are made of: texts of a checkpoint stand in it as texts, and nothing of them runs.

A draft is run when it is tried and when it is used, and its names come from files of anybody.
"""

import ast
import builtins
from collections.abc import Iterable, Mapping

from moesaic.core.errors import CheckpointError

PLAIN = (
    ast.Module, ast.Expr, ast.Assign, ast.Return, ast.Raise, ast.Constant, ast.Name, ast.Call, ast.keyword, ast.List,
    ast.Tuple, ast.Dict, ast.Starred, ast.ListComp, ast.comprehension, ast.IfExp, ast.Compare, ast.BinOp, ast.UnaryOp,
    ast.BoolOp, ast.Lambda, ast.arguments, ast.arg, ast.JoinedStr, ast.FormattedValue, ast.operator, ast.unaryop,
    ast.cmpop, ast.boolop, ast.expr_context,
)  # fmt: skip
READS = {"require", "child", "call", "suppose", "ignore", "refuse_unless", "path"}  # of the config's reader
BUILTINS = {"int", "float", "bool", "str", "range", "enumerate"}


def require_harmless(source: str, imports: Mapping[str, Iterable[str]]) -> None:
    """Raise CheckpointError unless a draft has the statements of drafts alone, and calls what it is to call.

    Args:
        imports: module -> the names that it may import.
    """
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as e:
        raise CheckpointError(f"no description can be drafted: the config's values make no Python ({e})") from e
    allowed = {(module, name) for module, names in imports.items() for name in names}
    strange = next((node for node in ast.walk(tree) if not _harmless(node, allowed)), None)
    if strange is not None:
        line = getattr(strange, "lineno", 0)
        raise CheckpointError(f"no description can be drafted: its line {line} would be {type(strange).__name__}")


def _harmless(node: ast.AST, allowed: set[tuple[str, str]]) -> bool:
    if isinstance(node, ast.ImportFrom):
        return all((node.module, alias.name) in allowed and alias.asname is None for alias in node.names)
    if isinstance(node, ast.alias):
        return True  # of an import, as above: `import x` is none of those that may be there
    if isinstance(node, ast.FunctionDef):
        return node.name == "spec" and not node.decorator_list
    if isinstance(node, ast.Attribute):
        return node.attr in READS and isinstance(node.value, ast.Name)
    if isinstance(node, ast.Name):
        return node.id in BUILTINS or not (node.id.startswith("_") or hasattr(builtins, node.id))
    return isinstance(node, PLAIN)
