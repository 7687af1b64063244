"""Columns of searched settings, the same in the live view, the tables and the report's page.

One column for each setting: a short head, and the whole value in each cell.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from orchestrator.spec.settings import ALPHA_PER_RANK
from orchestrator.wording import format_setting, one_line

SHORT_HEADS: Mapping[str, str] = {
    "base.model": "base",
    "base.revision": "revision",
    "base.quantization": "quant",
    "base.double_quant": "double",
    "base.compute_dtype": "compute",
    "lora.rank": "r",
    "lora.alpha": "α",
    ALPHA_PER_RANK: "α/r",
    "lora.targets": "targets",
    "lora.dropout": "drop",
    "optim.learning_rate": "lr",
    "optim.schedule": "schedule",
    "optim.warmup_steps": "warmup",
    "optim.batch_size": "batch",
    "optim.micro_batch_size": "micro",
    "optim.weight_decay": "decay",
    "optim.max_grad_norm": "clip",
    "optim.loraplus_ratio": "lora+",
    "data.max_tokens": "tokens",
    "data.train_max_tokens": "cut",
}
"""Short heads by dotted setting; a setting that is not listed has its last part as its head."""

_DIGITS = 3
_PROJECTION = "_proj"


def short_heads(names: Sequence[str]) -> tuple[str, ...]:
    """A head for each setting, in the same order; a head that two settings share is the full name.

    Args:
        names: Settings as a space names them (`base.quantization`) or as
            `orchestrator.spec.space.searched_names` does (`quantization`).
    """
    heads = [_head(name) for name in names]
    uses = Counter(heads)
    return tuple(name if uses[head] > 1 else head for name, head in zip(names, heads, strict=True))


def setting_cells(names: Sequence[str], settings: Mapping[str, object]) -> tuple[str, ...]:
    """The value of each setting as text, never cut; `-` for a setting that the trial lacks.

    Args:
        names: Settings, as for `short_heads`.
        settings: Values by the same names, such as a trial's knobs.
    """
    return tuple(format_cell(settings[name]) if name in settings else "-" for name in names)


def format_cell(value: object) -> str:
    """A setting's value: `8.93e-4`, `q+v` for `q_proj+v_proj`, else as in sentences.

    A number keeps three digits; the files of the report have all.
    """
    if isinstance(value, float):
        return _format_number(value)
    text = format_setting(value)
    parts = text.split("+")
    if all(part.endswith(_PROJECTION) and part != _PROJECTION for part in parts):
        return "+".join(part.removesuffix(_PROJECTION) for part in parts)
    return text


def _head(name: str) -> str:
    known = SHORT_HEADS.get(name) or SHORT_HEADS.get(f"base.{name}")
    return known or one_line(name.rpartition(".")[2])


def _format_number(value: float) -> str:
    text = f"{value:.{_DIGITS}g}"
    if value != 0 and abs(value) < 1e-3:
        text = f"{value:.{_DIGITS - 1}e}"
    digits, is_exponent, power = text.partition("e")
    return f"{digits.rstrip('0').rstrip('.')}e{int(power)}" if is_exponent else text
