"""Prompt and learned text of an answer; a server renders exactly the same prompt.

P are the turns before the answer with a generation prompt, W the turns through the answer. Where W
begins with P, the rest of W is the answer. Otherwise the words of the answer are found in W and
put behind P; thoughts that a template drops are inserted as written.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from trainables.chat.ending import Endings
from trainables.chat.templates import (
    PROBE,
    ChatTemplate,
    TemplateRefusalError,
    Turns,
    common_start,
)
from trainables.files.formats import ChatExample

_OPEN, _CLOSE = "<think>", "</think>"
_LONGEST_LEAD = 128
"""Most characters of a template between a prompt's end and an answer's words, besides thoughts."""


class CannotLearnError(Exception):
    """An answer that cannot be trained; the message gives the reason and a remedy."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """Prompt and learned text of one assistant turn.

    Attributes:
        prompt: Prompt text of a server.
        text: Learned text behind the prompt, through the end token.
        token: The control token at the end of `text`; `None` where it must be appended.
        is_direct: The template itself writes `text` behind `prompt`.
    """

    prompt: str
    text: str
    token: str | None
    is_direct: bool


def find_answer(
    chat: ChatExample, position: int, template: ChatTemplate, endings: Endings
) -> Answer:
    """The answer at a position of a conversation.

    Raises:
        CannotLearnError: The template refuses the conversation or drops a part of the answer, or
            the answer cannot be separated from its prompt.
    """
    where = f"message {position + 1}"
    try:
        prompt = template.render(chat.turns[:position], chat.tools, is_prompt=True)
        _require_system(chat.turns[:position], prompt)
        answer, lacking = _rendered(chat, position, template, endings, prompt)
        if answer is None or lacking:
            answer = _as_written(chat, position, template, endings, prompt)
    except TemplateRefusalError as error:
        raise CannotLearnError(
            f"the chat template refuses the conversation up to {where}: {error}; allowed: what "
            "the base's template takes. Change the roles or their order, or remove the row."
        ) from error
    if answer is None and lacking:
        raise CannotLearnError(
            f"{where}: the chat template does not render {lacking}, so it would not be learned; "
            f"allowed: what the template renders. {_remedy(lacking)}"
        )
    if answer is None:
        raise CannotLearnError(
            f"{where}: the chat template does not render it as its prompt with an answer behind "
            "it, so the answer's tokens cannot be told apart; allowed: an answer that the "
            "template renders. Use text in prompt and completion, or another base."
        )
    _require_one_end(answer, chat.turns[position], endings, template, where)
    return answer


def _rendered(
    chat: ChatExample, position: int, template: ChatTemplate, endings: Endings, prompt: str
) -> tuple[Answer | None, str]:
    """The answer as rendered by the template, and the name of a missing part, if any."""
    before, turn = chat.turns[:position], chat.turns[position]
    whole = template.render([*before, turn], chat.tools)
    if turn.get("tool_calls"):
        found = endings.of_calls([*before, turn], chat.tools, whole)
    else:
        found = endings.of_words(before, chat.tools)
    if found is None or not whole.endswith(found[0]):
        return None, _lacking(turn, whole)
    last, ending = found
    text = whole[: len(whole) - len(last)] + ending.text
    is_direct = text.startswith(prompt)
    body = text[len(prompt) :] if is_direct else _moved(chat, position, template, prompt, text)
    if body is None:
        return None, _lacking(turn, whole)
    answer = Answer(prompt=prompt, text=body, token=ending.token, is_direct=is_direct)
    return answer, _lacking(turn, body)


def _moved(
    chat: ChatExample, position: int, template: ChatTemplate, prompt: str, text: str
) -> str | None:
    """The answer's text from a rendering that does not begin with the prompt.

    The text that the template writes between the prompt's end and the words is included.
    """
    turn = chat.turns[position]
    head = _head(chat, position, template, text)
    if head is None:
        return None
    lead = _rest_behind(prompt, head)
    if lead is None:
        lead = _lead_behind_words(chat, position, template, prompt, head)
    longest = _LONGEST_LEAD + len(thought_of(turn)) + turn["content"].rfind(_CLOSE)
    return None if lead is None or len(lead) > longest else lead + text[len(head) :]


def _head(chat: ChatExample, position: int, template: ChatTemplate, text: str) -> str | None:
    """Text of the template up to an answer's words, or up to the name of its first call."""
    before, turn = chat.turns[:position], chat.turns[position]
    thought, closed, _ = turn["content"].rpartition(_CLOSE)
    for content in (PROBE, f"{thought}{closed}\n\n{PROBE}") if closed else (PROBE,):
        probed = template.render([*before, {**turn, "content": content}], chat.tools)
        head, found, _ = probed.partition(PROBE)
        if found and text.startswith(head):
            return head
    if turn["content"].strip() or not turn.get("tool_calls"):
        return None
    # The template writes contents beside calls otherwise, or leaves them out.
    first, *others = turn["tool_calls"]
    renamed = {**first, "function": {**first["function"], "name": PROBE}}
    probed = template.render([*before, {**turn, "tool_calls": [renamed, *others]}], chat.tools)
    head, found, _ = probed.partition(PROBE)
    return head if found and text.startswith(head) else None


