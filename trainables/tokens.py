"""Examples to token ids, each marked whether it is part of an answer.

Chats go through the tokenizer's chat template. The ids before the first answer are always those
of its prompt alone, so a model is trained on the very prompts it is asked with.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jinja2

from trainables.errors import DataError
from trainables.formats import ChatExample, Example, PlainExample

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def encode_example(
    example: Example, tokenizer: PreTrainedTokenizerBase, where: str
) -> tuple[list[int], list[bool]]:
    """Token ids of an example, and for each whether it counts in the loss.

    The first token never counts: nothing predicts it.

    Args:
        example: What to encode.
        tokenizer: Of the base.
        where: Field and place of the example, for messages.

    Raises:
        DataError: The tokenizer has no end token, or its chat template does not fit the example.
    """
    return mark_answers(encode_pieces(example, tokenizer, where))


def encode_pieces(
    example: Example, tokenizer: PreTrainedTokenizerBase, where: str
) -> list[list[int]]:
    """Token ids of an example in pieces that alternate: context, answer, context, answer.

    The last piece is an answer with its end token; those before it are what a server is asked.

    Args:
        example: What to encode.
        tokenizer: Of the base.
        where: Field and place of the example, for messages.

    Raises:
        DataError: The tokenizer has no end token, or its chat template does not fit the example.
    """
    if isinstance(example, PlainExample):
        return _plain_pieces(example, tokenizer)
    return _chat_pieces(example, tokenizer, where)


def mark_answers(pieces: Sequence[Sequence[int]]) -> tuple[list[int], list[bool]]:
    """The tokens of `encode_pieces` in one list, and for each whether it counts in the loss."""
    ids = [token for piece in pieces for token in piece]
    is_answer = [number % 2 == 1 for number, piece in enumerate(pieces) for _ in piece]
    is_answer[:1] = [False]
    return ids, is_answer


def chat_template(tokenizer: PreTrainedTokenizerBase) -> str:
    """The Jinja text that conversations are rendered with.

    Raises:
        DataError: The tokenizer has none.
    """
    try:
        template: str = tokenizer.get_chat_template()
    except ValueError as error:
        raise DataError(
            "base.model: its tokenizer has no chat template, and data.train holds messages; "
            "allowed: an instruction-tuned base, or rows with prompt and completion as text. "
            "Change one of the two."
        ) from error
    return template


def _plain_pieces(example: PlainExample, tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    eos, bos = tokenizer.eos_token_id, tokenizer.bos_token_id
    if eos is None:
        raise DataError(
            "base.model: its tokenizer has no end token, so an answer could not end; allowed: a "
            "tokenizer with eos_token. Set it in the base's tokenizer_config.json."
        )
    prompt, answer = _encode_pieces(tokenizer, (example.prompt, example.answer))
    if bos is not None and tokenizer.encode("")[:1] == [bos]:
        prompt.insert(0, bos)
    if answer[-1:] != [eos]:
        answer.append(eos)
    return [prompt, answer]


def _chat_pieces(
    example: ChatExample, tokenizer: PreTrainedTokenizerBase, where: str
) -> list[list[int]]:
    whole = _render(tokenizer, example.turns, where)
    pieces, done = [], 0
    for position in example.answers:
        prompt = _render(tokenizer, example.turns[:position], where, is_prompt=True)
        until = _render(tokenizer, example.turns[: position + 1], where)
        end = _answer_end(whole, prompt, until, tokenizer.eos_token or "")
        if end is None:
            raise DataError(
                f"{where}: the chat template does not render message {position + 1} as its prompt "
                "with an answer behind it, so the answer's tokens cannot be told apart; allowed: "
                "a template that only appends. Use text in prompt and completion, or another base."
            )
        pieces += [whole[done : len(prompt)], whole[len(prompt) : end]]
        done = end
    return _encode_pieces(tokenizer, pieces)


def _answer_end(whole: str, prompt: str, until: str, eos: str) -> int | None:
    """Where in `whole` the answer to `prompt` ends, its end token included; `None` if unclear.

    `until` is the conversation up to that answer. Templates of reasoning models render a turn
    differently once another follows; then the answer is what `whole` has up to the end token,
    provided that `until` closes with the same words.
    """
    start = len(prompt)
    if not (whole.startswith(prompt) and until.startswith(prompt)):
        return None
    closing = until.rfind(eos, start) if eos else -1
    # What a template writes behind the end token, often a newline, is never generated.
    end = len(until) if closing < 0 else closing + len(eos)
    if whole.startswith(until[:end]):
        return end
    closing_in_whole = whole.find(eos, start) if closing >= 0 else -1
    words = whole[start:closing_in_whole] if closing_in_whole > start else ""
    if words and until[start:closing].endswith(words):
        return closing_in_whole + len(eos)
    return None


def _render(
    tokenizer: PreTrainedTokenizerBase,
    turns: Sequence[Mapping[str, Any]],
    where: str,
    *,
    is_prompt: bool = False,
) -> str:
    try:
        text: str = tokenizer.apply_chat_template(
            [dict(turn) for turn in turns], tokenize=False, add_generation_prompt=is_prompt
        )
    except jinja2.TemplateError as error:
        raise DataError(
            f"{where}: the chat template refuses the conversation: {error}; allowed: what the "
            "base's template takes. Change the roles or their order."
        ) from error
    return text


def _encode_pieces(tokenizer: PreTrainedTokenizerBase, pieces: Sequence[str]) -> list[list[int]]:
    """Token ids of each piece of one text.

    The text is encoded as a whole where tokens end with the pieces, since some tokenizers put a
    space before any text they are given; else each piece is encoded by itself.
    """
    whole = _encode(tokenizer, "".join(pieces))
    encoded, done = [], 0
    for until in itertools.accumulate(pieces):
        ids = _encode(tokenizer, until)
        if len(ids) < done or whole[: len(ids)] != ids:
            return [_encode(tokenizer, piece) for piece in pieces]
        encoded.append(ids[done:])
        done = len(ids)
    return encoded


def _encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False, verbose=False)
    return ids
