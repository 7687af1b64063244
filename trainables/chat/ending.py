"""End of an answer, found in the template's text behind an answer.

The first match decides: the closing control token that the base stops at; the last control token
that a template writes both behind a last answer and behind an answer with a following turn; the
first control token that the template writes when another turn follows; else the tokenizer's end
token is appended. A token that closes a whole conversation, behind a token that closes each turn
(Phi-3), is not the end of an answer. Neither is the opening of a next answer, which some templates
write behind every conversation (ToolACE, Aquila).
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
    """Learned text behind the words of an answer.

    Attributes:
        text: Text of the template, through `token`.
        token: The control token at the end of `text`; `None` where the tokenizer's end token must
            be appended.
    """

    text: str
    token: str | None


class Endings:
    """Endings of answers under one template; plain answers share a cached ending for each shape.

    Args:
        template: The chat template.
        stops: Control tokens that the base stops at, including the tokenizer's end token.
    """

    def __init__(self, template: ChatTemplate, stops: Collection[str]) -> None:
        self._template = template
        end = template.tokenizer.eos_token
        self.stops = frozenset(stops) | ({str(end)} if end is not None else set())
        self._known: dict[tuple[Any, ...], tuple[str, Ending] | None] = {}

    def of_words(self, before: Turns, tools: Turns) -> tuple[str, Ending] | None:
        """Text of the template behind a last answer's words, and the learned part of the text.

        Args:
            before: The turns before the answer.
            tools: Tools on offer.

        Returns:
            `None` where the template does not write an answer's words unchanged.
        """
        key = (*(turn["role"] for turn in before), bool(tools))
        if key not in self._known:
            self._known[key] = self._find(before, tools)
        return self._known[key]

    def of_calls(self, turns: Turns, tools: Turns, text: str) -> tuple[str, Ending] | None:
        """Text of the template behind the last call's name, and the learned part of the text.

        Args:
            turns: The turns through a last answer that calls tools.
            tools: Tools on offer.
            text: The rendering of turns and tools.

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
        # The result of a call may contain its name, too.
        behind = name.join(longer.split(name)[text.count(name) :])
        own = self._without_opening(last, behind, turns[:-1], tools)
        closing = self._template.find_control(own)
        following = self._template.find_control(behind)
        written = {token for _, _, token in following} - self._inner(turns, tools)
        shared = [one for one in closing if one[2] in written]
        if shared:
            return last, _until(last, shared[-1:])
        reach = common_start(own, behind)
        first = [one for one in following if one[1] > reach][:1]
        return last, _until(behind if first else own[:reach], first)

    def _find(self, before: Turns, tools: Turns) -> tuple[str, Ending] | None:
        turns = [*before, {"role": "assistant", "content": PROBE}]
        _, found, last = self._template.render(turns, tools).rpartition(PROBE)
        if not found:
            return None
        closing = self._template.find_control(last)
        behind = self._behind(turns, tools)
        if behind is None:
            # The template takes no further turn: the closing token of this turn ends the answer.
            stop = [one for one in closing if one[2] in self.stops]
            return last, _until(last, stop[:1] or closing[-1:])
        own = self._without_opening(last, behind, before, tools)
        closing = self._template.find_control(own)
        following = self._template.find_control(behind)
        written = {token for _, _, token in following}
        shared = [one for one in closing if one[2] in written]
        stop = [one for one in shared or closing if one[2] in self.stops]
        if stop or shared:
            return last, _until(own, stop[:1] or shared[-1:])
        reach = common_start(own, behind)
        return last, _until(behind if following else own[:reach], following[:1])

    def _without_opening(self, last: str, behind: str, before: Turns, tools: Turns) -> str:
        """The text behind a last answer, without the opening of an answer at its end.

        Args:
            last: Text of the template behind an answer at the end of a conversation.
            behind: Text behind the same answer with a following turn, up to the turn's words.
            before: The turns before the answer.
            tools: Tools on offer.
        """
        try:
            asked = self._template.asked_behind(before, tools, is_whole=True)
        except TemplateRefusalError:
            return last
        rest = next(start for start in range(len(last) + 1) if last[start:] in asked)
        # The end of a turn is in both texts, but the opening is another one than a user's.
        is_opening = rest <= common_start(last, behind) < len(last)
        return last[:rest] if is_opening else last

    def _behind(self, turns: Turns, tools: Turns) -> str | None:
        """Text of the template between an answer and the words of a following user turn."""
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
        """Control tokens within a call: they occur more often in a rendering of two calls."""
        *before, answer = turns
        one, two = ({**answer, "tool_calls": answer["tool_calls"] * times} for times in (1, 2))
        try:
            texts = [self._template.render([*before, turn], tools) for turn in (one, two)]
        except TemplateRefusalError:
            return set()
        counts = [[token for *_, token in self._template.find_control(text)] for text in texts]
        return {token for token in counts[1] if counts[1].count(token) > counts[0].count(token)}


def _until(text: str, controls: Sequence[tuple[int, int, str]]) -> Ending:
    """Learned part of a text: through the first control token, or without one the words alone."""
    for _, end, token in controls:
        return Ending(text=text[:end], token=token)
    return Ending(text=text.rstrip(), token=None)
