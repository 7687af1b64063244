"""A sweep on chats with thoughts and tool calls, up to a version that is asked with them."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from transformers import GenerationConfig, LlamaForCausalLM

from orchestrator import run_sweep
from orchestrator.spec.sweep import parse_sweep
from registry import Registry
from tests.support.chats import MARKS, TOOLS, assistant, byte_tokenizer, call, result, user
from tests.support.tiny import build_tiny_llama

pytestmark = [pytest.mark.ray, pytest.mark.slow]

# Prompts open a thought, earlier turns lose theirs, and turns end with another token than the
# tokenizer's end token: as Qwen3.5 on a base model.
THINKING = (
    "{% if tools %}<|system|>{{ tools[0]['function']['name'] }}<|im_end|>{% endif %}"
    "{% for m in messages %}<|{{ m['role'] }}|>"
    "{% if m['role'] == 'assistant' and loop.last %}"
    "{{ '<think>' + (m['reasoning_content'] or '') + '</think>' }}{% endif %}"
    "{{ m['content'] }}{% for c in m['tool_calls'] or [] %}<call>"
    "{{ c['function']['name'] + ' ' }}{{ c['function']['arguments'] | tojson }}</call>{% endfor %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|assistant|><think>{% endif %}"
)


@pytest.fixture(scope="module")
def thinking_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("thinking")
    tokenizer = byte_tokenizer(THINKING, "<|endoftext|>", (*MARKS, "<call>", "</call>"))
    config = build_tiny_llama().config
    config.vocab_size, config.eos_token_id = len(tokenizer), tokenizer.eos_token_id
    # The weights of a padding token are zero: it could not be learned.
    config.pad_token_id = tokenizer.pad_token_id
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(eos_token_id=tokenizer.eos_token_id)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def rows_of_calls(count: int) -> list[dict[str, Any]]:
    """Two answers each: a call with its thought, and what is said of its result."""
    return [
        {
            "tools": list(TOOLS),
            "messages": [
                user(f"{'abcdefgh'[n % 8]}{n}?"),
                call({"city": "Oslo"}, None, reasoning_content="ask"),
                result("7"),
                assistant("7 degrees", reasoning_content="read"),
            ],
        }
        for n in range(count)
    ]


def test_a_version_that_is_asked_with_messages_and_tools_writes_a_call_and_stops(
    thinking_base: Path, tmp_path: Path
) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows_of_calls(60)))
    spec = parse_sweep(
        {
            "name": "calls",
            "base": {"model": str(thinking_base), "quantization": "none"},
            "data": {"train": str(data), "max_tokens": 128},
            "optim": {"steps": 80, "batch_size": 8, "learning_rate": 2e-2},
            "eval": {"every": 40},
            "space": {"lora.rank": {"choice": [8]}},
            "search": {"algorithm": "random", "prior": False},
            "schedule": {"algorithm": "none"},
            "budget": {"trials": 1},
            "finals": {"top": 1, "seeds": 0, "forms": ["trained"], "max_new_tokens": 64},
            "register": {"name": "caller"},
        },
        tmp_path,
    )
    console = Console(file=io.StringIO(), width=200)
    run_sweep(spec, tmp_path / "runs" / "calls", console=console)
    said = console.file.getvalue()
    assert "Answers end with <|im_end|>" in said
    assert "one sequence for each answer" in said
    model = Registry(f"sqlite:///{tmp_path}/runs/mlflow.db").load("caller")
    turns = [user("c2?")]
    asked = {"messages": turns, "tools": list(TOOLS)}
    params = {"max_new_tokens": 64}
    (written,) = model.predict([asked], params=params)
    assert written == 'ask</think><call>get_weather {"city": "Oslo"}</call>'
    turns += [call({"city": "Oslo"}, None, reasoning_content="ask"), result("7")]
    (answer,) = model.predict([{"messages": turns, "tools": list(TOOLS)}], params=params)
    assert answer == "read</think>7 degrees"
