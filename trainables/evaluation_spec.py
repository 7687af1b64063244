"""Settings of an evaluation: generation, extraction of answers, metrics and rows.

The values are plain, frozen and free of torch, so that a driver can hold them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, ClassVar

from trainables.claims import show
from trainables.errors import SpecError
from trainables.functions import FORM, names_function

_ALWAYS = ("loss", "perplexity", "bits_per_byte", "token_accuracy", "accuracy")


@dataclass(frozen=True, kw_only=True)
class EvaluationSpec:
    """Settings of an evaluation beyond teacher-forced loss and accuracy.

    Attributes:
        max_new_tokens: Most tokens of a greedy completion; 0 for no generation.
        pattern: Regular expression; its first match in a completion (group 1, if there is one) is
            compared with its first match in the reference.
        choices: Possible answers; the first choice in a completion is compared with the first
            choice in the reference. `trainables.evaluation.answers` defines a match.
        metrics: `module:function` or `path/to/file.py:function`. A function receives the lists of
            predictions and references and returns one finite number for each row; more is better
            unless the function has an attribute `mode = "min"`.
        batch_size: Rows per forward pass. It changes results only by rounding; on an 8-bit base
            slightly more, as rows share their outlier columns (arXiv:2208.07339, section 3.2).
        max_rows: Most rows, drawn as a sample; `None` for all rows.
        skip_cut: Leave out rows without an answer within the adapter's `data.max_tokens`, as
            training does, instead of refusing the rows.
    """

    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}

    max_new_tokens: int = 0
    pattern: str | None = None
    choices: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ()
    batch_size: int = 32
    max_rows: int | None = None
    skip_cut: bool = False

    def __post_init__(self) -> None:
        for name in ("choices", "metrics"):
            if isinstance(getattr(self, name), str):
                self._refuse(name, "a list of strings", "Put it in a list.")
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if self.max_new_tokens < 0:
            self._refuse("max_new_tokens", ">= 0", "Use 0 for no generation.")
        if self.batch_size < 1:
            self._refuse("batch_size", ">= 1", "Raise it.")
        if self.max_rows is not None and self.max_rows < 1:
            self._refuse("max_rows", ">= 1", "Leave it out to use every row.")
        self._check_readings()

    @property
    def generates(self) -> bool:
        """Whether completions are generated."""
        return self.max_new_tokens > 0

    @property
    def measures(self) -> tuple[str, ...]:
        """Names of the measures under these settings."""
        read = {
            "exact_match": self.generates,
            "pattern_match": self.pattern is not None,
            "choice_match": bool(self.choices),
        }
        own = (name.rpartition(":")[2] for name in self.metrics)
        return (*_ALWAYS, *(name for name, is_read in read.items() if is_read), *own)

    def _check_readings(self) -> None:
        for name in ("pattern", "choices", "metrics"):
            if getattr(self, name) not in (None, ()) and not self.generates:
                allowed = "none without evaluation.max_new_tokens > 0"
                self._refuse(name, allowed, "Say how many tokens a completion may have.")
        if self.pattern is not None:
            self._check_pattern(self.pattern)
        if self.choices and (len(set(self.choices)) < max(2, len(self.choices))):
            self._refuse("choices", "two or more different strings", "Name each answer once.")
        if not all(choice.strip() == choice != "" for choice in self.choices):
            self._refuse("choices", "strings without outer whitespace", "Strip or remove them.")
        if not all(map(names_function, self.metrics)):
            self._refuse("metrics", FORM, "Name the function behind a colon.")
        names = [metric.rpartition(":")[2] for metric in self.metrics]
        if len(set(names)) < len(names):
            self._refuse("metrics", "functions of different names", "Rename one of them.")

    def _check_pattern(self, pattern: str) -> None:
        try:
            matches_nothing = re.compile(pattern).fullmatch("") is not None
        except re.error as error:
            raise SpecError(
                f"evaluation.pattern: got {show(pattern)} ({error}); allowed: a regular "
                "expression of Python's re. Correct the pattern."
            ) from error
        if matches_nothing:
            allowed = "a regular expression that needs at least one character"
            self._refuse("pattern", allowed, "It would be found everywhere: make it stricter.")

    def _refuse(self, name: str, allowed: str, remedy: str) -> None:
        value = getattr(self, name)
        value = list(value) if isinstance(value, tuple) else value
        raise SpecError(f"evaluation.{name}: got {show(value)}; allowed: {allowed}. {remedy}")
