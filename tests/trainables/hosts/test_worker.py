"""The bench that really trains, driven by a host's loop."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from trainables.errors import BaseModelError
from trainables.hosts.bench import Failure
from trainables.hosts.host import HostLoop
from trainables.hosts.orders import Orders, SeatOrder, SeatRequest
from trainables.hosts.worker import build_torch_bench, try_build
from trainables.spec import BaseSpec, DataSpec, EvalSpec, OptimSpec, TrialSpec
from trainables.training.bundle import load_bundle, read_manifest


class Script:
    """A mailbox that gives out orders one after the other and keeps what it hears."""

    def __init__(self, *orders):
        self.orders = [*orders, Orders(is_over=True)]
        self.reports, self.freed = [], []

    def exchange(self, report):
        self.reports += report.reports
        self.freed += report.freed
        return self.orders.pop(0)


@pytest.fixture
def spec(tiny_base: Path, tiny_data: Path) -> TrialSpec:
    return TrialSpec(
        base=BaseSpec(model=str(tiny_base), quantization="none", compute_dtype="float32"),
        optim=OptimSpec(steps=4, learning_rate=5e-3),
        data=DataSpec(train=str(tiny_data), max_tokens=32),
        eval=EvalSpec(every=2),
    )


def seat(spec, folder, *, known=0, until=0, is_leaving=False):
    request = SeatRequest(
        spec=spec.to_dict(), state_dir=str(folder / "state"), bundle_dir=str(folder / "bundle")
    )
    order = SeatOrder(key="t0", request=request, known=known, until=until, is_leaving=is_leaving)
    return Orders(seats=(order,))


def run(spec, folder, *orders, choice="exact", seats=1):
    script = Script(*orders)
    HostLoop(build_torch_bench(spec.base, choice, seats), script).run()
    return script


def losses(script):
    return [(report.step, report.metrics["eval_loss"]) for report in script.reports]


def test_a_trial_trains_reports_and_leaves_a_bundle(spec, tmp_path):
    first = seat(spec, tmp_path, until=2)
    second = seat(spec, tmp_path, known=2, until=4)
    leaving = seat(spec, tmp_path, known=4, until=4, is_leaving=True)
    script = run(spec, tmp_path, first, first, second, second, leaving)
    assert [report.step for report in script.reports] == [2, 4]
    assert script.reports[1].metrics["tokens"] > script.reports[0].metrics["tokens"]
    assert {type(value) for value in script.reports[1].metrics.values()} == {int, float}
    assert [freed.error for freed in script.freed] == [""]
    assert (tmp_path / "bundle" / "adapter_model.safetensors").exists()


def test_a_trial_that_changes_hosts_trains_to_the_same_losses(spec, tmp_path):
    orders = [seat(spec, tmp_path / "a", until=2)] * 2
    orders += [seat(spec, tmp_path / "a", known=2, until=4)] * 2
    whole = losses(run(spec, tmp_path / "a", *orders))
    halves = losses(run(spec, tmp_path / "b", *[seat(spec, tmp_path / "b", until=2)] * 2))
    more = [seat(spec, tmp_path / "b", known=2, until=4)] * 2
    halves += losses(run(spec, tmp_path / "b", *more))
    assert halves == whole


@pytest.mark.parametrize(
    ("choice", "dtype", "engine"),
    [
        ("exact", "bfloat16", "exact"),
        ("auto", "float32", "exact"),
        ("auto", "bfloat16", "batched"),
        ("batched", "float32", "batched"),
    ],
)
def test_the_bundle_says_which_engine_trained_it(spec, tmp_path, choice, dtype, engine):
    if torch.cuda.is_available():
        pytest.skip("needs a CPU: auto is exact on a GPU")
    spec = replace(spec, base=replace(spec.base, compute_dtype=dtype))
    orders = [seat(spec, tmp_path, until=2)] * 2 + [seat(spec, tmp_path, known=2, until=4)] * 2
    leaving = seat(spec, tmp_path, known=4, until=4, is_leaving=True)
    run(spec, tmp_path, *orders, leaving, choice=choice, seats=4)
    assert read_manifest(tmp_path / "bundle")["engine"] == engine
    state, _ = load_bundle(tmp_path / "bundle", spec)
    assert state.trained_by == engine


def test_a_base_that_cannot_be_loaded_is_a_reason_and_not_a_crash():
    def build(base):
        raise BaseModelError("base.model: got 'x'")

    assert try_build(build, BaseSpec(model="x")) == Failure(
        fault="failed", reason="base.model: got 'x'"
    )
