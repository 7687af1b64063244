"""Formats of values and messages, the same in terminals, pages and logs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from trainables.claims import begin, show, similar_path


def format_metric(value: float | None) -> str:
    """A metric with four decimals; a tiny or huge value with three digits and an exponent."""
    if value is None:
        return "-"
    if not math.isfinite(value):
        return str(float(value))
    if value == 0 or 1e-3 <= abs(value) < 1e5:
        return f"{value:.4f}"
    return f"{value:.3g}"


def format_difference(value: float) -> str:
    """A metric's change, with its sign."""
    return ("+" if value > 0 else "") + format_metric(value)


def format_interval(mean: float | None, half_width: float | None) -> str:
    """`0.2491 ± 0.0210`, or the mean alone."""
    margin = "" if half_width is None else f" ± {format_metric(half_width)}"
    return format_metric(mean) + margin


def format_bounds(low: float | None, high: float | None) -> str:
    """`0.2281 … 0.2701`; empty without an interval."""
    if low is None or high is None:
        return ""
    return f"{format_metric(low)} … {format_metric(high)}"


def format_setting(value: object) -> str:
    """A hyperparameter's value in a few characters; at most four digits of a float."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, (list, tuple)):
        return one_line("+".join(map(str, value)))
    return one_line(str(value))


def format_settings(settings: Mapping[str, object]) -> str:
    """`rank 8, learning_rate 0.0003`: settings without their sections."""
    return ", ".join(
        f"{name.rpartition('.')[2]} {format_setting(value)}" for name, value in settings.items()
    )


def format_duration(seconds: float) -> str:
    """`7.3 s` below a minute, then `2:05` or `1:02:05`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def format_size(size: float) -> str:
    """`3.7 MB`: bytes in the largest unit of a thousand that leaves 1 or more."""
    for unit in ("B", "kB", "MB"):
        if abs(size) < 1000:
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"


def refusal(
    where: str, value: object, allowed: str, remedy: str, flaw: str = "", meant: str | None = None
) -> str:
    """The message about an impossible value: `where: got value; allowed: values. Remedy`.

    Args:
        where: Dotted field, option or command.
        value: The value got; a long value is cut.
        allowed: Values that can work.
        remedy: What the user can do, as a sentence.
        flaw: What is wrong with the value, where the allowed values do not tell.
        meant: The allowed value that was probably meant; the message begins with it.
    """
    shown = show(value)
    problem = f", {flaw}" if flaw else ""
    return f"{begin(where, meant)} {shown}{problem}; allowed: {allowed}. {remedy}"


def shorten(text: str, chars: int = 120) -> str:
    """The text, cut to a number of characters."""
    return text if len(text) <= chars else f"{text[:chars]}…"


def last_line(error: BaseException | str) -> str:
    """The last non-blank line of an error or traceback, with the cause.

    An exception without a message gives the name of its type.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else "" if isinstance(error, str) else type(error).__name__


def one_line(text: str) -> str:
    """The text without line breaks and terminal control characters."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def remedy_for_path(path: Path) -> str:
    """The remedy for a missing file or folder, with the most similar name beside it."""
    near = similar_path(path)
    return "Correct the path." if near is None else f"Did you mean {near.name}?"
