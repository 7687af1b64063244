"""Settings that are not searched but computed from others, such as `2 * lora.rank`.

An expression has numbers, dotted names of settings, `+ - * /`, `sqrt()`, `min()`, `max()` and
parentheses. Python parses an expression, but only this module evaluates it, without `eval`.
"""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, get_args

from orchestrator.errors import SweepSpecError
from orchestrator.spec.complaint import complaint, nearest, require

_MAX_CHARS = 200
_ALLOWED = (
    "numbers, settings such as lora.rank, + - * /, sqrt(), min(), max() and parentheses, "
    f"in up to {_MAX_CHARS} characters"
)
_OPERATORS: dict[type[ast.AST], Callable[..., float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.UAdd: operator.pos,
    ast.USub: operator.neg,
}
_FUNCTIONS: dict[str, Callable[..., float]] = {"sqrt": math.sqrt, "min": min, "max": max}


@dataclass(frozen=True, kw_only=True)
class Tie:
    """A setting's value as an expression of other settings.

    Attributes:
        where: Dotted name for messages, such as `space.lora.alpha`.
        text: The expression.
        names: The settings in the expression.
        is_whole: The setting takes whole numbers only: values are rounded.
    """

    where: str
    text: str
    names: tuple[str, ...]
    is_whole: bool
    _tree: ast.expr = field(repr=False, compare=False)

    def compute(self, values: Mapping[str, Any]) -> float:
        """The value, given the values of `names`.

        Raises:
            SweepSpecError: The expression has no value: a division by zero, or an unset setting.
        """
        known = {name: values[name] for name in self.names}
        try:
            number = float(_evaluate(self._tree, known))
        except (ArithmeticError, ValueError, TypeError):
            number = math.nan
        shown = ", ".join(f"{name} {value}" for name, value in known.items())
        require(
            math.isfinite(number),
            self.where,
            self.text,
            f"an expression with a finite value (it has none for {shown})",
            "Correct the expression, or forbid those values.",
        )
        return round(number) if self.is_whole else number


def parse_tie(where: str, written: object, hint: Any, known: tuple[str, ...]) -> Tie:
    """Parse and check an expression.

    Args:
        where: Dotted name for messages, such as `space.lora.alpha`.
        written: Value in the sweep file.
        hint: Type of the computed setting.
        known: Settings that the expression may name.

    Raises:
        SweepSpecError: The text is not such an expression, or the setting is not a number.
    """
    takes = set(get_args(hint) or (hint,))
    require(
        bool(takes & {int, float}),
        where,
        {"tied": written},
        "a constant or a choice, as this setting is not a number",
        "Write it as {choice: [a, b]}.",
    )
    if not isinstance(written, str) or len(written) > _MAX_CHARS:
        raise _refusal(where, written, "Write it as {tied: '2 * lora.rank'}.")
    try:
        tree = ast.parse(written.strip(), mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        raise _refusal(where, written, "Correct the expression.") from error
    names = tuple(dict.fromkeys(_names(tree, where, written)))
    for name in names:
        if name not in known:
            raise complaint(
                where,
                written,
                f"the settings {', '.join(known)}",
                f"There is no {name}: correct the name.",
                nearest(name, known),
            )
    return Tie(
        where=where,
        text=written,
        names=names,
        is_whole=float not in takes,
        _tree=_WholeNames().visit(tree),
    )


def _names(node: ast.expr, where: str, text: str) -> list[str]:
    """Settings in an allowed expression; an error for any other expression."""
    match node:
        case ast.Constant(value=int() | float()) if not isinstance(node.value, bool):
            return []
        case ast.Name() | ast.Attribute():
            return [_dotted(node, where, text)]
        case ast.UnaryOp() if type(node.op) in _OPERATORS:
            return _names(node.operand, where, text)
        case ast.BinOp() if type(node.op) in _OPERATORS:
            return _names(node.left, where, text) + _names(node.right, where, text)
        case ast.Call(func=ast.Name(id=function), keywords=[]) if function in _FUNCTIONS:
            fits = len(node.args) == 1 if function == "sqrt" else len(node.args) >= 2
            count = "one number" if function == "sqrt" else "two numbers or more"
            if not fits:
                raise _refusal(where, text, f"Give {function}() {count}.")
            return [name for each in node.args for name in _names(each, where, text)]
    raise _refusal(where, text, f"Take out {ast.unparse(node)!r}.")


def _dotted(node: ast.expr, where: str, text: str) -> str:
    if isinstance(node, ast.Attribute):
        return f"{_dotted(node.value, where, text)}.{node.attr}"
    if not isinstance(node, ast.Name):
        raise _refusal(where, text, f"Take out {ast.unparse(node)!r}.")
    return node.id


def _evaluate(node: ast.expr, values: Mapping[str, Any]) -> Any:
    match node:
        case ast.Constant():
            return node.value
        case ast.UnaryOp():
            return _OPERATORS[type(node.op)](_evaluate(node.operand, values))
        case ast.BinOp():
            left, right = _evaluate(node.left, values), _evaluate(node.right, values)
            return _OPERATORS[type(node.op)](left, right)
        case ast.Call(func=ast.Name(id=function)):
            return _FUNCTIONS[function](*(_evaluate(each, values) for each in node.args))
        case ast.Name():
            return values[node.id]
    raise AssertionError(f"{ast.unparse(node)} was allowed")


class _WholeNames(ast.NodeTransformer):
    """Joins dotted names into single names, to look up their values."""

    def visit_Attribute(self, node: ast.Attribute) -> ast.Name:
        return ast.Name(id=ast.unparse(node))


def _refusal(where: str, written: object, remedy: str) -> SweepSpecError:
    return complaint(where, written, _ALLOWED, remedy)
