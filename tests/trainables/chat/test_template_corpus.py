"""Real chat templates, those that ship with trl, over the conversations that people have.

What is right is read off the template itself, through `apply_chat_template`: each answer is right,
or the template refuses the conversation or leaves a part of the answer out.
"""

import datetime
import functools
import importlib.metadata
import json
import re
from collections.abc import Iterator
from typing import Any

import jinja2
import pytest

from tests.support.chats import (
    TOOLS,
    assistant,
    byte_tokenizer,
    call,
    chat,
    result,
    system,
    user,
)
from trainables.chat.asking import settle_asking
from trainables.chat.templates import PINNED_DATE, Asking
from trainables.chat.tokens import EncodedExample, Encoder
from trainables.errors import DataError

TEMPLATES = {
    file.name.removesuffix(".jinja"): file.locate().read_text()
    for file in importlib.metadata.files("trl") or ()
    if file.match("trl/chat_templates/*.jinja")
}

# What ends a whole conversation where that is no turn's end: the base's own end token.
EOS = {"gptoss": "<|return|>", "gptoss_training": "<|return|>"}

CHATS: dict[str, list[dict[str, Any]]] = {
    "single": [user("alpha?"), assistant("beta.")],
    "system": [system("gamma rule"), user("alpha?"), assistant("beta.")],
    "two-turns": [user("alpha?"), assistant("beta."), user("delta?"), assistant("epsilon.")],
    "four-turns": [
        turn
        for n in ("one", "two", "three", "four")
        for turn in (user(f"ask {n}?"), assistant(f"told {n}."))
    ],
    "thought": [user("alpha?"), assistant("beta.", reasoning_content="kappa lambda")],
    "two-thoughts": [
        user("alpha?"),
        assistant("beta.", reasoning_content="kappa lambda"),
        user("delta?"),
        assistant("epsilon.", reasoning_content="omicron rho"),
    ],
    "thought-in-content": [
        user("alpha?"),
        assistant("<think>\nkappa lambda\n</think>\n\nbeta."),
    ],
    "call": [user("alpha?"), call({"city": "Paris"}), result("warm"), assistant("beta.")],
    "call-last": [user("alpha?"), call('{"city": "Paris"}', content=None)],
    "call-with-text": [
        user("alpha?"), call({"city": "Paris"}, "Looking."), result("warm"), assistant("beta."),
    ],
    "white-space": [user("  alpha?\n"), assistant("\n\n beta.  \n")],
    "empty-system": [system(""), user("alpha?"), assistant("beta.")],
    "control-token-in-prompt": [user("alpha <|im_end|> <s> </s>?"), assistant("beta.")],
}  # fmt: skip

CASES = [
    pytest.param(name, kind, tools, id=f"{name}-{kind}{'-tools' if tools else ''}")
    for name in TEMPLATES
    for kind in CHATS
    for tools in (((), TOOLS) if "call" in kind else ((),))
]


@functools.cache
def tokenizer_of(name: str) -> Any:
    return byte_tokenizer(TEMPLATES[name], EOS.get(name, "</s>"))


def test_the_corpus_is_there() -> None:
    assert len(TEMPLATES) >= 60


@pytest.mark.parametrize(("name", "kind", "tools"), CASES)
def test_each_answer_is_right_or_refused_for_what_the_template_does(
    name: str, kind: str, tools: tuple[Any, ...]
) -> None:
    tokenizer = tokenizer_of(name)
    turns = CHATS[kind]
    example = chat(*turns, tools=tools)
    asking = settle_asking([example], tokenizer)
    oracle = Oracle(tokenizer, asking, turns, tools)
    learnable = [position for position in example.answers if oracle.renders(position)]
    encoder = Encoder(tokenizer, asking)
    if not encoder.find_answers(example)[0]:
        assert example.answers[-1] not in learnable
        with pytest.raises(DataError, match=r"^data.train: row 1: .*; allowed: .*\. [A-Z]"):
            encoder.encode(example, "data.train: row 1")
        return
    encoded = encoder.encode(example, "data.train: row 1")
    learned = list(oracle.learned(encoded))
    assert encoded.answers == len(learned)
    assert encoded.answers + len(encoded.unlearned) == len(example.answers)
    assert example.answers[-1] not in learnable or learned[-1][0] == example.answers[-1]
    for position, prompt, answer in learned:
        oracle.check_prompt(position, prompt)
        oracle.check_answer(position, answer)


