"""Rows to evaluate an adapter on, encoded exactly as in its training."""

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
from trainables.files.formats import parse_row
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
"""Field name in messages about rows of a file or in memory."""

SplitName = Literal["validation", "test"]

logger = logging.getLogger(__name__)


SplitSource = tuple[DataSpec, SplitName]
"""One split of the data that an adapter was trained with."""

RowSource = SplitSource | DataSpec | str | Path | Rows
"""A split; or every row of a spec's `train`, of a file, or of rows in memory."""


@dataclass(frozen=True, kw_only=True)
class EvaluationRow:
    """One encoded example to evaluate.

    Attributes:
        encoded: Prompt and answers as in training, cut at the manifest's `max_tokens`.
        answer_bytes: UTF-8 bytes of the answer text after the cut. A character that the cut splits
            counts as the three bytes of U+FFFD.
        prompt: Token ids before the last answer, not cut; the prompt of a completion.
        reference: Text of the last answer, not cut, decoded from tokens in the same way as a
            completion.
    """

    encoded: EncodedRow
    answer_bytes: int
    prompt: tuple[int, ...]
    reference: str


@dataclass(frozen=True, kw_only=True)
class EvaluationRows:
    """Rows to evaluate on.

    Attributes:
        rows: At least one.
        data: Record of the rows, stored under `data` in an evaluation document.
    """

    rows: tuple[EvaluationRow, ...]
    data: Mapping[str, Any]


