"""What is wrong with a text that is not YAML: a sentence, a remedy, and the place to look at.

PyYAML tells what its scanner expected. A user wants to know which character to change.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

import yaml

from orchestrator.sweepfile.places import Place


class Mistake(NamedTuple):
    """One mistake in a text: what is wrong, the remedy, and the place if it is known."""

    flaw: str
    remedy: str
    place: Place | None


_SPACES = "Indent lines of one section by the same number of spaces."
_QUOTE = "Put the text in single quotes."


def find_mistake(error: yaml.MarkedYAMLError, text: str) -> Mistake:
    """The mistake behind an error of PyYAML."""
    problem = error.problem or ""
    lines = text.splitlines()
    for pattern, explain in _EXPLAINED:
        match = re.search(pattern, problem)
        if match:
            return explain(error, lines, match)
    return Mistake(problem, "Correct the file there.", _place(error.problem_mark))


def _place(mark: yaml.Mark | None) -> Place | None:
    return None if mark is None else Place.of(mark)


def _line(lines: list[str], number: int) -> str:
    return lines[number] if 0 <= number < len(lines) else ""


def _wrong_character(
    error: yaml.MarkedYAMLError, lines: list[str], match: re.Match[str]
) -> Mistake:
    place = _place(error.problem_mark)
    character = match[1]
    if character == r"\t":
        return Mistake(
            "a tab is not allowed here", "Use spaces, for indentation and after a colon.", place
        )
    return Mistake(f"a value cannot begin with {character}", _QUOTE, place)


def _unexpected_colon(
    error: yaml.MarkedYAMLError, lines: list[str], match: re.Match[str]
) -> Mistake:
    assert error.problem_mark is not None
    place = Place.of(error.problem_mark)
    if re.search(r":\s", _line(lines, place.line)[: place.column]):
        return Mistake(
            "a second colon in one line",
            "Quote a text with a colon; put settings of a section on lines of their own, "
            "indented, or in braces: {key: value}.",
            place,
        )
    above = place.line - 1
    while above >= 0 and not _line(lines, above).partition("#")[0].strip():
        above -= 1
    return _missing_colon(lines, above) or Mistake(
        "the line is indented deeper than the line above, whose value is complete",
        _SPACES,
        Place(place.line, len(_line(lines, place.line)) - len(_line(lines, place.line).lstrip())),
    )


def _missing_colon(lines: list[str], number: int) -> Mistake | None:
    """The mistake of a line without `: `; `None` for a line that has it."""
    line = _line(lines, number).partition(" #")[0].rstrip()
    if re.search(r":(\s|$)", line):
        return None
    joined = re.search(r"[\w'\"](:)[^\s/]", line)
    if joined:
        place = Place(number, joined.start(1) + 1)
        return Mistake("a space is missing after the colon", "Write it as key: value.", place)
    start = len(line) - len(line.lstrip())
    key = re.match(r"[\w.-]*", line.lstrip())
    column = start + (len(key[0]) if key else 0)
    return Mistake("a colon is missing", "Write it as key: value.", Place(number, column))


def _no_colon(error: yaml.MarkedYAMLError, lines: list[str], match: re.Match[str]) -> Mistake:
    mark = error.context_mark or error.problem_mark
    assert mark is not None
    return _missing_colon(lines, mark.line) or Mistake(
        "a colon is missing", "Write it as key: value.", Place.of(mark)
    )


def _misplaced(error: yaml.MarkedYAMLError, lines: list[str], match: re.Match[str]) -> Mistake:
    place, found = _place(error.problem_mark), match[1]
    if found in "]}":
        return Mistake(f"{found} closes no bracket", "Remove it.", place)
    if found == "-":
        flaw = "a list item (- …) stands among lines of key: value"
        return Mistake(flaw, "Write a list below its own key, or in brackets: [a, b].", place)
    if found == "?":
        flaw = "a line of key: value stands among list items (- …)"
        return Mistake(flaw, "Begin the line with -, or indent the list deeper.", place)
    if found in ("<scalar>", ","):
        return Mistake("text follows a value that is complete", "Quote the whole text.", place)
    return Mistake("the indentation of this line fits no line above", _SPACES, place)


def _open_bracket(error: yaml.MarkedYAMLError, lines: list[str], match: re.Match[str]) -> Mistake:
    assert error.problem_mark is not None
    assert error.context_mark is not None
    opened, stopped = Place.of(error.context_mark), Place.of(error.problem_mark)
    closing, found = match[1], match[2]
    if found in "]}":
        flaw = f"{found} closes a bracket that needs {closing}"
        return Mistake(flaw, f"Write {closing}.", stopped)
    if opened.line == stopped.line and found != "<stream end>":
        before = _line(lines, stopped.line)[: stopped.column].rstrip()
        start = Place(stopped.line, max(before.rfind(" "), before.rfind(",")) + 1)
        return Mistake("a comma is missing before this", "Separate entries by commas.", start)
    return Mistake(
        f"the bracket that opens here is not closed by {closing}",
        f"Add {closing}, or the comma that is missing in line {stopped.line + 1} or above.",
        opened,
    )


def _open_quote(error: yaml.MarkedYAMLError, lines: list[str], match: re.Match[str]) -> Mistake:
    flaw = "the quote that opens here is not closed"
    return Mistake(flaw, "Add the closing quote.", _place(error.context_mark))


def _reference(error: yaml.MarkedYAMLError, lines: list[str], match: re.Match[str]) -> Mistake:
    place = _place(error.context_mark or error.problem_mark)
    sign = "*" if place is None else _line(lines, place.line)[place.column :][:1] or "*"
    flaw = f"{sign} begins a reference of YAML, and this one has no known name"
    return Mistake(flaw, _QUOTE, place)


_Explain = Callable[[yaml.MarkedYAMLError, list[str], re.Match[str]], Mistake]


def _always(flaw: str, remedy: str) -> _Explain:
    """A mistake whose words do not depend on the text; `{0}` stands for PyYAML's own word."""

    def explain(error: yaml.MarkedYAMLError, lines: list[str], match: re.Match[str]) -> Mistake:
        place = _place(error.problem_mark or error.context_mark)
        return Mistake(flaw.format(*match.groups()), remedy, place)

    return explain


