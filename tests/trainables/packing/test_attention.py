"""Attention with its gradient in float32: the same output as torch's, a better gradient."""

import pytest
import torch
from torch.nn import functional as F

from trainables.packing.attention import causal_attention, has_slow_gradient

SHAPES = [
    pytest.param((8, 9, 3, 60, 64), id="groups"),
    pytest.param((4, 4, 4, 7, 16), id="short"),
    pytest.param((2, 4, 2, 1, 16), id="one token"),
    pytest.param((1, 6, 3, 333, 32), id="long"),
]


def states(shape, dtype):
    rows, heads, key_heads, length, size = shape
    dice = torch.Generator().manual_seed(0)

    def draw(count):
        drawn = torch.randn(rows, count, length, size, generator=dice)
        return drawn.to(dtype).requires_grad_()

    return [draw(heads), draw(key_heads), draw(key_heads)]


def truth(shape, dtype, scaling):
    exact = [each.detach().double().requires_grad_() for each in states(shape, dtype)]
    return exact, F.scaled_dot_product_attention(
        *exact, is_causal=True, enable_gqa=True, scale=scaling
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scaling", [None, 0.3])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_output_is_torchs_and_the_gradient_closer_to_the_true_one(shape, dtype, scaling):
    ours, theirs = states(shape, dtype), states(shape, dtype)
    found = causal_attention(*ours, scaling)
    expected = F.scaled_dot_product_attention(
        *theirs, is_causal=True, enable_gqa=True, scale=scaling
    )
    assert torch.equal(found.transpose(1, 2), expected)

    exact, exact_output = truth(shape, dtype, scaling)
    grad = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    own = torch.autograd.grad(found, ours, grad.transpose(1, 2))
    torchs = torch.autograd.grad(expected, theirs, grad)
    true = torch.autograd.grad(exact_output, exact, grad.double())
    for one, other, wanted in zip(own, torchs, true, strict=True):
        assert one.dtype == dtype
        error, other_error = (one - wanted).norm(), (other - wanted).norm()
        assert error <= 1.05 * other_error + 1e-6
        assert error <= torch.finfo(dtype).eps * wanted.norm() + 1e-6


def test_it_is_for_the_cpus_small_types_in_training():
    query, _, value = states((1, 2, 2, 4, 16), torch.bfloat16)
    assert has_slow_gradient(query, value)
    assert not has_slow_gradient(query.float(), value.float())
    assert not has_slow_gradient(query, value[..., :8])  # torch's kernel wants equal sizes
    with torch.no_grad():
        assert not has_slow_gradient(query, value)
