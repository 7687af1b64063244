"""Bundles of adapters that were really trained, once for all tests."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from trainables.engine import Engine, build_engine
from trainables.spec import BaseSpec, DataSpec, LoraSpec, OptimSpec, TrialSpec


@dataclass(frozen=True)
class Trained:
    spec: TrialSpec
    engine: Engine
    bundle: Path


@pytest.fixture(scope="session")
def train(
    tiny_base: Path, tiny_data: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Trained]:
    """Train an adapter for some steps; asked again, the same one is given."""
    done: dict[tuple, Trained] = {}

    def once(
        quantization: str = "nf4",
        *,
        dora: bool = False,
        data: object = None,
        compute_dtype: str = "float32",
    ) -> Trained:
        key = (quantization, dora, repr(data), compute_dtype)
        if key not in done:
            base = BaseSpec(
                model=str(tiny_base), quantization=quantization, compute_dtype=compute_dtype
            )
            spec = TrialSpec(
                base=base,
                lora=LoraSpec(rank=4, alpha=16, dora=dora),
                optim=OptimSpec(steps=25, batch_size=8, learning_rate=2e-2),
                data=data or DataSpec(train=str(tiny_data), test_fraction=0.3),
            )
            engine = build_engine(base)
            engine.join("seat", spec)
            for _ in range(spec.optim.steps):
                engine.step(["seat"])
            bundle = tmp_path_factory.mktemp("trained") / "bundle"
            engine.export("seat", bundle, {})
            done[key] = Trained(spec, engine, bundle)
        return done[key]

    return once
