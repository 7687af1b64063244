"""Tokenized examples of a trial: answer tokens marked, rows cut at the limits.

The result is a pure function of spec and tokenizer, so a restarted worker sees the same rows in
the same order.
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

from trainables.chat.asking import settle_asking
from trainables.chat.learned import Learned, count_learned
from trainables.chat.templates import Asking, template_digest
from trainables.chat.tokens import EncodedExample, Encoder, mark_answers
from trainables.data_spec import DataSpec
from trainables.errors import DataError
from trainables.files.bad_rows import bad_row, refuse_bad
from trainables.files.formats import ChatExample, Example, parse_row
from trainables.files.layouts import RowLayout
from trainables.files.readers import BadRow
from trainables.rows.lengths import Lengths
from trainables.rows.splits import (
    PromptStyle,
    RawSplit,
    RawSplits,
    canonical_json,
    read_raw_splits,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

IGNORED_TARGET = -100
"""Target of a position outside the loss; `torch` ignores this value by default."""


@dataclass(frozen=True, kw_only=True)
class EncodedRow:
    """One example as tokens.

    Attributes:
        input_ids: `(length,)` int64.
        is_answer: `(length,)` bool: the token is part of an answer and counts in the loss. Never
            set on the first token, because no position predicts it.
        is_cut: `max_tokens` cut off a token of an answer, at least the end token.
    """

    input_ids: npt.NDArray[np.int64]
    is_answer: npt.NDArray[np.bool_]
    is_cut: bool = False


@dataclass(frozen=True, kw_only=True)
class Split:
    """One split, ready to batch.

    Attributes:
        rows: Sequences with at least one answer token left after the cut at `max_tokens`. A chat
            is one sequence, or one for each answer where its template renders the history
            differently.
        examples: The raw row of each entry of `rows`.
        digest: `RawSplit.digest`: over all rows of the split, including those dropped from `rows`.
        lengths: Lengths of all sequences, and the effect of the limit.
        refused: Rows without a learnable answer under the tokenizer's chat template.
        learned: Counts of the learned answers.
    """

    rows: tuple[EncodedRow, ...]
    examples: tuple[dict[str, Any], ...]
    digest: str
    lengths: Lengths
    refused: tuple[BadRow, ...] = ()
    learned: Learned = field(default_factory=Learned)


@dataclass(frozen=True, kw_only=True)
class Splits:
    """All splits of a trial as tokens.

    Attributes:
        train: Rows cut at `train_max_tokens` too, where that limit is given.
        template_digest: `sha256:...` of the chat template and its settings; `None` when prompts
            are plain text.
        raw: The same splits before tokenization.
        asking: Settings of the chat template; `None` when prompts are plain text.
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
        """The existing splits by name."""
        named = {"train": self.train, "validation": self.validation, "test": self.test}
        return {name: split for name, split in named.items() if split is not None}


def load_splits(
    spec: DataSpec, tokenizer: PreTrainedTokenizerBase, stops: Sequence[int] = ()
) -> Splits:
    """Every split of a spec as tokens.

    Args:
        spec: Data spec of the trial.
        tokenizer: Tokenizer of the base.
        stops: End tokens of the base's generation; see `trainables.base.stops`.

    Raises:
        DataError: As `read_raw_splits`; or the tokenizer has no end token or chat template, a row
            has no learnable answer, or no row of a split has an answer within `max_tokens`.
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
    """Tokenized splits, as from `load_splits`; `Split.lengths` counts the cut rows.

    Raises:
        DataError: As `load_splits`, apart from errors of reading.
    """
    asking = None
    if raw.prompt_style == "chat":
        examples = (parse_row(row, raw.layout, raw.train.field) for row in raw.train.rows)
        chats = [example for example in examples if isinstance(example, ChatExample)]
        asking = settle_asking(chats, tokenizer, spec.template, spec.template_args, stops)
    encoder = Encoder(tokenizer, asking, stops)
    train = _encode_split(raw.train, raw.layout, encoder, spec)
    validation = _encode_split(raw.validation, raw.layout, encoder, spec)
    test = None if raw.test is None else _encode_split(raw.test, raw.layout, encoder, spec)
    splits = Splits(
        train=train,
        validation=validation,
        test=test,
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
        tokenizer: Tokenizer of the base, for the name of the token.

    Raises:
        DataError: A row has such a token.
    """
    for name, split in splits.by_name.items():
        highest = max((int(row.input_ids.max()) for row in split.rows), default=0)
        if highest >= known:
            token = tokenizer.convert_ids_to_tokens([highest])[0]
            raise DataError(
                f"data.{name}: a row has the token {token!r} with the id {highest}, but the base "
                f"has only {known} embeddings; allowed: ids up to {known - 1}. The token was "
                "added to the tokenizer and not to the base: resize the base's embeddings and "
                "save the base, or remove the token from the tokenizer and the rows."
            )


def cut_example(
    ids: Sequence[int], is_answer: Sequence[bool], max_tokens: int
) -> EncodedRow | None:
    """The first `max_tokens` tokens of an example; `None` if no answer token is among them."""
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
        part = row
        if len(row.input_ids) > max_tokens:
            part = EncodedRow(
                input_ids=row.input_ids[:max_tokens],
                is_answer=row.is_answer[:max_tokens],
                is_cut=row.is_cut or bool(row.is_answer[max_tokens:].any()),
            )
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
    """Digest `sha256:...` of a tokenizer: the backend's state and the special tokens.

    Padding and truncation are left out, because calls change both.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    state = tokenizer.get_vocab() if backend is None else json.loads(backend.to_str())
    if backend is not None:
        state.pop("padding", None)
        state.pop("truncation", None)
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    content = canonical_json({"backend": state, "special_tokens": special})
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def collate(
    rows: Sequence[EncodedRow], pad_id: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Padded batch: `input_ids` and `targets`, both `(rows, longest)` int64, padded on the right.

    Targets are not shifted: position `t` holds `input_ids[t]` where the token is part of an
    answer, else `IGNORED_TARGET`. The logits at `t - 1` predict the token at `t`.
    """
    longest = max(len(row.input_ids) for row in rows)
    input_ids = np.full((len(rows), longest), pad_id, dtype=np.int64)
    targets = np.full((len(rows), longest), IGNORED_TARGET, dtype=np.int64)
    for position, row in enumerate(rows):
        length = len(row.input_ids)
        input_ids[position, :length] = row.input_ids
        targets[position, :length] = np.where(row.is_answer, row.input_ids, IGNORED_TARGET)
    return input_ids, targets


def _encode_split(raw: RawSplit, layout: RowLayout, encoder: Encoder, spec: DataSpec) -> Split:
    rows: list[EncodedRow] = []
    examples, refused, lengths, answers = [], [], [], []
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
            answers.append(int(sum(counted)))
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
        answers=tuple(answers),
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


def _no_answer(limit: str, lengths: Lengths, field: str) -> DataError:
    return DataError(
        f"{limit}: none of {lengths.rows} rows of {field} has an answer within {lengths.limit} "
        f"tokens; allowed: a limit longer than the prompts (no row is longer than "
        f"{lengths.longest}). Raise it or shorten the prompts."
    )


def _warn_of_cut(limit: str, split: str, lengths: Lengths) -> None:
    if lengths.cut:
        logger.warning("data.%s: %s", split, lengths.describe(limit))
