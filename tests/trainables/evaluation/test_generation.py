"""Greedy completions against transformers' own, alone and in batches."""

import pytest
import torch
from transformers import GenerationConfig, MistralConfig, MistralForCausalLM

from tests.support.tiny import build_byte_tokenizer, build_tiny_llama
from trainables.errors import SpecError
from trainables.evaluation.generation import Ending, complete, end_tokens

PROMPTS = [list(range(40 + i, 43 + i + 2 * (i % 5))) for i in range(9)]


def tiny_mistral():
    torch.manual_seed(1)
    config = MistralConfig(
        vocab_size=261,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        sliding_window=4,
        max_position_embeddings=512,
        initializer_range=0.3,
        eos_token_id=1,
        pad_token_id=0,
        bos_token_id=None,
    )
    return MistralForCausalLM(config)


@pytest.fixture(scope="module", params=[build_tiny_llama, tiny_mistral], ids=["llama", "window"])
def model(request):
    return request.param().eval()


def generated(model, prompt, ends, limit):
    """What transformers writes behind one prompt."""
    ids = torch.tensor([prompt])
    config = GenerationConfig(
        do_sample=False, max_new_tokens=limit, eos_token_id=ends, pad_token_id=0
    )
    output = model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=config
    )
    return [token for token in output[0, len(prompt) :].tolist() if token not in ends]


@pytest.mark.parametrize("batch_size", [1, 4, 9])
def test_completions_are_those_of_transformers(model, batch_size):
    ends = sorted({generated(model, prompt, [1], 12)[5] for prompt in PROMPTS[:2]})
    expected = [generated(model, prompt, ends, 12) for prompt in PROMPTS]
    found = complete(model, PROMPTS, Ending(tokens=tuple(ends), max_new_tokens=12), batch_size)
    assert found == expected
    assert len({len(completion) for completion in found}) > 1


def test_what_the_base_wishes_for_its_chats_is_not_heeded(model):
    ending = Ending(tokens=(), max_new_tokens=8)
    plain = complete(model, PROMPTS[:2], ending, 2)
    model.generation_config.suppress_tokens = [plain[0][0]]
    try:
        assert complete(model, PROMPTS[:2], ending, 2) == plain
        assert generated(model, PROMPTS[0], [1], 8) != plain[0]
    finally:
        model.generation_config.suppress_tokens = None


def test_both_end_tokens_end_a_completion():
    model, tokenizer = build_tiny_llama(), build_byte_tokenizer()
    assert end_tokens(model, tokenizer) == (1,)
    model.generation_config.eos_token_id = [7, 8]
    assert end_tokens(model, tokenizer) == (7, 8, 1)
    model.generation_config.eos_token_id = None
    tokenizer.eos_token = None
    assert end_tokens(model, tokenizer) == ()


def test_a_completion_beyond_the_bases_positions_is_refused():
    model = build_tiny_llama()
    prompts = [[40] * 500, [40]]
    assert complete(model, prompts, Ending(tokens=(), max_new_tokens=12), 1)[1]
    with pytest.raises(SpecError, match=r"got 13 behind a prompt of 500 tokens; .* at most 512"):
        complete(model, prompts, Ending(tokens=(), max_new_tokens=13), 1)


def test_the_head_reads_hidden_states_that_need_no_copy(model):
    seen = []
    handle = model.lm_head.register_forward_pre_hook(
        lambda module, args: seen.append((tuple(args[0].shape), args[0].is_contiguous()))
    )
    try:
        complete(model, PROMPTS, Ending(tokens=(), max_new_tokens=3), 9)
    finally:
        handle.remove()
    # Otherwise torch copies the head's weights once for each row of the batch.
    assert seen == [((9, 1, model.config.hidden_size), True)] * 3
