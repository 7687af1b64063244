"""What a base will make of the rows, told from its tokenizer alone: no weights are loaded."""

from __future__ import annotations

from trainables.base.shape import context_length
from trainables.base.stops import load_tokenizer_only, stop_tokens
from trainables.data_spec import DataSpec
from trainables.rows.chat_summary import chats_of
from trainables.rows.data import encode_splits
from trainables.rows.data_summary import DataSummary, summarize
from trainables.rows.splits import RawSplits
from trainables.spec import BaseSpec


def inspect_data(
    base: BaseSpec, data: DataSpec, raw: RawSplits, compared_on: int | None = None
) -> DataSummary:
    """How the rows are read, parted and cut with the tokenizer of a base.

    Args:
        base: Whose tokenizer is used.
        data: The spec that the rows are of.
        raw: The rows.
        compared_on: Most validation rows that trials are compared on.

    Raises:
        BaseModelError: The base has no tokenizer that can be read.
        DataError: No row of a split has an answer within its limit, or a row cannot be rendered.
    """
    tokenizer = load_tokenizer_only(base)
    splits = encode_splits(raw, data, tokenizer, stop_tokens(base))
    return summarize(
        raw,
        splits,
        positions=context_length(base),
        compared_on=compared_on,
        chats=chats_of(splits, tokenizer),
    )
