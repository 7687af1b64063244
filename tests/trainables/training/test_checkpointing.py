"""Decoder layers that are computed again: the same weights bit for bit, and less memory."""

from dataclasses import replace

import pytest
import torch

from tests.support.measured_bytes import measure_pass
from tests.support.plain_peft import adapter_of, largest_difference
from tests.support.tiny import build_byte_tokenizer, build_tiny_llama
from trainables.base.loading import load_base
from trainables.engine import Engine, build_engine
from trainables.errors import SpecError
from trainables.spec import BaseSpec, DataSpec, EvalSpec, LoraSpec, OptimSpec, TrialSpec


def trial_on(base, data, form="nf4", compute="float32", lora=None, **optim):
    return TrialSpec(
        base=BaseSpec(model=str(base), quantization=form, compute_dtype=compute),
        lora=LoraSpec(**{"rank": 4, "dropout": 0.1, **(lora or {})}),
        optim=OptimSpec(**{"steps": 10, "batch_size": 6, "learning_rate": 3e-3, **optim}),
        data=DataSpec(train=str(data)),
        eval=EvalSpec(batch_size=8),
        seed=1,
    )


def trained(*specs, steps=4):
    engine = build_engine(specs[0].base)
    names = [f"seat {number}" for number in range(len(specs))]
    for name, spec in zip(names, specs, strict=True):
        engine.join(name, spec)
    for _ in range(steps):
        engine.step(names)
    return [adapter_of(engine, name) for name in names]


def with_checkpoints(spec, asked=True):
    return replace(spec, optim=replace(spec.optim, gradient_checkpointing=asked))


CASES = [
    ("llama", "none", "float32", {}),
    ("llama", "nf4", "bfloat16", {"dora": True}),
    ("llama", "int8", "float32", {}),
    ("qwen3, q/k norm", "nf4", "float32", {"dora": True}),
    ("gemma 2, bounded logits", "nf4", "bfloat16", {}),
    ("gemma 3, windows, q/k norm", "fp4", "bfloat16", {"rslora": True}),
    ("mistral, window", "none", "bfloat16", {"targets": "mlp"}),
    ("gpt2, Conv1D", "nf4", "float32", {}),
    ("opt", "nf4", "bfloat16", {"targets": "attention"}),
    ("deepseek 3", "none", "float32", {"targets": "attention"}),
]


@pytest.mark.parametrize(("name", "form", "compute", "lora"), CASES)
def test_the_weights_are_the_same_with_and_without_it(
    base_of, tiny_data, name, form, compute, lora
):
    spec = trial_on(base_of(name), tiny_data, form, compute, lora, micro_batch_size=3)
    (plain,), (again,) = trained(spec), trained(with_checkpoints(spec))
    assert largest_difference(plain, again) == 0.0
    assert any(weights.any() for key, weights in plain.items() if key.endswith("/b"))


def test_one_seat_that_asks_for_it_changes_no_neighbour(base_of, tiny_data):
    spec = trial_on(base_of("llama"), tiny_data)
    beside = replace(trial_on(base_of("llama"), tiny_data, lora={"rank": 8}), seed=2)
    plain, other = trained(spec, beside)
    again, mixed = trained(with_checkpoints(spec), with_checkpoints(beside, asked=False))
    assert largest_difference(plain, again) == 0.0
    assert largest_difference(other, mixed) == 0.0


def test_a_deep_base_keeps_less_than_a_third(tmp_path, tiny_data):
    build_tiny_llama(layers=8).save_pretrained(tmp_path)
    build_byte_tokenizer().save_pretrained(tmp_path)
    spec = trial_on(tmp_path, tiny_data, compute="bfloat16")

    def kept(one):
        engine = build_engine(one.base)
        engine.join("seat", one)
        return measure_pass(engine, ["seat"]).kept

    assert kept(with_checkpoints(spec)) < kept(spec) / 3


def test_auto_saves_memory_when_it_is_told_to(base_of, tiny_data):
    spec = trial_on(base_of("llama"), tiny_data)
    engine = build_engine(spec.base)
    engine.join("auto", spec)
    engine.join("never", with_checkpoints(spec, asked=False))
    before = measure_pass(engine, ["auto"]).kept
    assert engine.save_memory()
    assert not engine.save_memory()  # not new
    assert measure_pass(engine, ["auto"]).kept < before
    assert measure_pass(engine, ["never"]).kept == before


def test_auto_saves_memory_where_the_forecast_exceeds_the_device(base_of, tiny_data):
    spec = trial_on(base_of("llama"), tiny_data)
    base = load_base(spec.base)
    roomy = Engine(base, memory=10**12)
    roomy.join("seat", spec)
    assert not roomy._thrift.has_checkpoints(["seat"])
    assert roomy.save_memory()  # it was not saved yet

    small = Engine(load_base(spec.base), memory=10**6)
    small.join("auto", spec)
    small.join("never", with_checkpoints(spec, asked=False))
    assert small._thrift.has_checkpoints(["auto"])
    assert not small._thrift.has_checkpoints(["never"])
    assert not small.save_memory()

    unlimited = Engine(load_base(spec.base))
    unlimited.join("seat", spec)
    assert not unlimited._thrift.has_checkpoints(["seat"]) or torch.cuda.is_available()


def test_layers_are_computed_twice_in_steps_and_once_in_evaluations(base_of, tiny_data):
    spec = with_checkpoints(trial_on(base_of("llama"), tiny_data))
    engine = build_engine(spec.base)
    engine.join("seat", spec)
    calls = []
    layer = engine.base.model.model.layers[0].mlp
    layer.register_forward_pre_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    engine.evaluate("seat")
    assert calls == [False]
    engine.step(["seat"])
    assert calls == [False, True, True]


@pytest.mark.parametrize("limit", [1, 40, 100, 10**6])
def test_a_token_limit_splits_passes_and_changes_nothing_else(base_of, tiny_data, limit):
    spec = trial_on(base_of("llama"), tiny_data, "none")
    limited = replace(spec, optim=replace(spec.optim, max_tokens_per_pass=limit))
    engine = build_engine(spec.base)
    engine.join("seat", spec)
    engine.join("limited", limited)
    for _ in range(3):
        engine.step(["seat", "limited"])
        for batch in engine._passes("limited"):
            assert batch.block.tokens <= limit or batch.block.rows == 1
    (whole,) = engine._passes("seat")
    parts = engine._passes("limited")
    assert sum(batch.block.rows for batch in parts) == whole.block.rows
    assert (len(parts) == 1) == (limit >= whole.block.tokens)
    assert len(parts) <= whole.block.rows
    one, other = adapter_of(engine, "seat"), adapter_of(engine, "limited")
    assert largest_difference(one, other) <= (0.0 if len(parts) == 1 else 1e-5)


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("gradient_checkpointing", "yes", "auto, true or false"),
        ("gradient_checkpointing", 1, "auto, true or false"),
        ("max_tokens_per_pass", 0, ">= 1"),
    ],
)
def test_other_values_are_refused(field, value, allowed):
    with pytest.raises(SpecError, match=rf"optim\.{field}.*{allowed}"):
        OptimSpec(steps=1, **{field: value})
