"""A whole checkpoint of one seat, in memory and on disk; no pickle."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from trainables.spec import TrialSpec


@dataclass(frozen=True, kw_only=True)
class SeatState:
    """A whole checkpoint of one seat; it moves between seats, packs, hosts and machines.

    Attributes:
        spec: What is being trained.
        step: Optimizer steps taken.
        tokens: Tokens trained on.
        tensors: On the CPU: `<layer>/a`, `<layer>/b` and their AdamW moments.
    """

    spec: TrialSpec
    step: int
    tokens: int
    tensors: Mapping[str, torch.Tensor]


def save_state(state: SeatState, folder: Path) -> None:
    """Write a checkpoint as `state.safetensors` and `state.json` into an existing folder."""
    save_file(dict(state.tensors), folder / "state.safetensors")
    values = {"spec": state.spec.to_dict(), "step": state.step, "tokens": state.tokens}
    (folder / "state.json").write_text(json.dumps(values, sort_keys=True))


def load_state(folder: Path) -> SeatState:
    """Read what `save_state` wrote."""
    values = json.loads((folder / "state.json").read_text())
    return SeatState(
        spec=TrialSpec.from_dict(values["spec"]),
        step=values["step"],
        tokens=values["tokens"],
        tensors=load_file(folder / "state.safetensors"),
    )
