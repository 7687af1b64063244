"""Prompt settings for the chats of a data set: chosen once, for all rows and for serving.

    the spec's settings  ->  a thinking argument switched  ->  the prompt's end cut off

The candidate with the most learnable answers in a sample is chosen; among equals, the candidate
with the most answers that follow their prompts, and then the first.
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
"""Template arguments that make prompts open or close a thought."""

_SAMPLE = 48
"""Size of the sample of chats: a template has few ways to render, but the rows are many."""


def settle_asking(
    chats: Sequence[ChatExample],
    tokenizer: PreTrainedTokenizerBase,
    template: str | None = None,
    template_args: Mapping[str, Any] | None = None,
    stops: Sequence[int] = (),
) -> Asking:
    """The prompt settings for the chats; a pure function of the arguments.

    Args:
        chats: Training chats.
        tokenizer: Tokenizer of the base.
        template: Name of the chat template, where the tokenizer has several.
        template_args: Template arguments from the spec.
        stops: End tokens of the base's generation.

    Raises:
        DataError: The template does not exist.
    """
    given = Asking(template=template, template_args=dict(template_args or {}))
    asking = with_forms(tokenizer, given)
    every = max(1, len(chats) // _SAMPLE)
    sample = chats[::every][:_SAMPLE]
    total = sum(len(chat.answers) for chat in sample)
    best, most = asking, (-1, -1)
    for candidate in _candidates(asking, sample, tokenizer):
        encoder = Encoder(tokenizer, candidate, stops)
        found = [answer for chat in sample for answer in encoder.find_answers(chat)[0]]
        count = (len(found), sum(answer.is_direct for answer in found))
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


def _cuts(
    asking: Asking, sample: Sequence[ChatExample], tokenizer: PreTrainedTokenizerBase
) -> Counter[str]:
    """Number of occurrences of each prompt end that rendered answers lack."""
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
            if not cut:
                continue
            kept = encode_text(tokenizer, prompt.removesuffix(cut))
            if encode_text(tokenizer, prompt)[: len(kept)] == kept:  # no token crosses the cut
                found[cut] += 1
    return found
