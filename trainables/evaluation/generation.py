"""Greedy completions in batches, with a key-value cache.

The loop replaces `generate` of transformers, because `generate` reads defaults from the base's
generation_config.json: a repetition penalty or suppressed tokens there would change the greedy
completion.
"""

from __future__ import annotations

import itertools
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
    """End conditions of a completion.

    Attributes:
        tokens: End tokens; a completion stops before the first end token.
        max_new_tokens: Most tokens of a completion.
    """

    tokens: tuple[int, ...]
    max_new_tokens: int


def end_tokens(
    model: Any, tokenizer: PreTrainedTokenizerBase, trained: Iterable[int] = ()
) -> tuple[int, ...]:
    """Tokens that end a completion.

    Args:
        model: Adds the end tokens of its generation settings.
        tokenizer: Adds its end token.
        trained: End tokens that the adapter was trained with.
    """
    found = [*trained, *tokens_of(model.generation_config)]
    if tokenizer.eos_token_id is not None:
        found.append(tokenizer.eos_token_id)
    return tuple(dict.fromkeys(found))


def complete(
    model: Any, prompts: Sequence[Sequence[int]], ending: Ending, batch_size: int
) -> list[list[int]]:
    """The most likely continuation of each prompt, token by token, without its end token.

    Args:
        model: A causal language model of transformers, possibly wrapped by PEFT.
        prompts: Token ids; at least one token each.
        ending: End conditions of a completion.
        batch_size: Prompts per batch; prompts of similar length share a batch.

    Raises:
        SpecError: A prompt and its completion could exceed the positions of the base, or cross the
            length at which its rotary frequencies change.
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
    for length in lengths:
        # Cached keys keep the rotation of the length at which they were computed.
        if switch is not None and length <= switch < length + ending.max_new_tokens:
            raise SpecError(
                f"evaluation.max_new_tokens: got {ending.max_new_tokens} behind a prompt of "
                f"{length} tokens; allowed: together at most {switch}, where the rotary "
                "frequencies of the base (longrope) change. Lower it or shorten the prompts."
            )
    completions: list[list[int]] = [[] for _ in prompts]
    for chosen in batches_by_length(lengths, batch_size, switch):
        written = _complete_batch(model, [prompts[number] for number in chosen], ending)
        for number, completion in zip(chosen, written, strict=True):
            completions[number] = completion
    return completions


@torch.no_grad()
def _complete_batch(
    model: Any, prompts: Sequence[Sequence[int]], ending: Ending
) -> list[list[int]]:
    longest = max(map(len, prompts))
    ends = torch.tensor(ending.tokens, device=model.device, dtype=torch.long)
    # Padding is masked, so any token serves. Left padding lets all completions begin together.
    padding = [longest - len(prompt) for prompt in prompts]
    ids = torch.tensor(
        [[0] * pad + list(prompt) for pad, prompt in zip(padding, prompts, strict=True)],
        device=model.device,
    )
    mask = torch.tensor(
        [[0] * pad + [1] * (longest - pad) for pad in padding], device=model.device
    )
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    # With `logits_to_keep=1`, torch copies the weights of the head once for each row, because a
    # slice of the hidden states is not contiguous. An index makes a contiguous tensor.
    last = torch.tensor([longest - 1], device=model.device)
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
            logits_to_keep=last,
        )
        ids, cache = output.logits[:, -1:].argmax(dim=-1), output.past_key_values
        written.append(ids)
        is_ended |= torch.isin(ids[:, 0], ends)
        if len(written) == ending.max_new_tokens or bool(is_ended.all()):
            break
        last = torch.zeros_like(last)
        mask = torch.cat([mask, mask.new_ones(len(prompts), 1)], dim=1)
        positions = positions[:, -1:] + 1
    rows = torch.cat(written, dim=1).tolist()
    return [list(itertools.takewhile(lambda token: token not in ending.tokens, r)) for r in rows]