def _rest_behind(prompt: str, head: str) -> str | None:
    """Rest of `head` behind the prompt; `None` if more than white space differs before it."""
    letters = "".join(prompt.split())
    places = [place for place, letter in enumerate(head) if not letter.isspace()][: len(letters)]
    if not letters or "".join(head[place] for place in places) != letters:
        return None
    rest = head[places[-1] + 1 :]
    return rest.lstrip() if prompt[-1:].isspace() else rest


def _lead_behind_words(
    chat: ChatExample, position: int, template: ChatTemplate, prompt: str, head: str
) -> str | None:
    """Text of the template between a prompt's end and an answer, from what the two have alike."""
    before, turn = chat.turns[:position], chat.turns[position]
    history = template.render(before, chat.tools)
    opening = len(prompt) - len(history) if prompt.startswith(history) else 0
    size = _longest_ending_in(prompt, head)
    # The common end must reach into the words of the last turn; a shorter one proves nothing.
    behind_words = len(template.asked_behind(before, chat.tools))
    if size > max(opening, behind_words):
        return head[head.rfind(prompt[-size:]) + size :]
    if turn.get("tool_calls"):
        return _unopened(prompt, head, history, template) if opening else None
    # Without an opening in the generation prompt, the answer follows the prompt unchanged.
    return _usual_lead(template, prompt[-opening:], chat.tools) if opening else ""


def _unopened(prompt: str, head: str, history: str, template: ChatTemplate) -> str | None:
    """Text before a call that the template writes behind the turns without an opening."""
    opening, rest = prompt[len(history) :], head.removeprefix(history)
    controls = {token for *_, token in template.find_control(opening)}
    written = {token for *_, token in template.find_control(rest)}
    if not head.startswith(history) or not controls or controls & written:
        return None
    return rest.lstrip() if opening[-1:].isspace() else rest


def _usual_lead(template: ChatTemplate, opening: str, tools: Turns) -> str | None:
    """Text of the template between generation prompt and answer in the simplest chat."""
    user = {"role": "user", "content": "x"}
    prompt = template.render([user], tools, is_prompt=True)
    text = template.render([user, {"role": "assistant", "content": PROBE}], tools)
    lead, found, _ = text[len(prompt) :].partition(PROBE)
    is_same = prompt.endswith(opening) and text.startswith(prompt)
    return lead if is_same and found else None


def _longest_ending_in(prompt: str, head: str) -> int:
    """Length of the longest end of the prompt that occurs in `head`."""
    low, high = 0, len(prompt)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if prompt[-middle:] in head else (low, middle - 1)
    return low


def _as_written(
    chat: ChatExample, position: int, template: ChatTemplate, endings: Endings, prompt: str
) -> Answer | None:
    """Thought and words as in the row, behind the prompt of a template that drops thoughts."""
    turn = chat.turns[position]
    content, thought = str(turn["content"]).strip(), thought_of(turn)
    found = endings.of_words(chat.turns[:position], chat.tools)
    # Otherwise a thought is natural for the base only if its template supports thoughts.
    has_thought = (thought or _CLOSE in content) and _CLOSE in template.text
    if found is None or not has_thought or turn.get("tool_calls") or prompt.endswith(_CLOSE):
        return None
    if thought:
        content = f"{_OPEN}\n{thought}\n{_CLOSE}\n\n{content}"
    if prompt.rstrip().endswith(_OPEN):
        content = content.removeprefix(_OPEN).lstrip("\n")
    ending = found[1]
    text = content + ending.text
    return Answer(prompt=prompt, text=text, token=ending.token, is_direct=False)