def evaluation_rows(
    manifest: Mapping[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    source: RowSource,
    how: EvaluationSpec,
) -> EvaluationRows:
    """The rows of a source, encoded for the adapter of a manifest.

    A split drops rows whose answers `max_tokens` cuts off, as training does; other sources keep
    every row, unless `how.skip_cut` drops such rows, too. `how.max_rows` limits the rows before
    rows are dropped, and the digest covers the rows within this limit.

    Args:
        manifest: Manifest of the adapter's bundle.
        tokenizer: Tokenizer of the base.
        source: Source of the rows.
        how: Settings of the evaluation; rows that do not permit these settings are refused.

    Raises:
        DataError: A source or row cannot be used, the rows differ from the manifest's or have
            another prompt style, or completions are requested for rows without prompts.
        BaseModelError: The tokenizer or its template differs from that of the training.
    """
    raw, layout, style = _read(manifest, source, how.max_rows)
    recorded = manifest["data"]
    max_tokens = recorded["max_tokens"]
    asking = Asking.from_record(recorded) if style == "chat" else None
    digests = {
        "tokenizer_digest": tokenizer_digest(tokenizer),
        "template_digest": None if asking is None else template_digest(tokenizer, asking),
    }
    changed = [name for name, found in digests.items() if found != recorded[name]]
    if changed:
        name = changed[0]
        raise BaseModelError(
            f"base.model: its {name} is {digests[name]}; allowed: {recorded[name]}, as in the "
            "adapter's training. Give the base with the tokenizer files of the training."
        )
    if how.generates and layout.kind == "text":
        raise DataError(
            f"evaluation.max_new_tokens: got {how.max_new_tokens}, but rows of {raw.field} are "
            "text without prompts; allowed: 0, or rows with a prompt. Set it to 0."
        )
    ends = (recorded.get("end_tokens") or {}).values()
    encoder = Encoder(tokenizer, asking, tuple(ends))
    encoded = []
    for row in raw.rows:
        where = f"{raw.field}: {row.place}"
        example = encoder.encode(parse_row(row, layout, raw.field), where)
        for pieces in example.sequences:
            encoded.append((where, _build_row(pieces, example.ends, max_tokens, tokenizer)))
    is_strict = not (is_split(source) or how.skip_cut)
    rows = _with_answers(encoded, raw.field, max_tokens, is_strict)
    if how.generates:
        for where, kept in rows:
            _require_truth(kept, where, how)
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
    """Text of tokens without special tokens; spaces stay as decoded."""
    text: str = tokenizer.decode(
        list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    return text


def _read(
    manifest: Mapping[str, Any], source: RowSource, max_rows: int | None
) -> tuple[RawSplit, RowLayout, PromptStyle]:
    """Rows of a source after checks, at most `max_rows`, with their layout and prompt style."""
    trained = manifest["data"]["prompt_style"]
    if is_split(source):
        raw, layout, style = _read_split(manifest, *source)
    else:
        raw, layout, style = _read_rows(manifest, source)
    if style != trained:
        raise DataError(
            f"{raw.field}: got {style} prompts; allowed: {trained} prompts, as in the adapter's "
            f"training. Write the prompts as {'messages' if trained == 'chat' else 'text'}."
        )
    if max_rows is not None:
        chosen = sample(len(raw.rows), max_rows, raw.digest)
        raw = raw_split(tuple(raw.rows[position] for position in chosen), raw.field)
    return raw, layout, style


def _read_split(
    manifest: Mapping[str, Any], data: DataSpec, split: SplitName
) -> tuple[RawSplit, RowLayout, PromptStyle]:
    if split not in get_args(SplitName):
        raise DataError(
            f"{FIELD}: got the split {split!r}; allowed: {', '.join(get_args(SplitName))}, or a "
            "source whose rows are all evaluated. Name one of these."
        )
    splits = read_raw_splits(data)
    raw = splits.validation if split == "validation" else splits.test
    if raw is None:
        raise DataError(
            "data.test: got None, but the test split was requested; allowed: a file or "
            "data.test_fraction > 0. Give test rows."
        )
    recorded = manifest["data"][split]
    if raw.digest != recorded:
        raise DataError(
            f"data.{split}: got rows of digest {raw.digest}; allowed: {recorded}, the "
            "rows of the adapter's training. Give the original data, or evaluate these rows as a "
            "file."
        )
    return raw, splits.layout, splits.prompt_style


def _read_rows(
    manifest: Mapping[str, Any],
    source: DataSpec | str | Path | Rows,
) -> tuple[RawSplit, RowLayout, PromptStyle]:
    field = "data.train" if isinstance(source, DataSpec) else FIELD
    if isinstance(source, DataSpec):
        spec = source
    elif isinstance(source, str | Path):
        path = Path(source).expanduser()
        if not path.is_file():
            raise DataError(
                f"{FIELD}: got {str(source)!r}, which is no file; allowed: a file of rows, such "
                "as .jsonl, .csv or .parquet, or the rows themselves. Correct the path."
            )
        # An absolute path cannot be mistaken for a hub id.
        spec = DataSpec(train=str(path.absolute()))
    else:
        spec = DataSpec(train=tuple(dict(row) for row in source))
    rows = read_rows(spec.train, field)
    # Rows in the training layout are read like training rows, with the same prompt template.
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


def _name(source: RowSource) -> str:
    if is_split(source):
        return source[1]
    if isinstance(source, DataSpec):
        return _name(source.train)
    return Path(source).name if isinstance(source, str | Path) else "rows"


def _build_row(
    pieces: Sequence[Sequence[int]],
    ends: Collection[int],
    max_tokens: int,
    tokenizer: PreTrainedTokenizerBase,
) -> EvaluationRow | None:
    """A row to evaluate from a sequence in pieces; `None` if the cut leaves no answer."""
    encoded = cut_example(*mark_answers(pieces), max_tokens)
    if encoded is None:
        return None
    marked = zip(encoded.input_ids.tolist(), encoded.is_answer.tolist(), strict=True)
    answers = [
        [token for token, _ in run]
        for is_answer, run in groupby(marked, key=lambda pair: pair[1])
        if is_answer
    ]
    *before, last = pieces
    # A completion is decoded without its end token, which need not be a special token.
    words = last[:-1] if last[-1] in ends else last
    return EvaluationRow(
        encoded=encoded,
        answer_bytes=sum(len(decode(tokenizer, answer).encode()) for answer in answers),
        prompt=tuple(token for piece in before for token in piece),
        reference=decode(tokenizer, words),
    )


def _with_answers(
    encoded: Sequence[tuple[str, EvaluationRow | None]], field: str, max_tokens: int, strict: bool
) -> list[tuple[str, EvaluationRow]]:
    """The rows with an answer after the cut; `strict` requires an answer in every row."""
    kept = [(where, row) for where, row in encoded if row is not None]
    lacking = [where for where, row in encoded if row is None]
    if lacking and (strict or not kept):
        raise DataError(
            f"{lacking[0]} has no answer within {max_tokens} tokens ({len(lacking)} of "
            f"{len(encoded)} rows have none); allowed: rows whose prompts are shorter than the "
            "data.max_tokens of the adapter's manifest. Shorten or remove them."
        )
    if lacking:
        logger.warning("%s: evaluating %d of %d rows", field, len(kept), len(encoded))
    return kept


def _require_truth(row: EvaluationRow, where: str, how: EvaluationSpec) -> None:
    if not row.prompt:
        raise DataError(
            f"{where} has an empty prompt, which cannot be completed; allowed: a prompt. "
            "Fill it in, or set evaluation.max_new_tokens to 0."
        )
    missing = missing_reading(how, row.reference)
    if missing is not None:
        field, value = missing
        raise DataError(
            f"evaluation.{field}: got {value!r}, which has no match in the reference of "
            f"{where}: {row.reference!r}; allowed: a value that every reference contains. Correct "
            f"evaluation.{field} or the row."
        )
