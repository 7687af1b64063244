"""4-bit weights that are kept dequantized: the same weights bit for bit."""

from dataclasses import replace

import pytest
import torch

from tests.support.plain_peft import adapter_of, largest_difference
from trainables.base.loading import load_base
from trainables.engine import Engine, build_engine
from trainables.packing.kernels import dense_weight
from trainables.spec import BaseSpec, DataSpec, EvalSpec, LoraSpec, OptimSpec, TrialSpec

CASES = [
    ("llama", "nf4", "float32", {}),
    ("llama", "nf4", "bfloat16", {"dora": True}),
    ("gemma 2, bounded logits", "fp4", "bfloat16", {"rslora": True}),
    ("gpt2, Conv1D", "nf4", "float32", {"dora": True}),
    ("llama", "int8", "float32", {}),
    ("llama", "none", "bfloat16", {}),
]


def trial_on(base, data, form="nf4", compute="float32", lora=None):
    return TrialSpec(
        base=BaseSpec(model=str(base), quantization=form, compute_dtype=compute),
        lora=LoraSpec(**{"rank": 4, "dropout": 0.1, **(lora or {})}),
        optim=OptimSpec(steps=10, batch_size=6, learning_rate=3e-3),
        data=DataSpec(train=str(data)),
        eval=EvalSpec(batch_size=8),
        seed=1,
    )


def trained(spec, dense):
    spec = replace(spec, base=replace(spec.base, dense=dense))
    engine = build_engine(spec.base)
    engine.join("seat", spec)
    for _ in range(4):
        engine.step(["seat"])
    return engine, adapter_of(engine, "seat"), engine.evaluate("seat")


@pytest.mark.parametrize(("name", "form", "compute", "lora"), CASES)
def test_weights_and_metrics_are_the_same_with_and_without_it(
    base_of, tiny_data, name, form, compute, lora
):
    spec = trial_on(base_of(name), tiny_data, form, compute, lora)
    _, plain, metrics = trained(spec, dense=False)
    engine, again, same = trained(spec, dense=True)
    assert engine.is_dense
    assert largest_difference(plain, again) == 0.0
    assert metrics == same
    assert any(weights.any() for key, weights in plain.items() if key.endswith("/b"))


def test_a_kept_weight_is_used_again_and_freed(base_of, tiny_data):
    engine, *_ = trained(trial_on(base_of("llama"), tiny_data), dense=True)
    layer = next(iter(engine._model.linears.values())).base
    kept = dense_weight(layer, torch.float32)
    assert dense_weight(layer, torch.float32) is kept
    engine._model.is_dense = False
    fresh = dense_weight(layer, torch.float32)
    assert fresh is not kept
    assert torch.equal(fresh, kept)


def joined(spec, memory):
    engine = Engine(load_base(spec.base), memory=memory)
    engine.join("seat", spec)
    return engine


def test_auto_keeps_it_where_it_costs_no_seat(base_of, tiny_data):
    spec = trial_on(base_of("llama"), tiny_data)
    roomy = joined(spec, memory=10**12)
    assert roomy.is_dense
    assert roomy.save_memory()
    assert not roomy.is_dense
    assert roomy.save_memory()  # checkpoints come after it
    assert not roomy.save_memory()
    whole = joined(trial_on(base_of("llama"), tiny_data, form="none"), memory=10**12)
    assert not whole.is_dense


def test_auto_leaves_it_where_it_would_take_a_seat_or_no_memory_is_known(base_of, tiny_data):
    spec = trial_on(base_of("llama"), tiny_data)
    plain = Engine(load_base(spec.base))
    plain.join("seat", spec)
    assert not plain.is_dense or torch.cuda.is_available()
    plain.join("other", spec)
    needed = plain.foresight._total([*plain._seats.values()])
    assert not joined(spec, memory=needed).is_dense


def test_a_trial_that_asks_for_it_keeps_it(base_of, tiny_data):
    spec = trial_on(base_of("llama"), tiny_data)
    engine = joined(replace(spec, base=replace(spec.base, dense=True)), memory=10**6)
    assert engine.is_dense
    assert not engine.save_memory()  # checkpoints were switched on when it joined
    assert engine.is_dense
