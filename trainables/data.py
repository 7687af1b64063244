"""Examples as a trial sees them: split without leaks, tokenized, with the answer tokens marked.

All of it is a pure function of spec and tokenizer, so a worker that starts again sees the same
rows in the same order.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from trainables.errors import DataError
from trainables.formats import (
    ChatExample,
    Example,
    PlainExample,
    RowFormat,
    detect_format,
    parse_row,
)
from trainables.sources import RawRow, read_rows
from trainables.spec import DataSpec
from trainables.asking import settle_asking
from trainables.templates import Asking, template_digest
from trainables.tokens import EncodedExample, Encoder, mark_answers
from trainables.turns import has_thought

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

PromptStyle = Literal["plain", "chat"]

IGNORED_TARGET = -100
"""Target of a position that does not count in the loss; what `torch` skips by default."""

_MOST_SHOWN = 10
"""Most rows that an error names one by one."""

_WINDOW_BATCHES = 16
"""Most batches sorted by length together: more saves padding, fewer mixes better."""

_WINDOWS_PER_EPOCH = 8
"""Fewest windows of an epoch: sorted whole, a small data set would repeat the same batches."""


@dataclass(frozen=True, kw_only=True)
class RawSplit:
    """Checked rows of one split before they are tokens.

    Attributes:
        field: Dotted field of the source the rows came from.
        rows: In the order of their source.
        digest: `sha256:...` over the rows in their order; independent of the tokenizer.
    """

    field: str
    rows: tuple[RawRow, ...]
    digest: str


@dataclass(frozen=True, kw_only=True)
class RawSplits:
    """Train, validation and test rows before they are tokens."""

    train: RawSplit
    validation: RawSplit
    test: RawSplit | None
    row_format: RowFormat
    prompt_style: PromptStyle


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
class SplitCounts:
    """What became of the raw rows of a split.

    Attributes:
        rows: All of them.
        split_rows: Chats that gave one sequence for each of their answers.
        joined_rows: Chats of several answers in one sequence.
        cut: Sequences that were longer than the limit.
        dropped: Sequences that had no answer within the limit.
        answers: Answers learned.
        unlearned: Answers that became context, by the reason.
        tokens: Of the sequences, after the cut.
        answer_tokens: Those of them that count in the loss.
        tools: Rows with tools on offer or called.
        thoughts: Rows with a thought beside or in an answer.
        systems: Rows with a system turn.
        ends: Tokens that end the answers.
    """

    rows: int
    split_rows: int = 0
    joined_rows: int = 0
    cut: int = 0
    dropped: int = 0
    answers: int = 0
    unlearned: Mapping[str, int] = field(default_factory=dict)
    tokens: int = 0
    answer_tokens: int = 0
    tools: int = 0
    thoughts: int = 0
    systems: int = 0
    ends: frozenset[int] = frozenset()


@dataclass(frozen=True, kw_only=True)
class Split:
    """One split, ready to batch.

    Attributes:
        rows: Sequences with at least one answer token left after the cut at `max_tokens`. A chat
            is one, or one for each answer where its template renders the history otherwise.
        examples: The raw row of each entry of `rows`.
        digest: `RawSplit.digest`: over all rows of the split, also those dropped from `rows`.
        counts: What became of the raw rows.
    """

    rows: tuple[EncodedRow, ...]
    examples: tuple[dict[str, Any], ...]
    digest: str
    counts: SplitCounts


@dataclass(frozen=True, kw_only=True)
class Splits:
    """All that a trial trains and is measured on.

    Attributes:
        train: Its rows are cut at `train_max_tokens` too, where that is given.
        template_digest: `sha256:...` of the chat template and its settings; `None` when prompts
            are plain text.
        asking: How chats are asked; `None` when prompts are plain text.
    """

    train: Split
    validation: Split
    test: Split | None
    prompt_style: PromptStyle
    template_digest: str | None
    asking: Asking | None = None

    @property
    def given(self) -> tuple[Split, ...]:
        """The splits that there are."""
        return tuple(one for one in (self.train, self.validation, self.test) if one is not None)

    @property
    def ends(self) -> tuple[int, ...]:
        """Tokens that end the answers of any split, ascending."""
        return tuple(sorted(frozenset().union(*(one.counts.ends for one in self.given))))


def read_raw_splits(spec: DataSpec) -> RawSplits:
    """Rows read, checked and split; needs no tokenizer, so a driver can call it before GPU time.

    A row falls in a split by a hash of `split_seed` and its `group_by` value (or the whole row),
    so it stays there whatever rows are added, removed or reordered.

    Raises:
        DataError: A source or row cannot be used, or a split has no rows.
    """
    sources = {
        "data.train": spec.train,
        "data.validation": spec.validation,
        "data.test": spec.test,
    }
    given = {
        field: read_rows(source, field, spec.revision)
        for field, source in sources.items()
        if source is not None
    }
    row_format = detect_format(given["data.train"][0], spec.format, "data.train")
    style = _check_rows(given, row_format)
    train = given["data.train"]
    fractions = {
        "data.validation": 0.0 if "data.validation" in given else spec.validation_fraction,
        "data.test": 0.0 if "data.test" in given else spec.test_fraction,
    }
    raw = {field: raw_split(rows, field) for field, rows in given.items()}
    if any(fractions.values()):
        raw |= {
            field: raw_split(rows, "data.train")
            for field, rows in _split_off(train, fractions, spec).items()
        }
    return RawSplits(
        train=raw["data.train"],
        validation=raw["data.validation"],
        test=raw.get("data.test"),
        row_format=row_format,
        prompt_style=style,
    )


def load_splits(
    spec: DataSpec, tokenizer: PreTrainedTokenizerBase, stops: Sequence[int] = ()
) -> Splits:
    """Every split as tokens.

    Args:
        spec: Where the rows are and how they are asked.
        tokenizer: Of the base.
        stops: Tokens that the base stops at; see `trainables.stops`.

    Raises:
        DataError: As `read_raw_splits`; or the tokenizer has no end token or chat template, the
            template refuses a row, or no row of a split has an answer within `max_tokens`.
    """
    raw = read_raw_splits(spec)
    asking = _settle(raw, spec, tokenizer, stops) if raw.prompt_style == "chat" else None
    encoder = Encoder(tokenizer, asking, stops)

    def encode(split: RawSplit) -> Split:
        return _encode_split(split, raw.row_format, encoder, spec.max_tokens)

    splits = Splits(
        train=encode(raw.train),
        validation=encode(raw.validation),
        test=encode(raw.test) if raw.test is not None else None,
        prompt_style=raw.prompt_style,
        template_digest=None if asking is None else template_digest(tokenizer, asking),
        asking=asking,
    )
    return splits if spec.train_max_tokens is None else cut_train(splits, spec.train_max_tokens)


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
    kept = []
    for row, example in zip(splits.train.rows, splits.train.examples, strict=True):
        part = _cut_row(row, max_tokens)
        if part.is_answer.any():
            kept.append((part, example))
    total = len(splits.train.rows)
    if not kept:
        raise _no_answer("data.train_max_tokens", total, "data.train", max_tokens)
    cut = sum(len(row.input_ids) > max_tokens for row in splits.train.rows)
    _warn_of_cut("data.train_max_tokens", "data.train", total, max_tokens, cut, total - len(kept))
    rows, examples = zip(*kept, strict=True)
    return replace(splits, train=replace(splits.train, rows=rows, examples=examples))


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
    return _sha256(_canonical_json({"backend": state, "special_tokens": special}))


def batch_rows(lengths: Sequence[int], batch_size: int, seed: int, step: int) -> list[int]:
    """Positions of the rows that optimizer step `step` (from 0) trains on; a pure function.

    Every epoch shows each row once, except the last `rows % batch_size` of its shuffle. Rows of
    similar length share a batch: shuffled windows of batches are sorted by length, and the batches
    shuffled again. Fewer rows than `batch_size` are repeated to fill it.

    Args:
        lengths: Tokens per row; a tuple saves copying it.
        batch_size: Rows per step.
        seed: Any integer.
        step: Optimizer step, from 0.

    Raises:
        DataError: There are no rows.
    """
    if not lengths:
        raise DataError("data.train: got no rows to batch; allowed: at least one. Add rows.")
    epoch, position = divmod(step, max(1, len(lengths) // batch_size))
    rows: list[int] = _epoch_batches(tuple(lengths), batch_size, seed, epoch)[position].tolist()
    return rows


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


def raw_split(rows: tuple[RawRow, ...], field: str) -> RawSplit:
    """Rows of one source with their digest."""
    digest = _sha256(_canonical_json([dict(row.values) for row in rows]))
    return RawSplit(field=field, rows=rows, digest=digest)


def style_of(example: Example) -> PromptStyle:
    """How an example asks: by text or by messages."""
    return "chat" if isinstance(example, ChatExample) else "plain"


def _canonical_json(value: object) -> bytes:
    # default=str: Parquet cells can be dates or decimals.
    return json.dumps(value, sort_keys=True, separators=(",", ":"), default=str).encode()


def _sha256(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def _check_rows(given: Mapping[str, tuple[RawRow, ...]], row_format: RowFormat) -> PromptStyle:
    """Parse every row; the style they share."""
    first = style_of(parse_row(given["data.train"][0], row_format, "data.train"))
    for field, rows in given.items():
        for row in rows:
            style = style_of(parse_row(row, row_format, field))
            if style != first:
                raise DataError(
                    f"{field}: {row.place} is {style} but the first row of data.train is {first}; "
                    "allowed: one of the two in all rows. Write all prompts as text, or all as "
                    "messages."
                )
    return first


def _split_off(
    train: tuple[RawRow, ...], fractions: Mapping[str, float], spec: DataSpec
) -> dict[str, tuple[RawRow, ...]]:
    """What stays in `data.train`, and what goes to each field with a fraction above 0."""
    parts: dict[str, list[RawRow]] = {"data.train": []}
    parts |= {field: [] for field, fraction in fractions.items() if fraction > 0}
    for row in train:
        draw = _uniform(spec.split_seed, _group(row, spec.group_by))
        chosen = "data.train"
        for field, fraction in fractions.items():
            if 0 <= draw < fraction:
                chosen = field
            draw -= fraction
        parts[chosen].append(row)
    for field, rows in parts.items():
        if not rows:
            raise DataError(
                f"data.train: splitting {len(train)} rows by {dict(fractions)} left none for "
                f"{field}; allowed: at least one row in every split. Change the fractions or "
                "data.split_seed, add rows or groups, or give data.validation and data.test."
            )
    return {field: tuple(rows) for field, rows in parts.items()}


def _group(row: RawRow, column: str | None) -> object:
    if column is None:
        return dict(row.values)
    if row.values.get(column) is None:
        raise DataError(
            f"data.group_by: {row.place} has no value in column {column!r}; allowed: a column "
            f"that every row fills, of {', '.join(row.values)}. Name another column or fill it in."
        )
    return row.values[column]


def _uniform(seed: int, group: object) -> float:
    """A number in [0, 1) that depends on nothing but the arguments."""
    digest = hashlib.sha256(_canonical_json([seed, group])).digest()
    return int.from_bytes(digest[:7], "big") / 2**56


def _settle(
    raw: RawSplits, spec: DataSpec, tokenizer: PreTrainedTokenizerBase, stops: Sequence[int]
) -> Asking:
    examples = (parse_row(row, raw.row_format, raw.train.field) for row in raw.train.rows)
    chats = [example for example in examples if isinstance(example, ChatExample)]
    return settle_asking(chats, tokenizer, spec.template, spec.template_args, stops)


def _encode_split(
    raw: RawSplit, row_format: RowFormat, encoder: Encoder, max_tokens: int
) -> Split:
    rows, examples, encoded, refused = [], [], [], []
    tally = Counter[str]()
    for row in raw.rows:
        example = parse_row(row, row_format, raw.field)
        try:
            one = encoder.encode(example, f"{raw.field}: {row.place}")
        except DataError as error:
            refused.append(error)
            continue
        encoded.append(one)
        tally.update(_features(example))
        for pieces in one.sequences:
            ids, counted = mark_answers(pieces)
            tally["cut"] += len(ids) > max_tokens
            sequence = cut_example(ids, counted, max_tokens)
            if sequence is not None:
                rows.append(sequence)
                examples.append(dict(row.values))
    _require_learnable(refused, len(raw.rows), raw.field)
    total = sum(len(one.sequences) for one in encoded)
    if not rows:
        raise _no_answer("data.max_tokens", total, raw.field, max_tokens)
    dropped = total - len(rows)
    _warn_of_cut("data.max_tokens", raw.field, total, max_tokens, tally["cut"], dropped)
    counts = SplitCounts(
        rows=len(raw.rows),
        split_rows=sum(len(one.sequences) > 1 for one in encoded),
        joined_rows=sum(len(one.sequences) == 1 < one.answers for one in encoded),
        cut=tally["cut"],
        dropped=dropped,
        answers=sum(one.answers for one in encoded),
        unlearned=_reasons(encoded),
        tokens=sum(len(row.input_ids) for row in rows),
        answer_tokens=sum(int(row.is_answer.sum()) for row in rows),
        tools=tally["tools"],
        thoughts=tally["thoughts"],
        systems=tally["systems"],
        ends=frozenset().union(*(one.ends for one in encoded)),
    )
    return Split(rows=tuple(rows), examples=tuple(examples), digest=raw.digest, counts=counts)


def _features(example: Example) -> list[str]:
    """What a row asks of a chat template, by the name of its count."""
    if isinstance(example, PlainExample):
        return []
    found = {
        "tools": bool(example.tools) or any("tool_calls" in turn for turn in example.turns),
        "thoughts": any(has_thought(example.turns[position]) for position in example.answers),
        "systems": any(turn["role"] in ("system", "developer") for turn in example.turns),
    }
    return [name for name, is_there in found.items() if is_there]


def _reasons(encoded: Sequence[EncodedExample]) -> dict[str, int]:
    """How many answers became context, by why: without the number of the message."""
    reasons = (reason for one in encoded for reason in one.unlearned)
    return dict(Counter(reason.partition(": ")[2] for reason in reasons).most_common())


def _require_learnable(refused: Sequence[DataError], rows: int, field: str) -> None:
    if not refused:
        return
    shown = [str(error) for error in refused[:_MOST_SHOWN]]
    if len(refused) > 1:
        shown.append(f"In all {len(refused)} of {rows} rows of {field} cannot be learned.")
    raise DataError("\n".join(shown)) from refused[0]


def _cut_row(row: EncodedRow, max_tokens: int) -> EncodedRow:
    if len(row.input_ids) <= max_tokens:
        return row
    return EncodedRow(
        input_ids=row.input_ids[:max_tokens],
        is_answer=row.is_answer[:max_tokens],
        is_cut=row.is_cut or bool(row.is_answer[max_tokens:].any()),
    )


def _no_answer(limit: str, rows: int, field: str, max_tokens: int) -> DataError:
    return DataError(
        f"{limit}: none of {rows} rows of {field} has an answer within {max_tokens} tokens; "
        "allowed: a limit longer than the prompts. Raise it or shorten the prompts."
    )


def _warn_of_cut(
    limit: str, field: str, rows: int, max_tokens: int, cut: int, dropped: int
) -> None:
    if cut or dropped:
        logger.warning(
            "%s: of %d rows, %d were longer than %s=%d and cut; %d of them dropped, as no answer "
            "was left",
            field,
            rows,
            cut,
            limit,
            max_tokens,
            dropped,
        )


# One order per seed and epoch is asked for many times; 64 covers the trials of a full pack.
@functools.lru_cache(maxsize=64)
def _epoch_batches(
    lengths: tuple[int, ...], batch_size: int, seed: int, epoch: int
) -> npt.NDArray[np.int64]:
    """`(steps, batch_size)` row positions of one epoch."""
    generator = np.random.default_rng([seed % 2**64, epoch])
    order = generator.permutation(len(lengths))
    if len(lengths) < batch_size:
        return np.resize(order, (1, batch_size))
    steps = len(order) // batch_size
    kept = order[: steps * batch_size]
    by_row = np.asarray(lengths)
    window = batch_size * min(_WINDOW_BATCHES, max(1, steps // _WINDOWS_PER_EPOCH))
    for start in range(0, len(kept), window):
        rows = kept[start : start + window]
        kept[start : start + window] = rows[np.argsort(by_row[rows], kind="stable")]
    batches = kept.reshape(-1, batch_size)
    return batches[generator.permutation(len(batches))]
