"""The rows an adapter is measured on, made into the very tokens it was trained with."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from trainables.chat.templates import Asking, template_digest
from trainables.chat.tokens import Encoder, mark_answers
from trainables.data_spec import DataSpec, Rows
from trainables.errors import BaseModelError, DataError
from trainables.evaluation.answers import missing_reading
from trainables.evaluation_spec import EvaluationSpec
from trainables.files.formats import Example, parse_row
from trainables.files.layouts import RowLayout, find_layout, layout_from
from trainables.files.sources import read_rows
from trainables.rows.data import (
    EncodedRow,
    cut_example,
    tokenizer_digest,
)
from trainables.rows.sampling import sample
from trainables.rows.splits import PromptStyle, RawSplit, raw_split, read_raw_splits, style_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase
    from typing_extensions import TypeIs

FIELD = "evaluation.rows"
"""What messages call rows of a file or in memory."""

SplitName = Literal["validation", "test"]

logger = logging.getLogger(__name__)


SplitSource = tuple[DataSpec, SplitName]
"""One split of the data that an adapter was trained with."""

RowSource = SplitSource | DataSpec | str | Path | Rows
"""A split; or every row of a spec's `train`, of a file, or of those in memory."""


@dataclass(frozen=True, kw_only=True)
class EvaluationRow:
    """One example as it is measured.

    Attributes:
        encoded: Prompt and answers as in training, cut at the manifest's `max_tokens`.
        answer_bytes: UTF-8 bytes of the text of the answer tokens that are left of it. A character
            cut in two counts as the three bytes of U+FFFD.
        prompt: What the last answer follows, not cut; what a completion is asked with.
        reference: Text of the last answer, not cut, decoded from its tokens as a completion is.
    """

    encoded: EncodedRow
    answer_bytes: int
    prompt: tuple[int, ...]
    reference: str


@dataclass(frozen=True, kw_only=True)
class EvaluationRows:
    """Rows to measure on.

    Attributes:
        rows: At least one.
        data: What an evaluation document says of them under `data`.
    """

    rows: tuple[EvaluationRow, ...]
    data: Mapping[str, Any]


