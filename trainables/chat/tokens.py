"""Token ids of examples, with marks on the answer tokens.

Chats go through the tokenizer's chat template, one answer at a time. The ids of a prompt are
always those of the prompt alone, so a model is trained on exactly the prompts of serving; the ids
of an answer are those that follow the prompt.
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
"""Short texts to encode an answer behind, where the prompt would merge with the answer."""


@dataclass(frozen=True, kw_only=True)
class EncodedExample:
    """Token sequences and counts of one encoded row.

    Attributes:
        sequences: Each sequence in alternating pieces: context, answer, context, answer. The last
            piece is an answer with its end token; the pieces before are the prompt at serving. A
            chat whose prompts continue the earlier answers is one sequence; any other chat has one
            sequence for each answer.
        answers: Number of learned answers.
        unlearned: Reason of each answer that is context only.
        ends: The tokens that end the answers.
    """

    sequences: tuple[tuple[tuple[int, ...], ...], ...]
    answers: int = 1
    unlearned: tuple[str, ...] = ()
    ends: frozenset[int] = frozenset()


class Encoder:
    """Encoder of examples into tokens, with the same prompt settings for all.

    Args:
        tokenizer: Tokenizer of the base.
        asking: Prompt settings of chats; `None` where examples are plain text.
        stops: End tokens of the base's generation.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        asking: Asking | None = None,
        stops: Sequence[int] = (),
    ) -> None:
        """Raises `DataError` where chats need a chat template and none exists."""
        self._tokenizer = tokenizer
        self._template = None if asking is None else ChatTemplate(tokenizer, asking)
        names = [str(one) for one in tokenizer.convert_ids_to_tokens(list(stops))]
        self._endings = Endings(self._template, names) if self._template is not None else None

    def encode(self, example: Example, where: str) -> EncodedExample:
        """Token sequences of an example.

        Args:
            example: The example to encode.
            where: Field and place of the example, for messages.

        Raises:
            DataError: The tokenizer has no end token, or no answer of a chat can be learned.
        """
        if isinstance(example, PlainExample):
            return self._encode_plain(example)
        answers, refusals = self.find_answers(example)
        if not answers:
            raise DataError(f"{where}: {refusals[-1]}")
        pairs = []
        for answer in answers:
            prompt = encode_text(self._tokenizer, answer.prompt)
            ids = encode_behind(self._tokenizer, answer.prompt, answer.text)
            if answer.token is None:
                end = self._end_token()
            else:
                end = int(self._tokenizer.convert_tokens_to_ids(answer.token))
            pairs.append((prompt, ids if ids[-1:] == [end] else [*ids, end]))
        unwanted = [
            f"message {position + 1}: the row says not to learn it ({mark})."
            for position, mark in example.unwanted.items()
            if position < len(example.turns)
        ]
        return EncodedExample(
            sequences=_joined(pairs),
            answers=len(answers),
            unlearned=(*refusals, *unwanted),
            ends=frozenset(answer[-1] for _, answer in pairs),
        )

    def find_answers(self, chat: ChatExample) -> tuple[list[Answer], list[str]]:
        """The learnable answers of a chat, and the reasons against the other answers.

        Raises:
            DataError: The encoder was built for plain text.
        """
        if self._template is None or self._endings is None:
            raise DataError(
                "data.train: got a chat among text; allowed: one of the two. Correct the rows."
            )
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

    def _end_token(self) -> int:
        end = self._tokenizer.eos_token_id
        if end is None:
            raise DataError(
                "base.model: its tokenizer has no end token, so an answer could not end; allowed: "
                "a tokenizer with eos_token. Set it in the base's tokenizer_config.json."
            )
        return int(end)


def mark_answers(pieces: Sequence[Sequence[int]]) -> tuple[list[int], list[bool]]:
    """The tokens of a sequence in one list, with a mark on each token of the loss.

    The first token never counts, because no position predicts it.
    """
    ids = [token for piece in pieces for token in piece]
    is_answer = [number % 2 == 1 for number, piece in enumerate(pieces) for _ in piece]
    is_answer[:1] = [False]
    return ids, is_answer


def encode_text(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids of a text, without added special tokens."""
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False, verbose=False)
    return ids


def encode_behind(tokenizer: PreTrainedTokenizerBase, prompt: str, text: str) -> list[int]:
    """Token ids of a text behind a prompt, with the prompt's own ids unchanged.

    A separate text would have other ids, because some tokenizers put a space before any text. The
    text is therefore encoded behind its prompt, or, where the two would merge, behind a short text
    that does not merge.
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
    """One sequence if each prompt begins with the earlier prompt and answer, else several."""
    pieces: list[tuple[int, ...]] = []
    done: list[int] = []
    for prompt, answer in pairs:
        if prompt[: len(done)] != done:
            return tuple((tuple(one), tuple(behind)) for one, behind in pairs)
        pieces += [tuple(prompt[len(done) :]), tuple(answer)]
        done = [*prompt, *answer]
    return (tuple(pieces),)
