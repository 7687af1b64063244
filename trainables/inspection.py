"""What a base will make of the rows, told from its tokenizer alone: no weights are loaded."""

from __future__ import annotations

from trainables.chat_summary import chats_of
from trainables.data import encode_splits, require_known_tokens
from trainables.data_spec import DataSpec
from trainables.data_summary import DataSummary, summarize
from trainables.shape import context_length, vocabulary_size
from trainables.spec import BaseSpec
from trainables.splits import RawSplits
from trainables.stops import load_tokenizer_only, stop_tokens


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
