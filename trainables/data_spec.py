"""Data of a trial: the sources, the meaning of their columns, and the split."""

from __future__ import annotations

import datetime
import json
import string
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Literal

from trainables.claims import (
    require,
    require_choice,
    require_path,
    require_small_numbers,
    show,
)
from trainables.errors import SpecError

DataFormat = Literal["auto", "messages", "sharegpt", "alpaca", "prompt-completion", "text"]
BadRowPolicy = Literal["fail", "skip"]
OverlapPolicy = Literal["warn", "fail", "drop"]

Rows = tuple[dict[str, Any], ...]
"""Examples held in memory; a sweep writes them to its storage folder before any trial starts."""

_RENDERED = frozenset(
    {
        "messages", "conversation", "tools", "documents", "add_generation_prompt",
        "chat_template", "tokenize", "return_dict", "continue_final_message",
    }
)  # fmt: skip
"""Arguments of a chat template that the rows or the rendering set."""

_STRICT: dict[str, Any] = {"extra": "forbid"}
_FORMS = (("messages",), ("prompt", "completion"), ("completion",), ("text",))
"""Allowed combinations of columns, besides `system` and `tools`; a template replaces `prompt`."""


@dataclass(frozen=True, kw_only=True)
class ColumnsSpec:
    """The column of each role: messages, prompt, completion, text, system and tools.

    Attributes:
        messages: A conversation: a list of messages, or that list as JSON text.
        prompt: The question or instruction: text, or a list of messages.
        completion: The answer to learn, of the same type as the prompt.
        text: Text that is learned as a whole.
        system: Text of a system turn put before the messages.
        tools: Tools that a conversation may call: a list, or that list as JSON text.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT

    messages: str | None = None
    prompt: str | None = None
    completion: str | None = None
    text: str | None = None
    system: str | None = None
    tools: str | None = None

    def __post_init__(self) -> None:
        named = self.named
        main = tuple(role for role in named if role not in ("system", "tools"))
        require(
            main in _FORMS and all(named.values()),
            "data.columns",
            named,
            "messages; or prompt and completion; or completion beside data.prompt_template; or "
            "text; with messages also system and tools",
            "Name the columns of one of these.",
        )

    @property
    def named(self) -> dict[str, str]:
        """Column name by role, for the roles that are set."""
        values = {one.name: getattr(self, one.name) for one in fields(self)}
        return {role: column for role, column in values.items() if column is not None}


@dataclass(frozen=True, kw_only=True)
class SplitNames:
    """The part of a hub dataset or dataset folder to read for each source.

    A source set to `None` reads the split of its own name.

    Attributes:
        train: A split name or an expression of splits, such as `train[:80%]` or `train+extra`.
        validation: The same for `data.validation`.
        test: The same for `data.test`.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT

    train: str | None = None
    validation: str | None = None
    test: str | None = None


