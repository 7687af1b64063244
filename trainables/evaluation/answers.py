"""What is read off completions: a pattern's match, a choice, the scores of a user's functions."""

from __future__ import annotations

import hashlib
import importlib
import math
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

from trainables.contract import Mode
from trainables.errors import SpecError
from trainables.evaluation.measures import RESERVED
from trainables.evaluation_spec import EvaluationSpec


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A user's function of predictions and references.

    Attributes:
        name: Of the function, and of its column and measure.
        mode: Whether less or more is better.
    """

    name: str
    mode: Mode
    function: Callable[[list[str], list[str]], Sequence[float]]


def find_pattern(pattern: str, text: str) -> str | None:
    """What an expression finds first: its first group, if it has one; `None` for nothing."""
    found = re.search(pattern, text)
    if found is None:
        return None
    groups = found.groups()
    return groups[0] if groups else found[0]


def find_choice(choices: Sequence[str], text: str) -> str | None:
    """The choice that comes first in a text, the longest of those that begin there.

    An ASCII letter or digit at the border of a choice must not be part of a longer word: `A` is
    not found in `Answer`, nor `no` in `know`.
    """
    found = re.search("|".join(map(_whole, sorted(choices, key=len, reverse=True))), text)
    return None if found is None else found[0]


def load_metrics(names: Sequence[str]) -> tuple[Metric, ...]:
    """The functions that `EvaluationSpec.metrics` names; their files are run.

    Raises:
        SpecError: There is no such module, file or function, or it cannot be imported; or its
            name is taken or its mode unknown.
    """
    return tuple(_load_metric(name) for name in names)


def metric_digests(names: Sequence[str]) -> dict[str, str]:
    """`sha256:` of the source file of each metric, by its name; its files are not run.

    Raises:
        SpecError: There is no such module or file.
    """
    return {name.rpartition(":")[2]: _source_digest(name) for name in names}


def judge(
    how: EvaluationSpec,
    metrics: Sequence[Metric],
    predictions: Sequence[str],
    references: Sequence[str],
) -> dict[str, list[float]]:
    """Columns of what completions are worth, with one number for each row.

    Raises:
        SpecError: A metric gave something else than one finite number for each row.
    """
    pairs = list(zip(predictions, references, strict=True))
    columns: dict[str, list[float]] = {
        "exact_match": [int(written.strip() == wanted.strip()) for written, wanted in pairs]
    }
    for column, read in readings(how).items():
        columns[column] = [int(read(written) == read(wanted)) for written, wanted in pairs]
    for metric in metrics:
        columns[metric.name] = _scores(metric, predictions, references)
    return columns


def readings(how: EvaluationSpec) -> dict[str, Callable[[str], str | None]]:
    """What is looked for in completions and references, by the column it gives."""
    found: dict[str, Callable[[str], str | None]] = {}
    if how.pattern is not None:
        pattern = how.pattern
        found["pattern_match"] = lambda text: find_pattern(pattern, text)
    if how.choices:
        found["choice_match"] = lambda text: find_choice(how.choices, text)
    return found


def missing_reading(how: EvaluationSpec, reference: str) -> tuple[str, object] | None:
    """The field and value of `how` that finds nothing in a reference, so the row has no truth."""
    fields: Mapping[str, tuple[str, object]] = {
        "pattern_match": ("pattern", how.pattern),
        "choice_match": ("choices", how.choices),
    }
    for column, read in readings(how).items():
        if read(reference) is None:
            return fields[column]
    return None


def _whole(choice: str) -> str:
    before = r"(?<![A-Za-z0-9_])" if re.match(r"\w", choice, re.ASCII) else ""
    behind = r"(?![A-Za-z0-9_])" if re.search(r"\w\Z", choice, re.ASCII) else ""
    return before + re.escape(choice) + behind


def _load_metric(name: str) -> Metric:
    where, _, called = name.rpartition(":")
    module = _import_file(Path(where)) if where.endswith(".py") else _import_module(where)
    function = getattr(module, called, None)
    if not callable(function):
        raise SpecError(
            f"evaluation.metrics: got {name!r}, but {where} has no function {called!r}; allowed: "
            f"{', '.join(_functions(module)) or '(it has none)'}. Correct the name."
        )
    if called in RESERVED:
        raise SpecError(
            f"evaluation.metrics: got {name!r}, whose name stands for something else; allowed: "
            f"any but {', '.join(sorted(RESERVED))}. Rename the function."
        )
    mode: Any = getattr(function, "mode", "max")
    if mode not in get_args(Mode):
        raise SpecError(
            f"evaluation.metrics: {name!r} has mode {mode!r}; allowed: {', '.join(get_args(Mode))}"
            ". Correct the attribute."
        )
    return Metric(name=called, mode=mode, function=function)


def _source_digest(name: str) -> str:
    where = name.rpartition(":")[0]
    if where.endswith(".py"):
        path = Path(where).expanduser()
    else:
        path = Path(_import_module(where).__file__ or "")
    try:
        return "sha256:" + hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise SpecError(
            f"evaluation.metrics: {name!r} cannot be read ({error}); allowed: a function in a "
            "Python source file. Correct the path."
        ) from error


def _functions(module: ModuleType) -> list[str]:
    return [
        name
        for name, value in vars(module).items()
        if callable(value) and getattr(value, "__module__", None) == module.__name__
    ]


def _import_module(where: str) -> ModuleType:
    try:
        return importlib.import_module(where)
    except (ImportError, SyntaxError, TypeError, ValueError) as error:
        raise SpecError(
            f"evaluation.metrics: module {where!r} cannot be imported ({error}); allowed: a "
            "module on Python's path, or path/to/file.py. Check the name or install what it needs."
        ) from error


def _import_file(path: Path) -> ModuleType:
    path = path.expanduser().resolve()
    if not path.is_file():
        raise SpecError(
            f"evaluation.metrics: there is no file {str(path)!r}; allowed: an existing .py file. "
            "Correct the path."
        )
    # Two files of one name are two modules; pickles and dataclasses look a module up by its name.
    digest = hashlib.sha256(str(path).encode()).hexdigest()[:8]
    name = f"lorchestra_metric_{path.stem}_{digest}"
    module = ModuleType(name)
    module.__file__ = str(path)
    sys.modules[name] = module
    try:
        SourceFileLoader(name, str(path)).exec_module(module)
    except (ImportError, SyntaxError) as error:
        del sys.modules[name]
        raise SpecError(
            f"evaluation.metrics: {str(path)!r} cannot be imported ({error}); allowed: a Python "
            "file whose imports are installed. Mend the file or install what it needs."
        ) from error
    return module


def _scores(metric: Metric, predictions: Sequence[str], references: Sequence[str]) -> list[float]:
    # Lists of its own: a function may change what it is given.
    given: Any = metric.function(list(predictions), list(references))
    allowed = f"a list of {len(predictions)} finite numbers, one for each row"
    where = f"evaluation.metrics: {metric.name}"
    try:
        scores = [float(score) for score in given]
    except (TypeError, ValueError) as error:
        raise SpecError(
            f"{where} gave a {type(given).__name__} ({error}); allowed: {allowed}. Mend the "
            "function."
        ) from error
    if len(scores) != len(predictions):
        raise SpecError(
            f"{where} gave {len(scores)} scores; allowed: {allowed}. Mend the function."
        )
    for row, score in enumerate(scores, 1):
        if not math.isfinite(score):
            raise SpecError(
                f"{where} gave {score} for row {row}; allowed: {allowed}. Mend the function."
            )
    return scores
