"""How the chats of a data set are asked: settled once, for all rows and for serving.

    as the spec says  ->  a thinking argument switched  ->  the prompt's end cut off

The first of these under which most answers of a sample follow their prompts is taken.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from trainables.chat.templates import (
    Asking,
    ChatTemplate,
    TemplateRefusalError,
    chat_template,
    with_forms,
)
from trainables.chat.tokens import Encoder, encode_text
from trainables.chat.turns import split_off_cut
from trainables.files.formats import ChatExample

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SWITCHES = ("enable_thinking", "thinking")
"""Template arguments by which prompts open or close a thought."""

_SAMPLE = 48
"""Chats that the settings are tried on: a template has few ways to render, rows are many."""


def settle_asking(
    chats: Sequence[ChatExample],
    tokenizer: PreTrainedTokenizerBase,
    template: str | None = None,
    template_args: Mapping[str, Any] | None = None,
    stops: Sequence[int] = (),
) -> Asking:
    """The settings that the chats are asked with; a pure function of the arguments.

    Args:
        chats: Those trained on.
        tokenizer: Of the base.
        template: Name of the chat template, where the tokenizer has several.
        template_args: What the spec gives to the template.
        stops: Tokens that the base stops at.

    Raises:
        DataError: There is no such template.
    """
    given = Asking(template=template, template_args=dict(template_args or {}))
    asking = with_forms(tokenizer, given)
    every = max(1, len(chats) // _SAMPLE)
    sample = chats[::every][:_SAMPLE]
    total = sum(len(chat.answers) for chat in sample)
    best, most = asking, (-1, -1)
    for candidate in _candidates(asking, sample, tokenizer):
        count = _count_learned(candidate, sample, tokenizer, stops)
        if count > most:
            best, most = candidate, count
        if most == (total, total):
            break
    return best


def _candidates(
    asking: Asking, sample: Sequence[ChatExample], tokenizer: PreTrainedTokenizerBase
) -> Iterator[Asking]:
    yield asking
    text = chat_template(tokenizer, asking.template)
    for name in _SWITCHES:
        if name in text and name not in asking.template_args:
            for value in (False, True):
                args = {**asking.template_args, name: value}
                yield replace(asking, template_args=args)
    for cut, _ in _cuts(asking, sample, tokenizer).most_common():
        yield replace(asking, prefill_cut=cut)


def _count_learned(
    asking: Asking,
    sample: Sequence[ChatExample],
    tokenizer: PreTrainedTokenizerBase,
    stops: Sequence[int],
) -> tuple[int, int]:
    """Answers that can be learned, and how many of them the template writes behind the prompt."""
    encoder = Encoder(tokenizer, asking, stops)
    found = [answer for chat in sample for answer in encoder.find_answers(chat)[0]]
    return len(found), sum(answer.is_direct for answer in found)


def _cuts(
    asking: Asking, sample: Sequence[ChatExample], tokenizer: PreTrainedTokenizerBase
) -> Counter[str]:
    """Ends of prompts that their answers' renderings do not have, and how often."""
    template = ChatTemplate(tokenizer, asking)
    found: Counter[str] = Counter()
    for chat in sample:
        for position in chat.answers:
            before = chat.turns[:position]
            try:
                history = template.render(before, chat.tools)
                prompt = template.render(before, chat.tools, is_prompt=True)
                whole = template.render(chat.turns[: position + 1], chat.tools)
            except TemplateRefusalError:
                continue
            cut = split_off_cut(prompt, whole, history, template)
            if cut and _is_at_token(prompt, cut, tokenizer):
                found[cut] += 1
    return found


def _is_at_token(prompt: str, cut: str, tokenizer: PreTrainedTokenizerBase) -> bool:
    whole = encode_text(tokenizer, prompt)
    kept = encode_text(tokenizer, prompt.removesuffix(cut))
    return whole[: len(kept)] == kept
