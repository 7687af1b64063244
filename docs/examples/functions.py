"""Functions of the examples: readers of rows, a metric, and a rule that stops a trial."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

DOCS = Path(__file__).parents[1]
_NUMERALS = {
    1000: "M", 900: "CM", 500: "D", 400: "CD", 100: "C", 90: "XC",
    50: "L", 40: "XL", 10: "X", 9: "IX", 5: "V", 4: "IV", 1: "I",
}  # fmt: skip


def roman_numerals() -> Iterator[dict[str, str]]:
    """A number and its Roman numeral, 1 to 300: `data: {train: functions.py:roman_numerals}`."""
    for number in range(1, 301):
        rest, numeral = number, ""
        for value, letters in _NUMERALS.items():
            numeral += letters * (rest // value)
            rest %= value
        yield {"prompt": f"{number} in Roman numerals:", "completion": f" {numeral}"}


def words() -> Iterator[dict[str, str]]:
    """The words of this project and what they mean, as instructions."""
    table = (DOCS / "words.md").read_text()
    for word, meaning in re.findall(r"^\| ([a-z ]+) \| (.+) \|$", table, re.MULTILINE)[1:]:
        yield {"instruction": f"What does {word} mean in Lorchestra?", "output": meaning}


def paragraphs() -> Iterator[dict[str, str]]:
    """The paragraphs of the documentation: text of one domain."""
    for page in sorted(DOCS.glob("*.md")):
        prose = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
        for paragraph in prose.split("\n\n"):
            text = " ".join(paragraph.split())
            if len(text) > 80 and not text.startswith("|"):
                yield {"text": text}


def similarity(predictions: Sequence[str], references: Sequence[str]) -> list[float]:
    """How much of each answer was written, from 0 to 1: 1 is the answer itself."""
    pairs = zip(predictions, references, strict=True)
    return [difflib.SequenceMatcher(None, one.strip(), two.strip()).ratio() for one, two in pairs]


def plateau(reports: Sequence[Mapping[str, float]]) -> str | None:
    """Stop a trial whose loss fell by less than 1 % over its last two evaluations."""
    if len(reports) < 3:
        return None
    before, now = reports[-3], reports[-1]
    if now["eval_loss"] < 0.99 * before["eval_loss"]:
        return None
    return f"eval_loss fell by less than 1 % since step {before['step']:.0f}"
