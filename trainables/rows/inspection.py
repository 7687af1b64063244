"""Inspection of the rows under a base's tokenizer, without loading weights."""

from __future__ import annotations

from trainables.base.shape import context_length, vocabulary_size
from trainables.base.stops import load_tokenizer_only, stop_tokens
from trainables.data_spec import DataSpec
from trainables.rows.chat_summary import chats_of
from trainables.rows.data import encode_splits, require_known_tokens
from trainables.rows.data_summary import DataSummary, summarize
from trainables.rows.splits import RawSplits
from trainables.spec import BaseSpec


def inspect_data(
    base: BaseSpec, data: DataSpec, raw: RawSplits, compared_on: int | None = None
) -> DataSummary:
    """Summary of the rows, tokenized with the tokenizer of a base.

    Args:
        base: The base whose tokenizer is used.
        data: The spec of the rows.
        raw: The rows.
        compared_on: Most validation rows for comparing trials.

    Raises:
        BaseModelError: The base has no tokenizer that can be read.
        DataError: No row of a split has an answer within its limit, or a row cannot be rendered,
            or has a token that the base does not know.
    """
    tokenizer = load_tokenizer_only(base)
    splits = encode_splits(raw, data, tokenizer, stop_tokens(base))
    known = vocabulary_size(base)
    if known is not None:
        require_known_tokens(splits, known, tokenizer)
    return summarize(
        raw,
        splits,
        positions=context_length(base),
        compared_on=compared_on,
        chats=chats_of(splits, tokenizer),
    )
