"""A real trial on a host whose memory holds fewer rows than its micro-batch."""

import json
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
    """An engine that holds gradients of so many rows and no more."""

    def __init__(self, base, room):
        super().__init__(base)
        self.room = room
        self.refusals = 0

    def _backward(self, batches, answers):
        if sum(batch.block.rows for batch in batches) > self.room:
            self.refusals += 1
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


def run(spec, room, folder):
    engine = NarrowEngine(load_base(spec.base), room)
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


def test_half_a_micro_batch_per_pass_trains_the_same_adapter(spec, tmp_path):
    roomy, _ = run(spec, 3, tmp_path / "roomy")
    narrow, trial = run(spec, 2, tmp_path / "narrow")
    assert (roomy.refusals, narrow.refusals) == (0, 1)
    assert [(report.step, report.fault) for report in trial.reports] == [(3, None), (6, None)]
    one, other = (
        load_file(tmp_path / name / "bundle" / "adapter_model.safetensors")
        for name in ("roomy", "narrow")
    )
    assert one.keys() == other.keys()
    assert (
        max((one[name] - other[name]).abs().max().item() for name in one) <= 1e-5
    )  # sums in another order
    manifest = json.loads((tmp_path / "narrow" / "bundle" / "manifest.json").read_text())
    assert manifest["optim"]["micro_batch_size"] == 3
    assert manifest["steps"] == STEPS


def test_half_a_micro_batch_that_does_not_fit_either_is_infeasible(spec, tmp_path):
    engine, trial = run(spec, 1, tmp_path)
    (last,) = trial.reports
    assert engine.refusals == 2
    assert last.fault == "infeasible"
    assert last.reason == (
        "out of memory with 3 rows per pass, and again with 2 "
        "(OutOfMemoryError: no room for activations)"
    )
