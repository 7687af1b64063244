"""Summary of a base's chat template and of the answers learned under it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from trainables.chat.learned import Learned
from trainables.chat.templates import (
    DATE_ARG,
    PROBE,
    Asking,
    ChatTemplate,
    TemplateRefusalError,
    Turns,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from trainables.rows.data import Splits

Sequencing = Literal["joined", "split", "mixed"]

_USER = {"role": "user", "content": "x"}
_WORD = {"type": "string", "description": "x"}
_PARAMETERS = {"type": "object", "properties": {"x": _WORD}, "required": ["x"]}
_CALL = {"id": "probeid00", "type": "function", "function": {"name": PROBE, "arguments": {}}}
_SPOKEN = {"systems": "system", "tools": "tools", "thoughts": "thoughts"}


@dataclass(frozen=True, kw_only=True)
class ChatSummary:
    """Facts on chats: prompt settings, end tokens and the amount of learned answers.

    Attributes:
        end_tokens: Texts of the end tokens of answers, with their ids.
        base_end: Text of the end token that the tokenizer names.
        sequences: Chats of several answers become one sequence (`joined`), one for each answer
            (`split`), or both kinds occur (`mixed`).
        supports: Whether the chat template renders `system`, `tools`, `calls` and `thoughts`;
            empty when prompts are plain text.
        asking: Settings of the template; `None` when prompts are plain text.
        learned: Counts of the learned answers, by split.
    """

    end_tokens: Mapping[str, int]
    base_end: str | None
    sequences: Sequencing
    supports: Mapping[str, bool]
    asking: Asking | None
    learned: Mapping[str, Learned]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, in the form of a manifest's `data`."""
        return {
            **(Asking() if self.asking is None else self.asking).to_record(),
            "end_tokens": dict(self.end_tokens),
            "sequences": self.sequences,
            "supports": dict(self.supports),
            "learned": {name: one.to_dict() for name, one in self.learned.items()},
        }

    def lines(self) -> list[str]:
        """Sentences for the user, one for each fact to know before training starts."""
        counts = ", ".join(
            f"{name} {one.answers:,} in {one.tokens:,} tokens ({one.answer_tokens:,} learned)"
            for name, one in self.learned.items()
        )
        context = [
            f"data.{name}: {count} earlier answers are context only: {reason}"
            for name, one in self.learned.items()
            for reason, count in one.unlearned.items()
        ]
        return [
            self._endings(),
            *self._settings(),
            *self._unsupported(),
            f"Answers: {counts}.",
            *context,
        ]

    def _endings(self) -> str:
        ends = " or ".join(self.end_tokens)
        if self.base_end in self.end_tokens or self.base_end is None:
            return f"Answers end with {ends}."
        return (
            f"Answers end with {ends}, as the chat template ends turns, and not with the "
            f"tokenizer's {self.base_end}; completions stop at both."
        )

    def _settings(self) -> Iterator[str]:
        if self.asking is None:
            return
        if self.asking.template is not None:
            yield f"The chat template is the one named {self.asking.template}."
        args = dict(self.asking.template_args)
        day = args.pop(DATE_ARG, None)
        if day is not None:
            yield (
                f"The chat template writes today's date: {day} is written instead, in training "
                f"and in serving (data.template_args.{DATE_ARG})."
            )
        if args:
            yield f"The chat template is given {json.dumps(args)}, in training and in serving."
        if self.asking.prefill_cut:
            yield (
                f"Prompts end before {json.dumps(self.asking.prefill_cut)}, although the chat "
                "template writes it, because the rows' answers do not continue it; serving does "
                "the same."
            )
        if any(one.joined_rows + one.split_rows for one in self.learned.values()):
            yield {
                "joined": "Chats of several answers are trained as one sequence.",
                "split": "Chats of several answers are trained as one sequence for each answer, "
                "because the chat template renders earlier turns differently from the last turn.",
                "mixed": "Chats of several answers are trained as one sequence where the chat "
                "template keeps earlier answers unchanged, else as one for each answer.",
            }[self.sequences]

    def _unsupported(self) -> Iterator[str]:
        lacking = [name for name, is_there in self.supports.items() if not is_there]
        if lacking:
            has = [name for name, is_there in self.supports.items() if is_there]
            others = f"; it renders {', '.join(has)}" if has else ""
            yield f"The chat template renders no {', no '.join(lacking)}{others}."
        for count, name in _SPOKEN.items():
            rows = sum(getattr(one, count) for one in self.learned.values())
            if rows and not self.supports.get(name, True):
                yield f"{rows} rows have {name}, which the chat template does not render."


def chats_of(splits: Splits, tokenizer: PreTrainedTokenizerBase) -> ChatSummary:
    """Summary of the chats in tokenized splits."""
    learned = {name: split.learned for name, split in splits.by_name.items()}
    ends = sorted(frozenset[int]().union(*(one.ends for one in learned.values())))
    split_rows = sum(one.split_rows for one in learned.values())
    joined_rows = sum(one.joined_rows for one in learned.values())
    return ChatSummary(
        end_tokens={str(tokenizer.convert_ids_to_tokens(end)): end for end in ends},
        base_end=None if tokenizer.eos_token is None else str(tokenizer.eos_token),
        sequences="joined" if not split_rows else "mixed" if joined_rows else "split",
        supports={} if splits.asking is None else _supports(tokenizer, splits.asking),
        asking=splits.asking,
        learned=learned,
    )


def _supports(tokenizer: PreTrainedTokenizerBase, asking: Asking) -> dict[str, bool]:
    template = ChatTemplate(tokenizer, asking)
    answer = {"role": "assistant", "content": "x"}
    call = {"role": "assistant", "content": "", "tool_calls": [_CALL]}
    thought = {**answer, "reasoning_content": PROBE}
    return {
        "system": _writes(template, [{"role": "system", "content": PROBE}, _USER]),
        "tools": _writes(template, [_USER], [_tool(PROBE)]),
        "calls": _writes(template, [_USER, call]),
        "thoughts": _writes(template, [_USER, thought]) or "</think>" in template.text,
    }


def _writes(template: ChatTemplate, turns: Turns, tools: Turns = ()) -> bool:
    """Whether the probe is written: some templates take calls only beside tools, or need tools."""
    for offered in (tools,) if tools else ((), [_tool("x")]):
        try:
            if PROBE in template.render(turns, offered):
                return True
        except TemplateRefusalError:
            continue
    return False


def _tool(name: str) -> dict[str, Any]:
    function = {"name": name, "description": "x", "parameters": _PARAMETERS}
    return {"type": "function", "function": function}
