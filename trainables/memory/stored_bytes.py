"""Bytes of a frozen base in a stored form, on its device.

bitsandbytes quantizes the linear layers of decoder layers, GPT-2's `Conv1D` included. Embeddings,
head, norms, biases and routed experts keep the compute type: experts are no linear layers in
transformers.
"""

from __future__ import annotations

from dataclasses import dataclass

from trainables.memory.architecture import Architecture
from trainables.spec import BaseSpec, ComputeDtype, Quantization

BLOCK = 64
"""Weights that share a 4-bit constant (arXiv:2305.14314, section 3)."""
NESTED_BLOCK = 256
"""Constants that share a constant of the second quantization."""
_LEVELS_4BIT, _LEVELS_8BIT = 16, 256
_OFFSET = 4

FLOAT32 = 4


@dataclass(frozen=True, kw_only=True)
class Form:
    """Stored form of a base, and the type it computes in.

    Attributes:
        quantization: Form of the linear layers.
        double_quant: Whether the 4-bit constants are quantized, too.
        compute: Bytes of a number of the compute type: 2 or 4.
        is_dense: Whether quantized weights are also kept dequantized.
    """

    quantization: Quantization
    double_quant: bool = True
    compute: int = 2
    is_dense: bool = False

    @property
    def is_quantized(self) -> bool:
        """Whether the linear layers are quantized."""
        return self.quantization != "none"

    @property
    def is_4bit(self) -> bool:
        """Whether the linear layers have 4 bits per weight."""
        return self.quantization in ("nf4", "fp4")


def form_of(base: BaseSpec, automatic: int, *, is_dense: bool = False) -> Form:
    """The form of a base spec.

    Args:
        base: The base.
        automatic: Bytes of the compute type that `auto` stands for on the device.
        is_dense: Whether quantized weights are also kept dequantized.
    """
    return Form(
        quantization=base.quantization,
        double_quant=base.double_quant,
        compute=bytes_of_type(base.compute_dtype, automatic),
        is_dense=is_dense,
    )


def bytes_of_type(compute_dtype: ComputeDtype, automatic: int) -> int:
    """Bytes of a number of the compute type; `automatic` for `auto`."""
    return {"auto": automatic, "float32": 4}.get(compute_dtype, 2)


def weight_bytes(weights: int, rows: int, form: Form) -> int:
    """Bytes of one linear layer's weights with their constants.

    Args:
        weights: Number of weights.
        rows: Output features: `int8` has one constant for each.
        form: The stored form.
    """
    if form.quantization == "none":
        return weights * form.compute
    if form.quantization == "int8":
        return weights + FLOAT32 * rows
    return -(-weights // 2) + constant_bytes(weights, is_double=form.double_quant)


def constant_bytes(weights: int, *, is_double: bool) -> int:
    """Bytes of the constants of a 4-bit layer, with the tables of levels.

    A float32 for each block of 64 is 0.5 bit per weight. Double quantization keeps 8 bits for each
    block and a float32 for each 256 blocks: 8/64 + 32/(64 * 256) = 0.127 bit per weight.
    """
    blocks = -(-weights // BLOCK)
    if not is_double:
        return FLOAT32 * (blocks + _LEVELS_4BIT)
    nested = FLOAT32 * (-(-blocks // NESTED_BLOCK) + _LEVELS_8BIT) + _OFFSET
    return blocks + nested + FLOAT32 * _LEVELS_4BIT


def base_bytes(shape: Architecture, form: Form) -> int:
    """Bytes of a base's tensors in its stored form."""
    linears = shape.named_linears().values()
    kept = shape.weights() - sum(one.weights for one in linears)
    stored = sum(weight_bytes(one.weights, one.high, form) for one in linears)
    return stored + kept * form.compute


def dense_bytes(shape: Architecture, form: Form) -> int:
    """Bytes of the dequantized copy beside a quantized base; 0 without one."""
    if not (form.is_dense and form.is_quantized):
        return 0
    return sum(one.weights for one in shape.named_linears().values()) * form.compute


def largest_dense_bytes(shape: Architecture, form: Form) -> int:
    """Bytes of the largest layer when it is dequantized for a product; 0 if it never is."""
    if form.is_dense or not form.is_quantized:
        return 0
    return max(one.weights for one in shape.named_linears().values()) * form.compute
