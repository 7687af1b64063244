"""A look at rows for which there is no sweep file yet: splits, layout, duplicates, answers."""

from __future__ import annotations

import dataclasses
import re
import statistics
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.spec.inputs import locate_data
from orchestrator.wording import one_line
from trainables.data_spec import DataSpec
from trainables.errors import DataError
from trainables.files.formats import ChatExample, Example, parse_row
from trainables.files.sources import SourceRows, files_of, read_source
from trainables.rows.duplicates import content_of
from trainables.rows.splits import RawSplits, read_raw_splits

_OTHER_NAMES = {
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "eval"),
}
"""Words of other splits in the names of files beside a file of training rows."""
_TRAIN = re.compile(r"(?<![a-z])(train|training)(?![a-z])", re.IGNORECASE)

_MOST_CLASSES, _ROWS_OF_CLASS, _LONGEST_CLASS = 64, 3, 60
_WANTED, _MOST_HELD_OUT, _LARGEST_SHARE = 50, 500, 0.2
"""Rows wanted in a validation or test split, most rows, and largest share of all rows."""


@dataclass(frozen=True, kw_only=True)
class RowsLook:
    """Rows with the settings that read them.

    Attributes:
        source: The rows as the user named them.
        settings: Settings of `data` that differ from the defaults, each with a reason.
        spec: The spec of the rows with these settings.
        raw: The rows in splits.
        total: Rows that can be used.
        distinct: Different rows, apart from white space and case.
        classes: The answers of a classification, the most frequent first; empty for free text.
        characters: Length of each row, training rows first.
    """

    source: str
    settings: dict[str, tuple[Any, str]]
    spec: DataSpec
    raw: RawSplits
    total: int
    distinct: int
    classes: tuple[str, ...]
    characters: tuple[int, ...]

    @property
    def train_rows(self) -> int:
        """Number of training rows."""
        return len(self.raw.train.rows)

    def lines(self) -> Iterator[str]:
        """Sentences on what a summary of the splits does not say."""
        if self.distinct < self.total:
            yield f"{self.total - self.distinct} of {self.total} rows repeat another row."
        yield self.describe_answers()

    def describe_answers(self) -> str:
        """One sentence on the kind of the answers."""
        if not self.classes:
            return "Answers are free text."
        shown = ", ".join(one_line(each) for each in self.classes[:6]) + (
            ", …" if len(self.classes) > 6 else ""
        )
        return f"Answers are {len(self.classes)} classes: {shown}."


def look_at_rows(source: str) -> RowsLook:
    """Read rows, find the other splits beside them, and settle how they are split.

    Args:
        source: A file, a folder, a glob or a hub dataset.

    Raises:
        SweepSpecError: There is no such file.
        DataError: The rows cannot be read or used.
    """
    path = Path(source).expanduser()
    locate_data(DataSpec(train=source), Path.cwd())
    settings: dict[str, tuple[Any, str]] = {}
    others = _other_splits(path)
    for split, found in others.items():
        settings[split] = (str(found), "found beside the training rows")
    spec = DataSpec(train=source)
    found_rows = read_source(spec, "train")
    settings |= _bad_rows(found_rows)
    settings |= _fractions(len(found_rows.rows), frozenset(others))
    spec, raw = _without_overlaps(*_read(spec, settings), settings)
    examples = list(_examples(raw))
    texts = [content_of(one).text for one in examples]
    return RowsLook(
        source=source,
        settings=settings,
        spec=spec,
        raw=raw,
        total=len(examples),
        distinct=len(set(texts)),
        classes=_classes(examples),
        characters=tuple(len(text) for text in texts),
    )


def _read(spec: DataSpec, settings: dict[str, tuple[Any, str]]) -> tuple[DataSpec, RawSplits]:
    """The rows under the settings; rows that cannot be used are left out, if there are any."""
    values: dict[str, Any] = {name: value for name, (value, _) in settings.items()}
    kept = dataclasses.replace(spec, **values)
    try:
        return kept, read_raw_splits(kept)
    except DataError as error:
        if kept.on_bad_row == "skip":
            raise
        skipping = dataclasses.replace(kept, on_bad_row="skip")
        try:
            raw = read_raw_splits(skipping)
        except DataError:
            raise error from None  # the same fault in other words, or a fault of all rows
        count = sum(map(len, raw.skipped.values()))
        settings["on_bad_row"] = ("skip", f"{count} rows cannot be used; check names them")
        return skipping, raw


def _without_overlaps(
    spec: DataSpec, raw: RawSplits, settings: dict[str, tuple[Any, str]]
) -> tuple[DataSpec, RawSplits]:
    """The rows without training rows that are evaluated, too, if others are left."""
    if not raw.overlaps:
        return spec, raw
    dropping = dataclasses.replace(spec, on_overlap="drop")
    try:
        dropped = read_raw_splits(dropping)
    except DataError:
        return spec, raw  # no training row is left: the summary warns of the overlap
    settings["on_overlap"] = ("drop", "rows that are evaluated are not trained on")
    return dropping, dropped


def _bad_rows(found: SourceRows) -> dict[str, tuple[Any, str]]:
    if not found.bad:
        return {}
    return {"on_bad_row": ("skip", f"{len(found.bad)} rows cannot be read; check names them")}


def _fractions(rows: int, given: frozenset[str]) -> dict[str, tuple[Any, str]]:
    """Shares of the rows for the splits that have no file."""
    wanted = min(_MOST_HELD_OUT, max(_WANTED, rows // 10))
    share = round(min(_LARGEST_SHARE, max(wanted / rows, 0.001)), 3)
    reasons = {
        "validation": f"about {round(share * rows)} rows to compare trials on",
        "test": f"about {round(share * rows)} rows that no choice of the search sees",
    }
    return {
        f"{split}_fraction": (share, reason)
        for split, reason in reasons.items()
        if split not in given
    }


def _other_splits(path: Path) -> dict[str, Path]:
    """Files of other splits beside `rows.train.jsonl`, or within a folder of split files."""
    if path.is_dir():
        return {split: path for split in _OTHER_NAMES if _has_split(path, split)}
    if not _TRAIN.search(path.name):
        return {}
    found = {}
    for split, words in _OTHER_NAMES.items():
        places = (path.with_name(_TRAIN.sub(word, path.name)) for word in words)
        place = next((one for one in places if one.is_file()), None)
        if place is not None:
            found[split] = place
    return found


def _has_split(folder: Path, split: str) -> bool:
    return bool(files_of(str(folder), split))


def _examples(raw: RawSplits) -> Iterator[Example]:
    """The examples of all splits, training rows first."""
    for split in raw.by_name.values():
        for row in split.rows:
            yield parse_row(row, raw.layout, split.field)


def _classes(examples: list[Example]) -> tuple[str, ...]:
    """The answers, if there are few different ones and each occurs often."""
    if not all(_has_one_answer(one) for one in examples):
        return ()
    counts = Counter(_answer(one) for one in examples)
    is_few = 2 <= len(counts) <= _MOST_CLASSES and max(map(len, counts)) <= _LONGEST_CLASS
    if not is_few or statistics.median(counts.values()) < _ROWS_OF_CLASS:
        return ()
    return tuple(answer for answer, _ in counts.most_common())


def _has_one_answer(example: Example) -> bool:
    if not isinstance(example, ChatExample):
        return bool(example.prompt)
    return len(example.answers) == 1 and not example.turns[example.answers[0]].get("tool_calls")


def _answer(example: Example) -> str:
    if isinstance(example, ChatExample):
        return str(example.turns[example.answers[0]]["content"]).strip()
    return example.answer.strip()