@dataclass(frozen=True, kw_only=True)
class DataSpec:
    """Sources of the examples, and how rows are split and cut.

    Attributes:
        train: A file of rows (`.jsonl`, `.ndjson`, `.json`, `.csv`, `.tsv`, `.parquet`, each also
            with `.gz`, `.zst`, `.bz2` or `.xz` behind it), a folder or glob of such files, a hub
            dataset id with or without `@revision`, the rows themselves (any iterable of
            mappings, such as a `datasets.Dataset`), or a function that gives them,
            `path/to/file.py:function` or `module:function`.
        validation: Rows that trials are compared on; split off `train` when not given.
        test: Rows that only finalists see; split off `train` when not given.
        format: `messages` or `sharegpt` (chat template), `alpaca`, `prompt-completion`, or `text`;
            `auto` recognizes the format by the column names.
        columns: The column of each role, where the column names are not recognized.
        prompt_template: Text with columns in braces, such as `Q: {question} A: `, that makes
            the prompt of a row; doubled braces stand for literal ones.
        validation_fraction: Share of `train` used when `validation` is not given.
        test_fraction: Share of `train` used when `test` is not given; 0 for no test split.
        group_by: Column whose equal values stay in one split.
        split_seed: Seed of the split.
        max_tokens: Rows longer than this are cut at the end.
        train_max_tokens: A shorter limit for training rows; `None` means `max_tokens`. Trials with
            different values are evaluated on the same rows.
        revision: Commit or tag of a hub dataset.
        config: Configuration of a hub dataset or dataset folder.
        split: The part of a hub dataset or dataset folder to read: an expression for `train`, such
            as `train[:80%]`, or one expression for each source. A source without an expression
            reads the split of its own name.
        on_bad_row: `fail` refuses unusable rows; `skip` leaves such rows out and reports the
            count.
        on_overlap: Reaction to rows that two splits share: `warn` reports the rows, `fail` ends
            the run, `drop` removes the rows from training, or from validation where the other
            split is test.
        template: Name of the chat template to use, where the base's tokenizer has several.
        template_args: Arguments of the chat template, such as `enable_thinking: false`. For a
            template that writes today's date, `strftime_now: 2026-01-31` sets the written day.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT

    train: str | Rows
    validation: str | Rows | None = None
    test: str | Rows | None = None
    format: DataFormat = "auto"
    columns: ColumnsSpec | None = None
    prompt_template: str | None = None
    validation_fraction: float = 0.1
    test_fraction: float = 0.1
    group_by: str | None = None
    split_seed: int = 0
    max_tokens: int = 512
    revision: str | None = None
    train_max_tokens: int | None = None
    config: str | None = None
    split: str | SplitNames | None = None
    on_bad_row: BadRowPolicy = "fail"
    on_overlap: OverlapPolicy = "warn"
    template: str | None = None
    template_args: dict[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        self._settle()
        numbers = {"max_tokens": self.max_tokens, "train_max_tokens": self.train_max_tokens}
        require_small_numbers({**numbers, "split_seed": self.split_seed}, "data")
        for split in ("train", "validation", "test"):
            source = getattr(self, split)
            require(
                source is None or len(source) > 0,
                f"data.{split}",
                source,
                "a file, a folder, a hub dataset id or at least one row",
                "Name the data.",
            )
            if isinstance(source, str):
                require_path(source, f"data.{split}")
        require_choice(self.format, DataFormat, "data.format")
        require_choice(self.on_bad_row, BadRowPolicy, "data.on_bad_row")
        require_choice(self.on_overlap, OverlapPolicy, "data.on_overlap")
        self._check_columns()
        self._check_fractions()
        require(
            self.max_tokens >= 2,
            "data.max_tokens",
            self.max_tokens,
            ">= 2",
            "A row needs a prompt and an answer.",
        )
        require(
            self.train_max_tokens is None or 2 <= self.train_max_tokens <= self.max_tokens,
            "data.train_max_tokens",
            self.train_max_tokens,
            f"2 to data.max_tokens ({self.max_tokens})",
            "Lower it, or raise data.max_tokens.",
        )
        self._check_template_args()

    def split_name(self, source: str) -> str:
        """The split or expression to read for a source: `train`, `validation` or `test`."""
        if isinstance(self.split, SplitNames):
            return getattr(self.split, source) or source
        return self.split if self.split is not None and source == "train" else source

    def _settle(self) -> None:
        """Convert plain values, as records and callers give, to the types of this module."""
        for split in ("train", "validation", "test"):
            source = getattr(self, split)
            if source is not None and not isinstance(source, str):
                object.__setattr__(self, split, tuple(dict(row) for row in source))
        for name, kind in (("columns", ColumnsSpec), ("split", SplitNames)):
            value = getattr(self, name)
            if isinstance(value, Mapping):
                object.__setattr__(self, name, kind(**value))
        # YAML parses a day as a date; neither JSON nor a template accepts a date.
        args = {
            name: value.isoformat() if isinstance(value, datetime.date) else value
            for name, value in self.template_args.items()
        }
        object.__setattr__(self, "template_args", args)

    def _check_template_args(self) -> None:
        taken = sorted(_RENDERED.intersection(self.template_args))
        require(
            not taken,
            "data.template_args",
            ", ".join(taken),
            "arguments that neither the rows nor the rendering set",
            "Remove the argument; tools on offer come from a column of the rows.",
        )
        try:
            json.dumps(self.template_args)
        except (TypeError, ValueError) as error:
            raise SpecError(
                f"data.template_args: got {show(self.template_args)} ({error}); allowed: text, "
                "numbers, true and false, lists and mappings. Write the values as such."
            ) from error

    def _check_columns(self) -> None:
        main = () if self.columns is None else tuple(self.columns.named)
        has_template = self.prompt_template is not None
        require(
            not has_template or main in ((), ("completion",)),
            "data.prompt_template",
            self.prompt_template,
            "no template together with data.columns other than completion",
            "The template makes the prompt: leave data.columns.prompt out, or the template.",
        )
        require(
            main != ("completion",) or has_template,
            "data.columns",
            {"completion": self.columns.completion if self.columns else None},
            "prompt and completion, or completion beside data.prompt_template",
            "Name the column of the prompt, too.",
        )
        if self.prompt_template is not None:
            template_columns(self.prompt_template)

    def _check_fractions(self) -> None:
        for name in ("validation_fraction", "test_fraction"):
            value = getattr(self, name)
            require(0.0 <= value < 1.0, f"data.{name}", value, "0 <= fraction < 1", "Lower it.")
        total = self.validation_fraction + self.test_fraction
        require(
            total < 1.0,
            "data.validation_fraction",
            total,
            "validation_fraction + test_fraction < 1",
            "Leave rows to train on.",
        )
        require(
            self.validation is not None or self.validation_fraction > 0,
            "data.validation_fraction",
            self.validation_fraction,
            "> 0 without data.validation",
            "Trials are compared on validation rows: give some.",
        )


def template_columns(template: str) -> tuple[str, ...]:
    """Columns named by a prompt template, in order.

    Raises:
        SpecError: A brace has no partner, or encloses more than a column name.
    """
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise SpecError(
            f"data.prompt_template: got {show(template)}, which is no template ({error}); "
            "allowed: text with columns in braces. Double each literal brace: {{ or }}."
        ) from error
    names = [name for _, name, _, _ in parts if name is not None]
    is_plain = all(
        name.strip() and not spec and conversion is None
        for _, name, spec, conversion in parts
        if name is not None
    )
    require(
        bool(names) and is_plain,
        "data.prompt_template",
        template,
        "text with at least one column in braces, such as {question}",
        "Put a column name alone between braces; double each literal brace.",
    )
    return tuple(dict.fromkeys(names))
