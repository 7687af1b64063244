"""Examples to token ids, each marked whether it is part of an answer.

Chats go through the tokenizer's chat template, one answer at a time. The ids of a prompt are
always those of the prompt alone, so a model is trained on the very prompts it is asked with; the
ids of an answer are those it has behind its prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trainables.chat.ending import Endings
from trainables.chat.templates import Asking, ChatTemplate
from trainables.chat.turns import Answer, CannotLearnError, find_answer
from trainables.errors import DataError
from trainables.files.formats import ChatExample, Example, PlainExample

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_LETTERS, _BREAKS = ("a", "x", "0"), ("\n", ".", ":")
"""Texts that an answer can be encoded behind where its prompt would merge with it."""


@dataclass(frozen=True, kw_only=True)
class EncodedExample:
    """What one row teaches, as tokens.

    Attributes:
        sequences: Each in pieces that alternate: context, answer, context, answer. The last piece
            is an answer with its end token; those before it are what a server is asked. A chat
            whose prompts go on from the answers before is one sequence, another has one for each
            answer.
        answers: Count of answers learned.
        unlearned: Why further answers are context only, one reason for each.
        ends: The tokens that end the answers.
    """

    sequences: tuple[tuple[tuple[int, ...], ...], ...]
    answers: int = 1
    unlearned: tuple[str, ...] = ()
    ends: frozenset[int] = frozenset()


class Encoder:
    """Turns examples into tokens, all of them asked in one way.

    Args:
        tokenizer: Of the base.
        asking: How chats are rendered; `None` where examples are plain text.
        stops: Tokens that the base stops at.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        asking: Asking | None = None,
        stops: Sequence[int] = (),
    ) -> None:
        """Raises `DataError` where chats are asked for and there is no chat template."""
        self._tokenizer = tokenizer
        self._template = None if asking is None else ChatTemplate(tokenizer, asking)
        names = [str(one) for one in tokenizer.convert_ids_to_tokens(list(stops))]
        self._endings = Endings(self._template, names) if self._template is not None else None

    def encode(self, example: Example, where: str) -> EncodedExample:
        """The tokens of an example.

        Args:
            example: What to encode.
            where: Field and place of the example, for messages.

        Raises:
            DataError: The tokenizer has no end token, or no answer of a chat can be learned.
        """
        if isinstance(example, PlainExample):
            return self._encode_plain(example)
        answers, refusals = self.find_answers(example)
        if not answers:
            raise DataError(f"{where}: {refusals[-1]}")
        pairs = [self._encode_answer(answer) for answer in answers]
        return EncodedExample(
            sequences=_joined(pairs),
            answers=len(answers),
            unlearned=tuple(refusals),
            ends=frozenset(answer[-1] for _, answer in pairs),
        )

    def find_answers(self, chat: ChatExample) -> tuple[list[Answer], list[str]]:
        """The answers of a chat that can be learned, and why the others cannot.

        Raises:
            DataError: The encoder was built for plain text.
        """
        if self._template is None or self._endings is None:
            raise DataError("data.train: got a chat among text; allowed: one of the two. Mend it.")
        answers, refusals = [], []
        for position in chat.answers:
            try:
                answers.append(find_answer(chat, position, self._template, self._endings))
            except CannotLearnError as error:
                refusals.append(str(error))
        return answers, refusals

    def _encode_plain(self, example: PlainExample) -> EncodedExample:
        eos, bos = self._end_token(), self._tokenizer.bos_token_id
        prompt = encode_text(self._tokenizer, example.prompt)
        answer = encode_behind(self._tokenizer, example.prompt, example.answer)
        is_begun = (prompt or answer)[:1] == [bos]
        if bos is not None and not is_begun and self._tokenizer.encode("")[:1] == [bos]:
            prompt.insert(0, bos)
        if answer[-1:] != [eos]:
            answer.append(eos)
        return EncodedExample(sequences=((tuple(prompt), tuple(answer)),), ends=frozenset([eos]))

    def _encode_answer(self, answer: Answer) -> tuple[list[int], list[int]]:
        prompt = encode_text(self._tokenizer, answer.prompt)
        ids = encode_behind(self._tokenizer, answer.prompt, answer.text)
        if answer.token is None:
            end = self._end_token()
        else:
            end = int(self._tokenizer.convert_tokens_to_ids(answer.token))
        return prompt, ids if ids[-1:] == [end] else [*ids, end]

    def _end_token(self) -> int:
        end = self._tokenizer.eos_token_id
        if end is None:
            raise DataError(
                "base.model: its tokenizer has no end token, so an answer could not end; allowed: "
                "a tokenizer with eos_token. Set it in the base's tokenizer_config.json."
            )
        return int(end)


def mark_answers(pieces: Sequence[Sequence[int]]) -> tuple[list[int], list[bool]]:
    """The tokens of a sequence in one list, and for each whether it counts in the loss.

    The first token never counts: nothing predicts it.
    """
    ids = [token for piece in pieces for token in piece]
    is_answer = [number % 2 == 1 for number, piece in enumerate(pieces) for _ in piece]
    is_answer[:1] = [False]
    return ids, is_answer


def encode_text(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids of a text, none added."""
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False, verbose=False)
    return ids


def encode_behind(tokenizer: PreTrainedTokenizerBase, prompt: str, text: str) -> list[int]:
    """Token ids of a text as it goes on from a prompt whose own ids stay as they are.

    A text by itself would have other ids: some tokenizers put a space before any text they are
    given. It is encoded behind its prompt; where the two would merge, behind something short that
    it does not merge with.
    """
    is_in_word = prompt[-1:].isalnum() and text[:1].isalnum()
    anchors = (*_LETTERS, *_BREAKS) if is_in_word else (*_BREAKS, *_LETTERS)
    for anchor in (prompt, *anchors):
        ids, both = encode_text(tokenizer, anchor), encode_text(tokenizer, anchor + text)
        if both[: len(ids)] == ids:
            return both[len(ids) :]
    return encode_text(tokenizer, text)


def _joined(
    pairs: Sequence[tuple[list[int], list[int]]],
) -> tuple[tuple[tuple[int, ...], ...], ...]:
    """One sequence where each prompt begins with the prompt and answer before it, else several."""
    pieces: list[tuple[int, ...]] = []
    done: list[int] = []
    for prompt, answer in pairs:
        if prompt[: len(done)] != done:
            return tuple((tuple(one), tuple(behind)) for one, behind in pairs)
        pieces += [tuple(prompt[len(done) :]), tuple(answer)]
        done = [*prompt, *answer]
    return (tuple(pieces),)
