"""Conversations and tokenizers for tests of chat templates."""

import re
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from trainables.files.formats import ChatExample, parse_row
from trainables.files.layouts import RowLayout
from trainables.files.readers import RawRow

CONTROL = re.compile(
    r"<\|[^|<>\s'\"{}]+\|>|<[|｜][^<>|｜\s]+[|｜]>|</?[a-z_]+\|?>|<\|?[a-z_]+\|?>|\[/?[A-Z_]+\]"
)
"""What looks like a control token in the text of a template."""

MARKS = ("<think>", "</think>", "<|system|>", "<|user|>", "<|assistant|>", "<|tool|>")
"""Control tokens that templates put together out of roles."""

LAYOUT = RowLayout(format="messages", columns={"messages": "messages", "tools": "tools"})

TOOLS = (
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Weather of a city",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}},
                "required": ["city"],
            },
        },
    },
)


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def system(content: str) -> dict[str, Any]:
    return {"role": "system", "content": content}


def assistant(content: Any, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **more}


def call(arguments: Any, content: Any = "", **more: Any) -> dict[str, Any]:
    """An answer that asks for the weather."""
    function = {"name": "get_weather", "arguments": arguments}
    calls = [{"id": "abcdef123", "type": "function", "function": function}]
    return assistant(content, tool_calls=calls, **more)


def result(content: str) -> dict[str, Any]:
    return {
        "role": "tool",
        "tool_call_id": "abcdef123",
        "name": "get_weather",
        "content": content,
    }


def chat(*turns: dict[str, Any], tools: Any = ()) -> ChatExample:
    """A row as training reads it."""
    values = {"messages": list(turns), **({"tools": list(tools)} if tools else {})}
    example = parse_row(RawRow(values=values, place="row 1"), LAYOUT, "data.train")
    assert isinstance(example, ChatExample)
    return example


def byte_tokenizer(
    template: Any, eos: str = "</s>", controls: tuple[str, ...] = ()
) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer with the control tokens that a template writes."""
    text = template if isinstance(template, str) else "".join(template.values())
    names = sorted({"<s>", "<pad>", eos, *controls, *CONTROL.findall(text)})
    vocab = {
        token: i for i, token in enumerate([*names, *sorted(pre_tokenizers.ByteLevel.alphabet())])
    }
    raw = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        eos_token=eos,
        bos_token="<s>",
        pad_token="<pad>",
        additional_special_tokens=[name for name in names if name not in ("<s>", "<pad>", eos)],
    )
    tokenizer.chat_template = template
    return tokenizer
