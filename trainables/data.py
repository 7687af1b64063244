"""Examples as a trial sees them: tokenized, with the answer tokens marked, cut at the limits.

All of it is a pure function of spec and tokenizer, so a worker that starts again sees the same
rows in the same order.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from trainables.asking import settle_asking
from trainables.bad_rows import bad_row, refuse_bad
from trainables.data_spec import DataSpec
from trainables.errors import DataError
from trainables.formats import ChatExample, Example, parse_row
from trainables.layouts import RowLayout
from trainables.learned import Learned, count_learned
from trainables.lengths import Lengths
from trainables.readers import BadRow
from trainables.splits import PromptStyle, RawSplit, RawSplits, canonical_json, read_raw_splits
from trainables.templates import Asking, template_digest
from trainables.tokens import EncodedExample, Encoder, mark_answers

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

IGNORED_TARGET = -100
"""Target of a position that does not count in the loss; what `torch` skips by default."""


@dataclass(frozen=True, kw_only=True)
class EncodedRow:
    """One example as tokens.

    Attributes:
        input_ids: `(length,)` int64.
        is_answer: `(length,)` bool: the token is part of an answer and counts in the loss. Never
            set on the first token, which nothing predicts.
        is_cut: `max_tokens` cut off a token of an answer, the end token at least.
    """

    input_ids: npt.NDArray[np.int64]
    is_answer: npt.NDArray[np.bool_]
    is_cut: bool = False


@dataclass(frozen=True, kw_only=True)
class Split:
    """One split, ready to batch.

    Attributes:
        rows: Sequences with at least one answer token left after the cut at `max_tokens`. A chat
            is one, or one for each answer where its template renders the history otherwise.
        examples: The raw row of each entry of `rows`.
        digest: `RawSplit.digest`: over all rows of the split, also those dropped from `rows`.
        lengths: Of all its sequences, and what the limit did to them.
        refused: Rows of which nothing can be learned with the tokenizer's chat template.
        learned: What is learned of it.
    """

    rows: tuple[EncodedRow, ...]
    examples: tuple[dict[str, Any], ...]
    digest: str
    lengths: Lengths
    refused: tuple[BadRow, ...] = ()
    learned: Learned = field(default_factory=Learned)


@dataclass(frozen=True, kw_only=True)
class Splits:
    """All that a trial trains and is measured on.

    Attributes:
        train: Its rows are cut at `train_max_tokens` too, where that is given.
        template_digest: `sha256:...` of the chat template and its settings; `None` when prompts
            are plain text.
        raw: The same splits before they were tokens.
        asking: How chats are asked; `None` when prompts are plain text.
    """

    train: Split
    validation: Split
    test: Split | None
    prompt_style: PromptStyle
    template_digest: str | None
    raw: RawSplits
    asking: Asking | None = None

    @property
    def by_name(self) -> dict[str, Split]:
        """The splits that there are."""
        named = {"train": self.train, "validation": self.validation, "test": self.test}
        return {name: split for name, split in named.items() if split is not None}


def load_splits(
    spec: DataSpec, tokenizer: PreTrainedTokenizerBase, stops: Sequence[int] = ()
) -> Splits:
    """Every split as tokens.

    Args:
        spec: Where the rows are and how they are asked.
        tokenizer: Of the base.
        stops: Tokens that the base stops at; see `trainables.stops`.

    Raises:
        DataError: As `read_raw_splits`; or the tokenizer has no end token or chat template,
            nothing can be learned of a row, or no row of a split has an answer within
            `max_tokens`.
    """
    splits = encode_splits(read_raw_splits(spec), spec, tokenizer, stops)
    for name, split in splits.by_name.items():
        is_short = name == "train" and spec.train_max_tokens is not None
        _warn_of_cut(
            "data.train_max_tokens" if is_short else "data.max_tokens", name, split.lengths
        )
    return splits


def encode_splits(
    raw: RawSplits, spec: DataSpec, tokenizer: PreTrainedTokenizerBase, stops: Sequence[int] = ()
) -> Splits:
    """Splits as tokens, as `load_splits` makes them; `Split.lengths` tells what was cut.

    Raises:
        DataError: As `load_splits` for rows that were read.
    """
    asking = _settle(raw, spec, tokenizer, stops) if raw.prompt_style == "chat" else None
    encoder = Encoder(tokenizer, asking, stops)

    def encode(split: RawSplit) -> Split:
        return _encode_split(split, raw.layout, encoder, spec)

    splits = Splits(
        train=encode(raw.train),
        validation=encode(raw.validation),
        test=encode(raw.test) if raw.test is not None else None,
        prompt_style=raw.prompt_style,
        template_digest=None if asking is None else template_digest(tokenizer, asking),
        raw=raw,
        asking=asking,
    )
    return splits if spec.train_max_tokens is None else _cut_train(splits, spec.train_max_tokens)


def require_known_tokens(splits: Splits, known: int, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse rows with a token that was added to the tokenizer, but not to the base.

    Args:
        splits: All rows.
        known: Rows of the base's embeddings.
        tokenizer: Names the token.

    Raises:
        DataError: A row has one.
    """
    for name, split in splits.by_name.items():
        highest = max((int(row.input_ids.max()) for row in split.rows), default=0)
        if highest >= known:
            token = tokenizer.convert_ids_to_tokens([highest])[0]
            raise DataError(
                f"data.{name}: a row has the token {token!r} with the id {highest}, but the base "
                f"has embeddings of {known} tokens alone; allowed: ids up to {known - 1}. The "
                "token was added to the tokenizer and not to the base: resize the base's "
                "embeddings and save it, or take the token out of the tokenizer and the rows."
            )


