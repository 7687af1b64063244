"""Greedy completions, batched, with the keys and values of what was read kept.

A loop of its own, as `generate` of transformers takes what it is not told from the base's
generation_config.json: with a base that asks for a repetition penalty, or suppresses tokens, it
would not write the most likely ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from trainables.base.stops import tokens_of
from trainables.errors import SpecError
from trainables.packing.batches import batches_by_length
from trainables.packing.rope import rope_switch

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, kw_only=True)
class Ending:
    """What ends completions.

    Attributes:
        tokens: A completion ends before the first of these.
        max_new_tokens: Its most tokens.
    """

    tokens: tuple[int, ...]
    max_new_tokens: int


def end_tokens(
    model: Any, tokenizer: PreTrainedTokenizerBase, trained: Iterable[int] = ()
) -> tuple[int, ...]:
    """Tokens that end a completion.

    Args:
        model: Stops at tokens of its own.
        tokenizer: Its end token is one, too.
        trained: The tokens that the adapter's answers were trained to end with.
    """
    own = tokens_of(model.generation_config)
    return tuple(dict.fromkeys([*trained, *own, *_own_end(tokenizer)]))


def complete(
    model: Any, prompts: Sequence[Sequence[int]], ending: Ending, batch_size: int
) -> list[list[int]]:
    """The most likely continuation of each prompt, token by token, without its end token.

    Args:
        model: A causal language model of transformers, perhaps in PEFT.
        prompts: At least one token each.
        ending: What ends a completion.
        batch_size: Prompts read at once; those of similar length share a batch.

    Raises:
        SpecError: A prompt and its completion could be longer than the base has positions, or grow
            beyond those where its rotary frequencies change.
    """
    longest = max(map(len, prompts))
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if positions is not None and longest + ending.max_new_tokens > positions:
        raise SpecError(
            f"evaluation.max_new_tokens: got {ending.max_new_tokens} behind a prompt of {longest} "
            f"tokens; allowed: together at most {positions}, the base's positions. Lower it or "
            "shorten the prompts."
        )
    lengths = [len(prompt) for prompt in prompts]
    switch = rope_switch(model.config)
    _require_one_side(lengths, ending, switch)
    completions: list[list[int]] = [[] for _ in prompts]
    for chosen in batches_by_length(lengths, batch_size, switch):
        written = _complete_batch(model, [prompts[number] for number in chosen], ending)
        for number, completion in zip(chosen, written, strict=True):
            completions[number] = completion
    return completions


def _require_one_side(lengths: Sequence[int], ending: Ending, switch: int | None) -> None:
    """Keys that are kept were turned by the frequencies of the length at which they were read."""
    for length in lengths:
        if switch is not None and length <= switch < length + ending.max_new_tokens:
            raise SpecError(
                f"evaluation.max_new_tokens: got {ending.max_new_tokens} behind a prompt of "
                f"{length} tokens; allowed: together at most {switch}, where the rotary "
                "frequencies of the base (longrope) change. Lower it or shorten the prompts."
            )


def _own_end(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    return [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]


@torch.no_grad()
def _complete_batch(
    model: Any, prompts: Sequence[Sequence[int]], ending: Ending
) -> list[list[int]]:
    longest = max(map(len, prompts))
    ends = torch.tensor(ending.tokens, device=model.device, dtype=torch.long)
    # Padding is masked: any token does. On the left, so that all completions begin together.
    padding = [longest - len(prompt) for prompt in prompts]
    ids = torch.tensor(
        [[0] * pad + list(prompt) for pad, prompt in zip(padding, prompts, strict=True)],
        device=model.device,
    )
    mask = torch.tensor(
        [[0] * pad + [1] * (longest - pad) for pad in padding], device=model.device
    )
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    written: list[torch.Tensor] = []
    is_ended = torch.zeros(len(prompts), dtype=torch.bool, device=model.device)
    cache = None
    while True:
        output = model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        ids, cache = output.logits[:, -1:].argmax(dim=-1), output.past_key_values
        written.append(ids)
        is_ended |= torch.isin(ids[:, 0], ends)
        if len(written) == ending.max_new_tokens or bool(is_ended.all()):
            break
        mask = torch.cat([mask, mask.new_ones(len(prompts), 1)], dim=1)
        positions = positions[:, -1:] + 1
    return [_until_end(row, ending.tokens) for row in torch.cat(written, dim=1).tolist()]


def _until_end(tokens: list[int], ends: Sequence[int]) -> list[int]:
    stops = (number for number, token in enumerate(tokens) if token in ends)
    return tokens[: next(stops, len(tokens))]