def thought_of(turn: Mapping[str, Any]) -> str:
    """Thought of a turn in a field beside the content; empty if there is none."""
    thought = turn.get("reasoning_content") or turn.get("reasoning") or turn.get("thinking")
    return str(thought or "").strip()


def has_thought(turn: Mapping[str, Any]) -> bool:
    """Whether a turn has a thought, in a field or in its content."""
    return bool(thought_of(turn)) or _CLOSE in str(turn["content"])


def _lacking(turn: Mapping[str, Any], text: str) -> str:
    """Name of the first answer part that is missing from a text; empty if none is missing."""
    text = _squeezed(text)
    return next((name for name, words in _parts(turn) if _squeezed(words) not in text), "")


def _parts(turn: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    before, closed, after = str(turn["content"]).rpartition(_CLOSE)
    yield "its thought", thought_of(turn)
    if closed:
        yield "its thought", before.rpartition(_OPEN)[2]
    yield "its words", after
    for call in turn.get("tool_calls", ()):
        name = call["function"]["name"]
        yield f"its call of {name!r}", name
        arguments = call["function"]["arguments"]
        for word in _leaves(json.loads(arguments) if isinstance(arguments, str) else arguments):
            yield f"the arguments of its call of {name!r}", word


def _leaves(value: object) -> Iterator[str]:
    """Plain words among arguments; templates differ in writing any other value."""
    if isinstance(value, Mapping):
        for one in value.values():
            yield from _leaves(one)
    elif isinstance(value, str) and re.fullmatch(r"\w*", value):
        yield value


def _squeezed(text: str) -> str:
    return " ".join(text.split())


def _remedy(missing: str) -> str:
    if "call" in missing:
        return "Write the call as text into content, or choose a base whose template has tools."
    if "thought" in missing:
        return "Write the thought as text into content, or remove it."
    return "Use prompt and completion as text, or another base."


def _require_system(before: Turns, prompt: str) -> None:
    """Refuse a prompt without the system turn: some templates drop the turn silently."""
    for number, turn in enumerate(before, 1):
        is_system = turn["role"] in ("system", "developer")
        if is_system and _squeezed(turn["content"]) not in _squeezed(prompt):
            raise CannotLearnError(
                f"message {number}: the chat template leaves this {turn['role']} turn out of the "
                "prompt; allowed: turns that the template renders. Put its words into the first "
                "user turn, or choose a base whose template has a system turn."
            )


def _require_one_end(
    answer: Answer, turn: Mapping[str, Any], endings: Endings, template: ChatTemplate, where: str
) -> None:
    """Refuse an answer with an end token inside: serving would stop there."""
    inner = [token for *_, token in template.find_control(answer.text)]
    if answer.token is not None:
        inner.pop()
    early = next((token for token in inner if token in {answer.token, *endings.stops}), None)
    if early is None:
        return
    if early in json.dumps(turn, ensure_ascii=False):
        raise CannotLearnError(
            f"{where}: holds {early!r}, which ends an answer, within its text; allowed: such a "
            "token at its end alone. Remove it from the content."
        )
    raise CannotLearnError(
        f"{where}: the chat template writes {early!r}, which ends an answer, within this answer, "
        "so that a server would stop there; allowed: such a token at an answer's end alone. "
        "Write a call as text into content, or choose a base with another template."
    )


def split_off_cut(prompt: str, whole: str, history: str, template: ChatTemplate) -> str:
    """End of a prompt to cut off, so that the rendered conversation begins with the prompt.

    Args:
        prompt: Prompt of the answer.
        whole: Rendering of the conversation through the answer.
        history: Rendering of the turns before, without a generation prompt.
        template: Template with the control tokens.

    Returns:
        The end of the prompt that differs from `whole`; empty if no word of the generation prompt
        would be left, or the difference begins before the generation prompt.
    """
    same = common_start(prompt, whole)
    inside = [start for start, end, _ in template.find_control(prompt) if start < same < end]
    same = inside[0] if inside else same
    # A rest without a word, such as "### ", would leave the role of the turn to the answer.
    has_opening = re.search(r"\w", prompt[len(history) : same]) is not None
    return prompt[same:] if prompt.startswith(history) and has_opening else ""