def cut_example(
    ids: Sequence[int], is_answer: Sequence[bool], max_tokens: int
) -> EncodedRow | None:
    """The first `max_tokens` tokens of an example; `None` where no answer token is among them."""
    counted = np.array(is_answer[:max_tokens], dtype=np.bool_)
    if not counted.any():
        return None
    return EncodedRow(
        input_ids=np.array(ids[:max_tokens], dtype=np.int64),
        is_answer=counted,
        is_cut=any(is_answer[max_tokens:]),
    )


def cut_train(splits: Splits, max_tokens: int) -> Splits:
    """The same splits with training rows of at most `max_tokens`; tokens are shared, not copied.

    Raises:
        DataError: No training row has an answer within `max_tokens`.
    """
    cut = _cut_train(splits, max_tokens)
    _warn_of_cut("data.train_max_tokens", "train", cut.train.lengths)
    return cut


def _cut_train(splits: Splits, max_tokens: int) -> Splits:
    kept = []
    for row, example in zip(splits.train.rows, splits.train.examples, strict=True):
        part = _cut_row(row, max_tokens)
        if part.is_answer.any():
            kept.append((part, example))
    cut_within = sum(row.is_cut for row, _ in kept)
    lengths = splits.train.lengths.cut_at(max_tokens, len(kept), cut_within)
    if not kept:
        raise _no_answer("data.train_max_tokens", lengths, "data.train")
    rows, examples = zip(*kept, strict=True)
    return replace(
        splits, train=replace(splits.train, rows=rows, examples=examples, lengths=lengths)
    )


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """`sha256:...` of what turns text into ids: the backend's state and the special tokens.

    Padding and truncation are left out: calls switch them on and off.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    state = tokenizer.get_vocab() if backend is None else json.loads(backend.to_str())
    if backend is not None:
        state.pop("padding", None)
        state.pop("truncation", None)
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    return _sha256(canonical_json({"backend": state, "special_tokens": special}))


def collate(
    rows: Sequence[EncodedRow], pad_id: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """`input_ids` and `targets`, both `(rows, longest)` int64, padded on the right.

    Targets are not shifted: position `t` holds `input_ids[t]` where that token is part of an
    answer, else `IGNORED_TARGET`. The logits that predict it stand at `t - 1`.
    """
    longest = max(len(row.input_ids) for row in rows)
    input_ids = np.full((len(rows), longest), pad_id, dtype=np.int64)
    targets = np.full((len(rows), longest), IGNORED_TARGET, dtype=np.int64)
    for position, row in enumerate(rows):
        length = len(row.input_ids)
        input_ids[position, :length] = row.input_ids
        targets[position, :length] = np.where(row.is_answer, row.input_ids, IGNORED_TARGET)
    return input_ids, targets


def _sha256(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def _settle(
    raw: RawSplits, spec: DataSpec, tokenizer: PreTrainedTokenizerBase, stops: Sequence[int]
) -> Asking:
    examples = (parse_row(row, raw.layout, raw.train.field) for row in raw.train.rows)
    chats = [example for example in examples if isinstance(example, ChatExample)]
    return settle_asking(chats, tokenizer, spec.template, spec.template_args, stops)


def _encode_split(raw: RawSplit, layout: RowLayout, encoder: Encoder, spec: DataSpec) -> Split:
    rows: list[EncodedRow] = []
    examples, refused, lengths = [], [], []
    encoded: list[tuple[Example, EncodedExample]] = []
    for row in raw.rows:
        try:
            example = parse_row(row, layout, raw.field)
            encoded.append((example, encoder.encode(example, f"{raw.field}: {row.place}")))
        except DataError as error:
            refused.append(bad_row(row, raw.field, error))
            continue
        for pieces in encoded[-1][1].sequences:
            ids, counted = mark_answers(pieces)
            lengths.append(len(ids))
            sequence = cut_example(ids, counted, spec.max_tokens)
            if sequence is not None:
                rows.append(sequence)
                examples.append(dict(row.values))
    if spec.on_bad_row == "fail" or not lengths:
        refuse_bad(refused, len(raw.rows), raw.field)
    found = Lengths(
        all=tuple(lengths),
        limit=spec.max_tokens,
        kept=len(rows),
        ends_lost=sum(row.is_cut for row in rows) + len(lengths) - len(rows),
    )
    if not rows:
        raise _no_answer("data.max_tokens", found, raw.field)
    return Split(
        rows=tuple(rows),
        examples=tuple(examples),
        digest=raw.digest,
        lengths=found,
        refused=tuple(refused),
        learned=count_learned(
            encoded,
            tokens=sum(len(row.input_ids) for row in rows),
            answer_tokens=sum(int(row.is_answer.sum()) for row in rows),
        ),
    )


def _cut_row(row: EncodedRow, max_tokens: int) -> EncodedRow:
    if len(row.input_ids) <= max_tokens:
        return row
    return EncodedRow(
        input_ids=row.input_ids[:max_tokens],
        is_answer=row.is_answer[:max_tokens],
        is_cut=row.is_cut or bool(row.is_answer[max_tokens:].any()),
    )


def _no_answer(limit: str, lengths: Lengths, field: str) -> DataError:
    return DataError(
        f"{limit}: none of {lengths.rows} rows of {field} has an answer within {lengths.limit} "
        f"tokens; allowed: a limit longer than the prompts ({lengths.longest} takes all rows "
        "whole). Raise it or shorten the prompts."
    )


def _warn_of_cut(limit: str, split: str, lengths: Lengths) -> None:
    if lengths.cut:
        logger.warning("data.%s: %s", split, lengths.describe(limit))
