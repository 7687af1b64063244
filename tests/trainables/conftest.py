"""Bundles of adapters that were really trained, and random bases of many kinds, made once."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from tests.support.bases import DENSE, EXPERTS, save_base
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


@pytest.fixture(scope="session")
def base_of(
    tmp_path_factory: pytest.TempPathFactory, byte_tokenizer: PreTrainedTokenizerFast
) -> Callable[[str], Path]:
    """Make a base of a kind in `tests.support.bases`, stored in bfloat16; once for each kind."""
    made: dict[str, Path] = {}

    def build(name: str) -> Path:
        if name not in made:
            folder = tmp_path_factory.mktemp("base")
            made[name] = save_base(folder, {**DENSE, **EXPERTS}[name], "bfloat16", byte_tokenizer)
        return made[name]

    return build
