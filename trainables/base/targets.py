"""Target layers of an adapter, selected by layer names."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

from trainables.claims import begin
from trainables.errors import SpecError
from trainables.spec import TARGET_GROUPS

_ATTENTION = ("attn", "attention")
_MLP = ("mlp", "ffn", "feed_forward", "feedforward")


def resolve_targets(layers: Sequence[str], targets: str | Sequence[str]) -> tuple[str, ...]:
    """Full names of the layers selected by `targets`, in the model's order.

    Args:
        layers: Full names of all linear layers.
        targets: `attention`, `mlp`, `all-linear`, or layer names, matched by PEFT's rule: the full
            name or its end after a dot.

    Raises:
        SpecError: A target matches no layer; the message lists the available layers.
    """
    if isinstance(targets, str):
        parts = {"attention": _ATTENTION, "mlp": _MLP, "all-linear": ()}[targets]
        parents = {name: ".".join(name.split(".")[-2:-1]).lower() for name in layers}
        chosen = tuple(
            name
            for name, parent in parents.items()
            if not parts or any(part in parent for part in parts)
        )
        if not chosen:
            known = ", ".join(leaf_names(layers)) or "(no linear layer at all)"
            raise SpecError(
                f"lora.targets: got {targets!r}, but this base has no such layers; allowed: a "
                f"list from {known}. Name the layers one by one."
            )
        return chosen
    for target in targets:
        if not any(_matches(name, target) for name in layers):
            leaves = leaf_names(layers)
            near = difflib.get_close_matches(target, [*leaves, *TARGET_GROUPS], n=1)
            raise SpecError(
                f"{begin('lora.targets', *near)} {target!r}, which is no linear layer of this "
                f"base; allowed: {', '.join(leaves)}, attention, mlp, all-linear. Correct the "
                "name."
            )
    return tuple(name for name in layers if any(_matches(name, target) for target in targets))


def short_targets(layers: Sequence[str], chosen: Sequence[str]) -> list[str]:
    """Shortest sorted list of target names that PEFT resolves to exactly `chosen`."""
    leaves = leaf_names(chosen)
    if resolve_targets(layers, leaves) == tuple(chosen):
        return leaves
    return sorted(chosen)


def leaf_names(names: Iterable[str]) -> list[str]:
    """Last parts of dotted names, sorted and without duplicates."""
    return sorted({name.rsplit(".", 1)[-1] for name in names})


def _matches(name: str, target: str) -> bool:
    return name == target or name.endswith("." + target)