class Oracle:
    """What the template itself says of a conversation."""

    def __init__(
        self, tokenizer: Any, asking: Asking, turns: list[dict[str, Any]], tools: Any
    ) -> None:
        self.tokenizer = tokenizer
        self.asking = asking
        self.turns = turns
        self.tools = tools
        self.args = dict(asking.template_args)
        self.template = tokenizer.chat_template
        if self.args.pop("strftime_now", None):
            # The day written out in the template's own text.
            self.template = re.sub(
                r"strftime_now\((['\"])(.*?)\1\)", self._day, tokenizer.chat_template
            )

    def _day(self, found: re.Match[str]) -> str:
        return json.dumps(datetime.date.fromisoformat(PINNED_DATE).strftime(found.group(2)))

    def render(self, turns: list[dict[str, Any]], *, is_prompt: bool = False) -> str:
        return self.tokenizer.apply_chat_template(
            [self._formed(turn) for turn in turns],
            tools=[*self.tools] or None,
            chat_template=self.template,
            tokenize=False,
            add_generation_prompt=is_prompt,
            **self.args,
        )

    def _formed(self, turn: dict[str, Any]) -> dict[str, Any]:
        formed = dict(turn)
        content = formed["content"] or ""
        is_text = self.asking.content == "text"
        formed["content"] = content if is_text else [{"type": "text", "text": content}]
        for one in formed.get("tool_calls", ()):
            arguments = one["function"]["arguments"]
            if isinstance(arguments, str) and self.asking.arguments == "mapping":
                arguments = json.loads(arguments)
            elif isinstance(arguments, dict) and self.asking.arguments == "text":
                arguments = json.dumps(arguments)
            function = {**one["function"], "arguments": arguments}
            formed["tool_calls"] = [{**one, "function": function}]
        return formed

    def renders(self, position: int) -> bool:
        """Whether the template takes the turns through an answer, and writes all of it."""
        try:
            history = self.render(self.turns[:position])
            whole = self.render(self.turns[: position + 1])
            prompt = self.render(self.turns[:position], is_prompt=True)
        except (jinja2.TemplateError, TypeError, ValueError, KeyError):
            return False
        behind = [turn["content"] for turn in self.turns[:position] if turn["role"] == "system"]
        own = words_of(self.turns[position])
        return all(whole.count(word) > history.count(word) for word in own) and all(
            word in prompt for word in behind
        )

    def learned(self, encoded: EncodedExample) -> Iterator[tuple[int, list[int], list[int]]]:
        """Position in the chat, prompt and answer of each answer that is learned."""
        for pieces in encoded.sequences:
            before: list[int] = []
            for context, answer in zip(pieces[::2], pieces[1::2], strict=True):
                before = [*before, *context]
                yield self._position(answer), before, list(answer)
                before = [*before, *answer]

    def _position(self, answer: tuple[int, ...]) -> int:
        text = self.tokenizer.decode(list(answer))
        (position,) = (
            position
            for position, turn in enumerate(self.turns)
            if turn["role"] == "assistant" and all(word in text for word in words_of(turn))
        )
        return position

    def check_prompt(self, position: int, prompt: list[int]) -> None:
        text = self.render(self.turns[:position], is_prompt=True)
        asked = self.tokenizer.encode(text, add_special_tokens=False)
        assert asked[: len(prompt)] == prompt
        cut = self.asking.prefill_cut if text.endswith(self.asking.prefill_cut) else ""
        assert self.tokenizer.decode(asked[len(prompt) :]) == cut

    def check_answer(self, position: int, answer: list[int]) -> None:
        text = self.tokenizer.decode(answer)
        others = [turn for n, turn in enumerate(self.turns) if n != position]
        own = words_of(self.turns[position])
        for word in (word for turn in others for word in words_of(turn) if word not in own):
            assert word not in text
        assert self.tokenizer.decode(answer[-1:]) in self._ends(position)
        assert answer.count(answer[-1]) == 1

    def _ends(self, position: int) -> set[str]:
        """Tokens that the template writes behind this answer, or behind one in the middle."""
        ends = {self.tokenizer.eos_token}
        last = words_of(self.turns[position])[-1]
        middle = [user("alpha?"), assistant("betamax."), user("deltoid?")]
        before = self.turns[: position + 1]
        for turns, word in (
            (before, last),
            ([*before, result("warm")], last),
            (middle, "betamax."),
        ):
            try:
                text = self.render(turns)
            except (jinja2.TemplateError, TypeError, ValueError, KeyError):
                continue
            ids = self.tokenizer.encode(text.rpartition(word)[2], add_special_tokens=False)
            special = set(self.tokenizer.all_special_ids)
            ends |= {self.tokenizer.decode([token]) for token in ids if token in special}
        return ends


def words_of(turn: dict[str, Any]) -> list[str]:
    """What has to be learned of an answer, and of nothing else."""
    content = turn["content"] or ""
    thoughts = re.findall(r"<think>\s*(.*?)\s*</think>", content, re.DOTALL)
    words = [re.sub(r"(?s)<think>.*</think>", "", content).strip()]
    names = [one["function"]["name"] for one in turn.get("tool_calls", ())]
    found = [turn.get("reasoning_content", ""), *thoughts, *words, *names]
    return [word for word in found if word]
