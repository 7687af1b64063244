"""Paged optimizers of bitsandbytes whose memory serves one seat after another.

bitsandbytes 0.50 allocates a paged moment as CUDA managed memory and has no call that frees it. A
host trains hundreds of trials, so the memory of a seat that was left serves the next moment of its
shape.
"""

from __future__ import annotations

from typing import Any

import torch
from bitsandbytes import optim as bnb

_Key = tuple[torch.Size, torch.dtype, torch.device]

_free: dict[_Key, list[torch.Tensor]] = {}
"""Paged memory that no optimizer uses."""


class _ReusedPages:
    """Takes paged memory that another optimizer gave back, before new memory is allocated."""

    def get_state_buffer(
        self, parameter: torch.Tensor, dtype: torch.dtype = torch.float32
    ) -> torch.Tensor:
        """A moment of zeros with the shape of a parameter; paged if large and on a GPU."""
        free = _free.get((parameter.shape, dtype, parameter.device))
        if free:
            return free.pop().zero_()
        made: torch.Tensor = super().get_state_buffer(parameter, dtype)  # type: ignore[misc]
        return made


class PagedAdamW(_ReusedPages, bnb.PagedAdamW32bit):  # type: ignore[misc]
    """AdamW with paged moments of 32 bits."""


class PagedAdamW8bit(_ReusedPages, bnb.PagedAdamW8bit):  # type: ignore[misc]
    """AdamW with paged moments of 8 bits."""


class PagedLion8bit(_ReusedPages, bnb.PagedLion8bit):  # type: ignore[misc]
    """Lion with a paged moment of 8 bits."""


def free_pages(optimizer: Any) -> None:
    """Let other optimizers use the paged memory of an optimizer that takes no further step."""
    if not isinstance(optimizer, _ReusedPages):
        return
    for parameter, state in optimizer.state.items():  # type: ignore[attr-defined]
        for moment in state.values():
            if getattr(moment, "is_paged", False):
                key = parameter.shape, moment.dtype, parameter.device
                _free.setdefault(key, []).append(moment)
    optimizer.state.clear()  # type: ignore[attr-defined]
