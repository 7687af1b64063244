"""A real trial on a host whose memory holds fewer rows than its micro-batch."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from trainables.base.loading import load_base
from trainables.engine import Engine
from trainables.hosts.bench import Bench
from trainables.hosts.host import HostLoop
from trainables.hosts.orders import Orders, SeatOrder, SeatRequest
from trainables.spec import BaseSpec, DataSpec, EvalSpec, LoraSpec, OptimSpec, TrialSpec
from trainables.training.bundle import load_bundle
from trainables.training.state import load_state, save_state

STEPS = 6


class NarrowEngine(Engine):
    """An engine that holds gradients of so many rows or tokens and no more.

    A row takes half of the room while decoder layers are computed again.
    """

    def __init__(self, base, room, tokens=10**9):
        super().__init__(base)
        self.room, self.tokens = room, tokens
        self.asked = []

    @property
    def refusals(self):
        return sum(not is_held for *_, is_held in self.asked)

    def _backward(self, batches, answers):
        rows = sum(batch.block.rows for batch in batches)
        tokens = sum(batch.block.tokens for batch in batches)
        is_checkpointed = self._thrift.has_checkpoints(batch.block.seat for batch in batches)
        is_held = rows <= self.room * (2 if is_checkpointed else 1) and tokens <= self.tokens
        self.asked.append((rows, is_checkpointed, is_held))
        if not is_held:
            raise torch.OutOfMemoryError("no room for activations")
        return super()._backward(batches, answers)


class OneTrial:
    """Plays broker: one trial, two reports, then its bundle."""

    def __init__(self, spec, folder):
        self.request = SeatRequest(
            spec=spec.to_dict(),
            state_dir=str(folder / "state"),
            bundle_dir=str(folder / "bundle"),
        )
        self.reports = []

    def exchange(self, report):
        self.reports += report.reports
        known = self.reports[-1].step if self.reports else 0
        if report.freed or (self.reports and self.reports[-1].fault):
            return Orders(is_over=True)
        order = SeatOrder(
            key="trial",
            request=self.request,
            known=known,
            until=min(known + 3, STEPS),
            is_leaving=known >= STEPS,
        )
        return Orders(seats=(order,))


@pytest.fixture
def spec(tiny_base: Path, tiny_data: Path) -> TrialSpec:
    return TrialSpec(
        base=BaseSpec(model=str(tiny_base), quantization="none", compute_dtype="float32"),
        lora=LoraSpec(dropout=0.1),
        optim=OptimSpec(steps=STEPS, batch_size=6, micro_batch_size=3, learning_rate=3e-3),
        data=DataSpec(train=str(tiny_data)),
        eval=EvalSpec(every=3),
    )


def run(spec, room, folder, tokens=10**9):
    engine = NarrowEngine(load_base(spec.base), room, tokens)
    trial = OneTrial(spec, folder)
    bench = Bench(
        engine=engine,
        save_state=save_state,
        load_state=load_state,
        load_bundle=load_bundle,
        peak_memory_gib=lambda: 0.25,
    )
    HostLoop(bench, trial).run()
    return engine, trial


def weights_of(folder):
    return load_file(folder / "bundle" / "adapter_model.safetensors")


def largest_difference(one, other):
    assert one.keys() == other.keys()
    return max((one[name] - other[name]).abs().max().item() for name in one)


def test_layers_computed_again_make_room_and_change_nothing(spec, tmp_path):
    roomy, _ = run(spec, 3, tmp_path / "roomy")
    narrow, trial = run(spec, 2, tmp_path / "narrow")
    assert roomy.refusals == 0
    assert [(report.step, report.fault) for report in trial.reports] == [(3, None), (6, None)]
    assert narrow.asked[:2] == [(3, False, False), (3, True, True)]
    assert narrow.refusals == 1
    assert largest_difference(weights_of(tmp_path / "roomy"), weights_of(tmp_path / "narrow")) == 0


def test_half_a_micro_batch_per_pass_trains_the_same_adapter(spec, tmp_path):
    never = replace(spec, optim=replace(spec.optim, gradient_checkpointing=False))
    run(never, 3, tmp_path / "roomy")
    narrow, trial = run(never, 2, tmp_path / "narrow")
    assert not any(is_checkpointed for _, is_checkpointed, _ in narrow.asked)
    assert [(report.step, report.fault) for report in trial.reports] == [(3, None), (6, None)]
    one, other = weights_of(tmp_path / "roomy"), weights_of(tmp_path / "narrow")
    assert largest_difference(one, other) <= 1e-5  # sums in another order
    manifest = json.loads((tmp_path / "narrow" / "bundle" / "manifest.json").read_text())
    assert manifest["optim"]["micro_batch_size"] == 3
    assert manifest["steps"] == STEPS


def test_a_row_that_does_not_fit_alone_is_told_with_what_fits(spec, tmp_path):
    engine, trial = run(spec, 0, tmp_path)
    (last,) = trial.reports
    assert [rows for rows, *_ in engine.asked] == [3, 3, 2, 1]
    assert last.fault == "infeasible"
    assert last.reason == (
        "out of memory with 3 rows per pass, and again with 1 "
        "(OutOfMemoryError: no room for activations)"
    )


def test_the_widest_pass_that_fitted_is_told(spec, tmp_path):
    rows = [{"prompt": f"{letter} ->", "completion": " b" * 8} for letter in "abcdefghijklm"]
    rows.insert(6, {"prompt": "z ->", "completion": " b" * 60})
    spec = replace(
        spec,
        data=DataSpec(train=rows[:-2], validation=rows[-2:]),
        optim=replace(spec.optim, batch_size=2, micro_batch_size=1),
    )
    _, trial = run(spec, 1, tmp_path, tokens=100)
    last = trial.reports[-1]
    assert last.fault == "infeasible"
    assert last.reason == (
        "out of memory with 1 row per pass; passes of up to 21 tokens fitted: set "
        "data.train_max_tokens below that (OutOfMemoryError: no room for activations)"
    )
