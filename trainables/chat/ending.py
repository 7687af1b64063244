"""What ends an answer: read off what a chat template writes behind it.

In this order: the closing control token that the base stops at; the last control token that a
template writes both behind a last answer and behind one that another turn follows; the first one
that it writes when another turn follows; else the tokenizer's end token is appended. A token that
closes a whole conversation, behind one that closes each turn (Phi-3), is not the end of an answer.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trainables.chat.templates import (
    PROBE,
    ChatTemplate,
    TemplateRefusalError,
    Turns,
    common_start,
)

_NEXT = f"next{PROBE}"


@dataclass(frozen=True, kw_only=True)
class Ending:
    """What is learned behind the words of an answer.

    Attributes:
        text: As the template writes it, up to and with `token`.
        token: The control token that ends `text`; `None` where the tokenizer's end token has to
            be appended.
    """

    text: str
    token: str | None


class Endings:
    """Endings of answers under one template; those of plain answers are found once for each shape.

    Args:
        template: The template.
        stops: Control tokens that the base stops at; the tokenizer's end token is one.
    """

    def __init__(self, template: ChatTemplate, stops: Collection[str]) -> None:
        self._template = template
        end = template.tokenizer.eos_token
        self.stops = frozenset(stops) | ({str(end)} if end is not None else set())
        self._known: dict[tuple[Any, ...], tuple[str, Ending] | None] = {}

    def of_words(self, before: Turns, tools: Turns) -> tuple[str, Ending] | None:
        """All that the template writes behind the words of a last answer, and what of it counts.

        Args:
            before: The turns before the answer.
            tools: On offer.

        Returns:
            `None` where the template does not write the words of an answer as they are.
        """
        key = (*(turn["role"] for turn in before), bool(tools))
        if key not in self._known:
            self._known[key] = self._find(before, tools)
        return self._known[key]

    def of_calls(self, turns: Turns, tools: Turns, text: str) -> tuple[str, Ending] | None:
        """All that the template writes behind the name of the last call, and what of it counts.

        Args:
            turns: The turns through a last answer that calls tools.
            tools: On offer.
            text: The rendering of the two.

        Returns:
            `None` where the template writes no call.
        """
        name = turns[-1]["tool_calls"][-1]["function"]["name"]
        _, found, last = text.rpartition(name)
        if not found:
            return None
        closing = self._template.find_control(last)
        stop = [one for one in closing if one[2] in self.stops]
        if stop:
            return last, _until(last, stop[:1])
        longer = self._followed(turns, tools)
        if longer is None:
            return last, _until(last, closing[-1:])
        # The result of a call may bear its name, too.
        behind = name.join(longer.split(name)[text.count(name) :])
        following = self._template.find_control(behind)
        written = {token for _, _, token in following} - self._inner(turns, tools)
        shared = [one for one in closing if one[2] in written]
        if shared:
            return last, _until(last, shared[-1:])
        reach = common_start(last, behind)
        first = [one for one in following if one[1] > reach][:1]
        return last, _until(behind if first else last, first)

    def _find(self, before: Turns, tools: Turns) -> tuple[str, Ending] | None:
        turns = [*before, {"role": "assistant", "content": PROBE}]
        _, found, last = self._template.render(turns, tools).rpartition(PROBE)
        if not found:
            return None
        closing = self._template.find_control(last)
        behind = self._behind(turns, tools)
        if behind is None:
            # The template takes no further turn: what closes this one ends it.
            stop = [one for one in closing if one[2] in self.stops]
            return last, _until(last, stop[:1] or closing[-1:])
        following = self._template.find_control(behind)
        written = {token for _, _, token in following}
        shared = [one for one in closing if one[2] in written]
        stop = [one for one in shared or closing if one[2] in self.stops]
        if stop or shared:
            return last, _until(last, stop[:1] or shared[-1:])
        return last, _until(behind if following else last, following[:1])

    def _behind(self, turns: Turns, tools: Turns) -> str | None:
        """What the template writes between an answer and the words of a user who goes on."""
        follow = {"role": "user", "content": _NEXT}
        try:
            text = self._template.render([*turns, follow], tools)
        except TemplateRefusalError:
            return None
        head, found, _ = text.rpartition(_NEXT)
        _, is_written, behind = head.rpartition(PROBE)
        return behind if found and is_written else None

    def _followed(self, turns: Turns, tools: Turns) -> str | None:
        calls: Sequence[Mapping[str, Any]] = turns[-1]["tool_calls"]
        results = [
            {
                "role": "tool",
                "name": call["function"]["name"],
                "content": _NEXT,
                **({"tool_call_id": call["id"]} if "id" in call else {}),
            }
            for call in calls
        ]
        try:
            text = self._template.render([*turns, *results], tools)
        except TemplateRefusalError:
            return None
        head, found, _ = text.partition(_NEXT)
        return head if found else None

    def _inner(self, turns: Turns, tools: Turns) -> set[str]:
        """Control tokens that belong to a call: two calls have more of them than one."""
        *before, answer = turns
        one, two = ({**answer, "tool_calls": answer["tool_calls"] * times} for times in (1, 2))
        try:
            texts = [self._template.render([*before, turn], tools) for turn in (one, two)]
        except TemplateRefusalError:
            return set()
        counts = [[token for *_, token in self._template.find_control(text)] for text in texts]
        return {token for token in counts[1] if counts[1].count(token) > counts[0].count(token)}


def _until(text: str, controls: Sequence[tuple[int, int, str]]) -> Ending:
    """What is learned of a text: up to a control token, or its words where there is none."""
    for _, end, token in controls:
        return Ending(text=text[:end], token=token)
    return Ending(text=text.rstrip(), token=None)
