"""What is found out about a base's chat template and the rows before anything is trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from trainables.data import SplitCounts, Splits, load_splits
from trainables.errors import BaseModelError
from trainables.spec import BaseSpec, DataSpec
from trainables.stops import load_tokenizer_only, stop_tokens
from trainables.templates import PROBE, Asking, ChatTemplate, TemplateRefusalError, Turns

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Layout = Literal["joined", "split", "mixed"]

_USER = {"role": "user", "content": "x"}
_FUNCTION = {"name": PROBE, "description": "x", "parameters": {"type": "object", "properties": {}}}
_CALL = {"id": "probeid00", "type": "function", "function": {"name": PROBE, "arguments": {}}}


@dataclass(frozen=True, kw_only=True)
class DataFindings:
    """How a base is asked with the rows of a sweep, and what became of the rows.

    Attributes:
        model: The base.
        prompt_style: `plain` or `chat`.
        end_tokens: Texts of the tokens that end answers, with their ids.
        base_end: Text of the end token that the tokenizer names.
        layout: Chats are one sequence (`joined`), one for each answer (`split`), or either.
        supports: What the chat template renders: `system`, `tools`, `calls`, `thoughts`.
        asking: Settings of the template; `None` when prompts are plain text.
        splits: What became of the rows of each split.
    """

    model: str
    prompt_style: str
    end_tokens: Mapping[str, int]
    base_end: str | None
    layout: Layout
    supports: Mapping[str, bool]
    asking: Asking | None
    splits: Mapping[str, SplitCounts]

    def to_record(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {
            "model": self.model,
            "prompt_style": self.prompt_style,
            "end_tokens": dict(self.end_tokens),
            "base_end": self.base_end,
            "layout": self.layout,
            "supports": dict(self.supports),
            **({} if self.asking is None else self.asking.to_record()),
            "splits": {name: counts_record(counts) for name, counts in self.splits.items()},
        }


def find_out(base: BaseSpec, data: DataSpec) -> DataFindings:
    """What a base's tokenizer makes of the rows; the base's weights are not loaded.

    Raises:
        BaseModelError: The base or its tokenizer cannot be found.
        DataError: A row cannot be used, as for `trainables.data.load_splits`.
    """
    tokenizer = load_tokenizer_only(base)
    return findings_of(base.model, load_splits(data, tokenizer, stop_tokens(base)), tokenizer)


def findings_of(model: str, splits: Splits, tokenizer: PreTrainedTokenizerBase) -> DataFindings:
    """What is known of splits that are tokens already."""
    named = {"train": splits.train, "validation": splits.validation, "test": splits.test}
    return DataFindings(
        model=model,
        prompt_style=splits.prompt_style,
        end_tokens=end_record(splits, tokenizer),
        base_end=None if tokenizer.eos_token is None else str(tokenizer.eos_token),
        layout=layout_of(splits),
        supports={} if splits.asking is None else _supports(tokenizer, splits.asking),
        asking=splits.asking,
        splits={name: split.counts for name, split in named.items() if split is not None},
    )


def prompting_record(splits: Splits, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """What a bundle's manifest says under `data` of how its adapter is asked and stopped."""
    named = {"train": splits.train, "validation": splits.validation, "test": splits.test}
    return {
        **(Asking() if splits.asking is None else splits.asking).to_record(),
        "end_tokens": end_record(splits, tokenizer),
        "layout": layout_of(splits),
        "counts": {
            name: counts_record(split.counts) for name, split in named.items() if split is not None
        },
    }


def end_record(splits: Splits, tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """The tokens that end answers: their texts and ids."""
    return {str(tokenizer.convert_ids_to_tokens(end)): end for end in splits.ends}


def layout_of(splits: Splits) -> Layout:
    """Whether chats are one sequence or one for each answer."""
    split_rows = sum(one.counts.split_rows for one in splits.given)
    # A chat with one answer is one sequence either way.
    joined = sum(one.counts.joined_rows for one in splits.given)
    return "joined" if not split_rows else "mixed" if joined else "split"


def counts_record(counts: SplitCounts) -> dict[str, Any]:
    """Counts as plain values; the end tokens are recorded once, not by split."""
    record = asdict(counts)
    record.pop("ends")
    return record


def _supports(tokenizer: PreTrainedTokenizerBase, asking: Asking) -> dict[str, bool]:
    template = ChatTemplate(tokenizer, asking)
    answer = {"role": "assistant", "content": "x"}
    call = {"role": "assistant", "content": "", "tool_calls": [_CALL]}
    tool = {"type": "function", "function": _FUNCTION}
    thought = {**answer, "reasoning_content": PROBE}
    return {
        "system": _writes(template, [{"role": "system", "content": PROBE}, _USER]),
        "tools": _writes(template, [_USER], [tool]),
        "calls": _writes(template, [_USER, call], [tool]) and _writes(template, [_USER, call]),
        "thoughts": _writes(template, [_USER, thought]) or "</think>" in template.text,
    }


def _writes(template: ChatTemplate, turns: Turns, tools: Turns = ()) -> bool:
    try:
        return PROBE in template.render(turns, tools)
    except TemplateRefusalError:
        return False