def evaluation_rows(
    manifest: Mapping[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    source: RowSource,
    how: EvaluationSpec,
) -> EvaluationRows:
    """The rows of a source as the adapter of a manifest is measured on them.

    A split drops the rows whose answers `max_tokens` cuts off, as training does; of other sources
    every row is measured, unless `how.skip_cut` drops them there, too. `how.max_rows` counts
    before rows are dropped, and the digest is over those it leaves.

    Args:
        manifest: Of the adapter's bundle.
        tokenizer: Of its base.
        source: Where the rows come from.
        how: What is done with them; rows that it could not be done with are refused.

    Raises:
        DataError: A source or row cannot be used, the rows are not those of the manifest or of
            another prompt style, or completions are asked for where there is no prompt.
        BaseModelError: The tokenizer or its template is not the one trained with.
    """
    raw, layout, style = _read(manifest, source)
    if how.max_rows is not None:
        chosen = sample(len(raw.rows), how.max_rows, raw.digest)
        raw = raw_split(tuple(raw.rows[position] for position in chosen), raw.field)
    recorded = manifest["data"]
    max_tokens = recorded["max_tokens"]
    asking = Asking.from_record(recorded) if style == "chat" else None
    digests = {
        "tokenizer_digest": tokenizer_digest(tokenizer),
        "template_digest": None if asking is None else template_digest(tokenizer, asking),
    }
    for name, found in digests.items():
        _require_recorded(name, found, recorded[name])
    if how.generates and layout.kind == "text":
        raise DataError(
            f"evaluation.max_new_tokens: got {how.max_new_tokens}, but rows of {raw.field} are "
            "text without prompts; allowed: 0, or rows with a prompt. Set it to 0."
        )
    ends = (recorded.get("end_tokens") or {}).values()
    reader = _Reader(tokenizer, Encoder(tokenizer, asking, tuple(ends)), max_tokens)
    encoded = [
        (where, measured)
        for row in raw.rows
        for where in [f"{raw.field}: {row.place}"]
        for measured in reader.read(parse_row(row, layout, raw.field), where)
    ]
    is_strict = not (is_split(source) or how.skip_cut)
    rows = _with_answers(encoded, raw.field, max_tokens, is_strict)
    if how.generates:
        for where, row in rows:
            _require_truth(row, where, how)
    return EvaluationRows(
        rows=tuple(row for _, row in rows),
        data={
            "digest": raw.digest,
            "name": _name(source),
            "rows": len(rows),
            **digests,
            "prompt_style": style,
            "max_tokens": max_tokens,
        },
    )


def is_split(source: RowSource) -> TypeIs[SplitSource]:
    """Whether the rows are a split rather than all rows of a source."""
    return isinstance(source, tuple) and len(source) == 2 and isinstance(source[0], DataSpec)


def decode(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """Text of tokens without the special ones, spaces as the tokens say."""
    text: str = tokenizer.decode(
        list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    return text


def _read(
    manifest: Mapping[str, Any], source: RowSource
) -> tuple[RawSplit, RowLayout, PromptStyle]:
    """All rows of a source, checked; their format and their style."""
    trained = manifest["data"]["prompt_style"]
    if is_split(source):
        raw, layout, style = _read_split(manifest, *source)
    else:
        raw, layout, style = _read_rows(manifest, source)
    if style != trained:
        raise DataError(
            f"{raw.field}: got {style} prompts; allowed: {trained} ones, which the adapter was "
            f"trained on. Write them as {'messages' if trained == 'chat' else 'text'}."
        )
    return raw, layout, style


def _read_split(
    manifest: Mapping[str, Any], data: DataSpec, split: SplitName
) -> tuple[RawSplit, RowLayout, PromptStyle]:
    if split not in get_args(SplitName):
        raise DataError(
            f"{FIELD}: got the split {split!r}; allowed: {', '.join(get_args(SplitName))}, or a "
            "source whose rows are all measured. Name one of these."
        )
    splits = read_raw_splits(data)
    raw = splits.validation if split == "validation" else splits.test
    if raw is None:
        raise DataError(
            "data.test: got None, but the test split was asked for; allowed: a file or "
            "data.test_fraction > 0. Give test rows."
        )
    recorded = manifest["data"][split]
    if raw.digest != recorded:
        raise DataError(
            f"data.{split}: got rows of digest {raw.digest}; allowed: {recorded}, those "
            "that the adapter's trial was given. Give its data as they were, or measure these "
            "rows as a file."
        )
    return raw, splits.layout, splits.prompt_style


def _read_rows(
    manifest: Mapping[str, Any],
    source: DataSpec | str | Path | Rows,
) -> tuple[RawSplit, RowLayout, PromptStyle]:
    field = "data.train" if isinstance(source, DataSpec) else FIELD
    spec = source if isinstance(source, DataSpec) else DataSpec(train=_file_or_rows(source))
    rows = read_rows(spec.train, field)
    # Rows laid out as those of training are read as these, with the same template around them.
    is_open = (spec.format, spec.columns, spec.prompt_template) == ("auto", None, None)
    trained = layout_from(manifest["data"].get("layout"), rows) if is_open else None
    layout = trained or find_layout(rows, spec, field)
    first = style_of(parse_row(rows[0], layout, field))
    for row in rows:
        style = style_of(parse_row(row, layout, field))
        if style != first:
            raise DataError(
                f"{field}: {row.place} is {style} but the first row is {first}; allowed: one of "
                "the two in all rows. Write all prompts as text, or all as messages."
            )
    return raw_split(rows, field), layout, first


def _file_or_rows(source: str | Path | Rows) -> str | Rows:
    if not isinstance(source, str | Path):
        return tuple(dict(row) for row in source)
    path = Path(source).expanduser()
    if not path.is_file():
        raise DataError(
            f"{FIELD}: got {str(source)!r}, which is no file; allowed: a file of rows, such as "
            ".jsonl, .csv or .parquet, or the rows themselves. Correct the path."
        )
    # A name without a folder could be taken for a hub's.
    return str(path.absolute())


def _name(source: RowSource) -> str:
    if is_split(source):
        return source[1]
    if isinstance(source, DataSpec):
        return _name(source.train)
    return Path(source).name if isinstance(source, str | Path) else "rows"


@dataclass(frozen=True)
class _Reader:
    """Makes examples into rows as they are measured."""

    tokenizer: PreTrainedTokenizerBase
    encoder: Encoder
    max_tokens: int

    def read(self, example: Example, where: str) -> list[EvaluationRow | None]:
        """A row for each sequence of the example; `None` where no answer is left of it."""
        found = self.encoder.encode(example, where)
        return [self._measured(pieces, found.ends) for pieces in found.sequences]

    def _measured(
        self, pieces: Sequence[Sequence[int]], ends: Collection[int]
    ) -> EvaluationRow | None:
        encoded = cut_example(*mark_answers(pieces), self.max_tokens)
        if encoded is None:
            return None
        *before, last = pieces
        # A completion is read without the token that ends it, which may be no special one.
        words = last[:-1] if last[-1] in ends else last
        return EvaluationRow(
            encoded=encoded,
            answer_bytes=sum(
                len(decode(self.tokenizer, run).encode()) for run in _answers(encoded)
            ),
            prompt=tuple(token for piece in before for token in piece),
            reference=decode(self.tokenizer, words),
        )


def _answers(row: EncodedRow) -> list[list[int]]:
    """The tokens of each answer."""
    marked = zip(row.input_ids.tolist(), row.is_answer.tolist(), strict=True)
    return [
        [token for token, _ in run]
        for is_answer, run in groupby(marked, key=lambda pair: pair[1])
        if is_answer
    ]


def _with_answers(
    encoded: Sequence[tuple[str, EvaluationRow | None]], field: str, max_tokens: int, strict: bool
) -> list[tuple[str, EvaluationRow]]:
    """The rows that have an answer left; with `strict`, all of them must."""
    kept = [(where, row) for where, row in encoded if row is not None]
    lacking = [where for where, row in encoded if row is None]
    if lacking and (strict or not kept):
        raise DataError(
            f"{lacking[0]} has no answer within {max_tokens} tokens ({len(lacking)} of "
            f"{len(encoded)} rows have none); allowed: rows whose prompts are shorter than the "
            "data.max_tokens of the adapter's manifest. Shorten or remove them."
        )
    if lacking:
        logger.warning("%s: measuring %d of %d rows", field, len(kept), len(encoded))
    return kept


def _require_recorded(name: str, found: str | None, recorded: str | None) -> None:
    if found != recorded:
        raise BaseModelError(
            f"base.model: its {name} is {found}; allowed: {recorded}, that of the adapter's "
            "training. Give the base with the tokenizer files it had."
        )


def _require_truth(row: EvaluationRow, where: str, how: EvaluationSpec) -> None:
    if not row.prompt:
        raise DataError(
            f"{where} has an empty prompt, so there is nothing to complete; allowed: a prompt. "
            "Fill it in, or set evaluation.max_new_tokens to 0."
        )
    missing = missing_reading(how, row.reference)
    if missing is not None:
        field, value = missing
        raise DataError(
            f"evaluation.{field}: got {value!r}, which finds nothing in the reference of "
            f"{where}: {row.reference!r}; allowed: what every reference holds. Mend one of the "
            "two."
        )
