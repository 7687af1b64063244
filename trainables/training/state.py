"""Complete checkpoint of one seat, in memory and on disk; no pickle."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from trainables.errors import StateError
from trainables.spec import TrialSpec
from trainables.training.kinds import EngineKind, recorded_engine


@dataclass(frozen=True, kw_only=True)
class SeatState:
    """Complete checkpoint of one seat, portable between seats, packs, hosts and machines.

    Attributes:
        spec: The trial's spec.
        step: Optimizer steps taken.
        tokens: Tokens trained on.
        tensors: CPU tensors `<layer>/<leaf>` (`a`, `b`, `magnitude`) and the moments of
            their optimizer.
        inputs: Digests of the base, the rows, the chat template and the tokenizer by name.
        trained_by: `batched` if a batched engine took any of the steps.
    """

    spec: TrialSpec
    step: int
    tokens: int
    tensors: Mapping[str, torch.Tensor]
    inputs: Mapping[str, str | None] = field(default_factory=dict)
    trained_by: EngineKind = "exact"


def save_state(state: SeatState, folder: Path) -> None:
    """Write a checkpoint as `state.safetensors` and `state.json` into an existing folder."""
    save_file(dict(state.tensors), folder / "state.safetensors")
    values = {
        "spec": state.spec.to_dict(),
        "step": state.step,
        "tokens": state.tokens,
        "inputs": dict(state.inputs),
        "trained_by": state.trained_by,
    }
    (folder / "state.json").write_text(json.dumps(values, sort_keys=True))


def load_state(folder: Path) -> SeatState:
    """Read a checkpoint written by `save_state`.

    Raises:
        StateError: The files are not those of a checkpoint.
    """
    try:
        values = json.loads((folder / "state.json").read_text())
        return SeatState(
            spec=TrialSpec.from_dict(values["spec"]),
            step=int(values["step"]),
            tokens=int(values["tokens"]),
            tensors=load_file(folder / "state.safetensors"),
            inputs=dict(values["inputs"]),
            trained_by=recorded_engine(values.get("trained_by")),
        )
    except (OSError, ValueError, LookupError, TypeError, AttributeError, SafetensorError) as error:
        said = " ".join(str(error).split()) or type(error).__name__
        raise StateError(
            f"{folder}: the saved state cannot be read ({said}); allowed: a state that this "
            "version saved. Remove the folder: the trial then starts from step 0."
        ) from error


def require_inputs(state: SeatState, inputs: Mapping[str, str | None]) -> None:
    """Require that a checkpoint was trained on the same base and rows.

    Raises:
        StateError: A digest differs.
    """
    for name, digest in inputs.items():
        if state.inputs.get(name) != digest:
            raise StateError(
                f"the saved state of step {state.step}: it was trained with another {name} "
                f"(digest {state.inputs.get(name)}); allowed: the {name} of this trial (digest "
                f"{digest}). Restore the {name}, or choose another storage for the sweep."
            )