_EXPLAINED: tuple[tuple[str, _Explain], ...] = (
    (r"found character '(.+)' that cannot start any token", _wrong_character),
    (r"mapping values are not allowed here", _unexpected_colon),
    (r"could not find expected ':'", _no_colon),
    (r"expected <block end>, but found '(.+)'", _misplaced),
    (r"expected ',' or '(.)', but got '(.+)'", _open_bracket),
    (r"found unexpected end of stream", _open_quote),
    (r"expected alphabetic or numeric character|found undefined alias", _reference),
    (
        r"found unknown escape character '(.+)'",
        _always("\\{0} is no escape of a text in double quotes", _QUOTE),
    ),
    (
        r"expected the node content, but found '<stream end>'",
        _always("the file ends within a bracket", "Close the bracket."),
    ),
    (
        r"a whole number has (\d+) digits",
        _always("a whole number has {0} digits", "Use a smaller number."),
    ),
    (r"'(.*)' is given twice", _always("'{0}' is given twice", "Remove one of the two.")),
    (
        r"expected chomping or indentation indicators",
        _always("text follows | or >, which begin a text of several lines", _QUOTE),
    ),
    (
        r"but found another document",
        _always("a second document begins here", "Keep one sweep in a file: remove the ---."),
    ),
    (
        r"expected '<document start>'",
        _always("the indentation of this line fits no line above", _SPACES),
    ),
    (
        r"found unhashable key",
        _always("a list or mapping stands in the place of a key", "Use text as keys."),
    ),
)
"""Problems of PyYAML by pattern, with what they come from."""
