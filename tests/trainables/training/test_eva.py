"""Adapters that start where a layer's inputs vary most."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from trainables.base.loading import load_base
from trainables.engine import build_engine
from trainables.errors import SpecError
from trainables.rows.data import EncodedRow, load_splits
from trainables.spec import BaseSpec, DataSpec, LoraSpec, OptimSpec, TrialSpec
from trainables.training.eva import first_rows, input_directions

LAYER = "model.layers.1.mlp.down_proj"


@pytest.fixture(params=["none", "nf4", "int8"])
def spec(request: pytest.FixtureRequest, tiny_base: Path, tiny_data: Path) -> TrialSpec:
    return TrialSpec(
        base=BaseSpec(model=str(tiny_base), quantization=request.param, compute_dtype="float32"),
        lora=LoraSpec(rank=6, init="eva", targets=("q_proj", "down_proj")),
        optim=OptimSpec(steps=20, batch_size=4, learning_rate=1e-2),
        data=DataSpec(train=str(tiny_data)),
    )


@pytest.mark.parametrize("shape", [(40, 12), (12, 40)], ids=["tall", "wide"])
def test_directions_are_right_singular_vectors(shape):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    directions = input_directions(x, 5, "layer")
    expected = torch.linalg.svd(x, full_matrices=False).Vh[:5]
    torch.testing.assert_close((directions * expected).sum(dim=1).abs(), torch.ones(5))
    assert (directions.gather(1, directions.abs().argmax(1, keepdim=True)) > 0).all()
    torch.testing.assert_close(directions[:3], input_directions(x, 3, "layer"))


def test_inputs_with_fewer_directions_than_rank_still_give_orthonormal_rows():
    x = torch.ones(30, 50)
    directions = input_directions(x, 4, "layer")
    torch.testing.assert_close(directions @ directions.T, torch.eye(4))
    torch.testing.assert_close(directions[0], torch.full((50,), 50**-0.5))


def test_a_rank_above_what_the_inputs_have_is_refused():
    with pytest.raises(
        SpecError, match=r"lora\.rank: got 9; allowed: at most 8 with lora\.init eva"
    ):
        input_directions(torch.randn(8, 16), 9, "layer")


def test_enough_rows_are_the_first_ones():
    rows = [
        EncodedRow(input_ids=np.arange(100), is_answer=np.ones(100, dtype=bool)) for _ in range(30)
    ]
    assert first_rows(rows) == rows[:11]
    assert first_rows(rows[:3]) == rows[:3]


# 8-bit layers multiply alike only with the same rows beside them.
@pytest.mark.parametrize("spec", ["none", "nf4"], indirect=True)
def test_a_fresh_adapter_looks_where_plain_transformers_says_inputs_vary(spec):
    engine = build_engine(spec.base)
    engine.join("seat", spec)
    plain = load_base(spec.base)
    seen = []
    layer = plain.model.get_submodule(LAYER)
    layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0][0].float()))
    for row in first_rows(load_splits(spec.data, plain.tokenizer).train.rows):
        with torch.no_grad():
            plain.model(torch.from_numpy(row.input_ids)[None].to(plain.device), use_cache=False)
    expected = torch.linalg.svd(torch.cat(seen), full_matrices=False).Vh[:6]
    a = engine.snapshot("seat").tensors[f"{LAYER}/a"]
    torch.testing.assert_close(
        (a * expected.cpu()).sum(dim=1).abs(), torch.ones(6), atol=1e-3, rtol=0
    )


def test_the_start_depends_on_data_and_rank_alone(spec):
    engine = build_engine(spec.base)
    engine.join("one", spec)
    engine.step(["one"])
    engine.join("two", replace(spec, seed=5))
    other = build_engine(spec.base)
    other.join("one", spec)
    other.join("wide", replace(spec, lora=replace(spec.lora, rank=8, dora=False)))
    start = other.snapshot("one").tensors
    again = engine.snapshot("two").tensors
    assert all(torch.equal(start[name], again[name]) for name in start)
    torch.testing.assert_close(
        other.snapshot("wide").tensors[f"{LAYER}/a"][:6], start[f"{LAYER}/a"]
    )


def test_the_adapted_model_starts_as_the_base_and_learns(spec):
    engine = build_engine(spec.base)
    engine.join("seat", spec)
    bare = engine.evaluate_base(spec)
    assert engine.evaluate("seat") == bare
    for _ in range(20):
        engine.step(["seat"])
    assert engine.evaluate("seat")["eval_loss"] < 0.8 * bare["eval_loss"]
