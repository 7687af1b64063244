"""What a host measures of itself: bytes beside their forecast, and the seats that pay."""

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.support.fake_engine import FakeEngine
from tests.support.measured_bytes import adapter_bytes, base_bytes, measure_pass, optimizer_bytes
from trainables.base.loading import load_base
from trainables.engine import Engine, build_engine
from trainables.hosts.bench import Bench
from trainables.hosts.gauging import Gauge
from trainables.hosts.host import HostLoop
from trainables.hosts.orders import HostGauge, HostPrior, Orders, SeatOrder, SeatRequest
from trainables.memory.calibration import Calibration, Correction
from trainables.spec import BaseSpec, DataSpec, EvalSpec, LoraSpec, OptimSpec, TrialSpec
from trainables.training.bundle import load_bundle
from trainables.training.state import load_state, save_state

ROOMY = 10**9
STEPS = 4


@pytest.fixture
def spec(tiny_base: Path, tiny_data: Path) -> TrialSpec:
    return TrialSpec(
        base=BaseSpec(model=str(tiny_base), quantization="none", compute_dtype="float32"),
        lora=LoraSpec(rank=8, dropout=0.1),
        optim=OptimSpec(steps=STEPS, batch_size=4, micro_batch_size=2, learning_rate=3e-3),
        data=DataSpec(train=str(tiny_data)),
        eval=EvalSpec(every=2),
    )


def unlike(spec: TrialSpec, number: int) -> TrialSpec:
    return replace(spec, seed=number, lora=LoraSpec(rank=2 * number, dropout=0.1))


class Trials:
    """Plays broker: some trials, each to its end, beside one another as far as seats allow."""

    def __init__(self, specs, folder, seats=1):
        self.requests = {
            f"trial {number}": SeatRequest(
                spec=spec.to_dict(),
                state_dir=str(folder / f"state-{number}"),
                bundle_dir=str(folder / f"bundle-{number}"),
            )
            for number, spec in enumerate(specs)
        }
        self.folder, self.seats = folder, seats
        self.waiting, self.seated, self.reports = list(self.requests), [], {}
        self.gauges, self.most = [], 0

    def exchange(self, report):
        for one in report.reports:
            assert one.fault is None, one.reason
            self.reports.setdefault(one.key, []).append(one)
        if report.gauge is not None:
            self.gauges.append(report.gauge)
            if report.gauge.decision is not None:
                self.seats = report.gauge.decision.seats
        for freed in report.freed:
            assert not freed.error
            self.seated.remove(freed.key)
        while self.waiting and len(self.seated) < self.seats:
            self.seated.append(self.waiting.pop(0))
        self.most = max(self.most, len(self.seated))
        orders = [self.order(key) for key in self.seated]
        return Orders(seats=tuple(orders), is_over=not orders)

    def order(self, key):
        known = self.reports[key][-1].step if key in self.reports else 0
        return SeatOrder(
            key=key,
            request=self.requests[key],
            known=known,
            until=min(known + 2, STEPS),
            is_leaving=known >= STEPS,
        )

    def weights(self):
        return [
            load_file(self.folder / f"bundle-{number}" / "adapter_model.safetensors")
            for number in range(len(self.requests))
        ]


def bench_of(engine):
    return Bench(
        engine=engine,
        save_state=save_state,
        load_state=load_state,
        load_bundle=load_bundle,
        peak_memory_gib=lambda: 0.25,
    )


def train(specs, folder, memory=None, seats=1, clock=None, **gauge):
    engine = Engine(load_base(specs[0].base), memory=memory)
    trials = Trials(specs, folder, seats)
    clock = clock or Clock(engine)
    HostLoop(bench_of(engine), trials, clock, Gauge(engine, clock, **gauge)).run()
    return trials


class Clock:
    """Time of an engine whose pack takes `fixed` seconds, and one for each seat."""

    def __init__(self, engine, fixed=0.0):
        self.now, self.step = 0.0, engine.step

        def timed(seats):
            self.now += fixed + len(seats)
            return self.step(seats)

        engine.step = timed

    def __call__(self):
        return self.now


def difference(one, other):
    return max((a[name] - b[name]).abs().max().item()
               for a, b in zip(one, other, strict=True) for name in a)  # fmt: skip


def test_measuring_changes_no_weight_and_no_report(spec, tmp_path):
    specs = [unlike(spec, number) for number in (1, 2, 3)]
    alone = train(specs, tmp_path / "alone")
    measured = train(specs, tmp_path / "measured", memory=ROOMY, seats=3)
    found = train(specs, tmp_path / "found", memory=ROOMY, finds_seats=True)
    assert not alone.gauges
    assert alone.most == 1
    assert measured.most == 3
    for other in (measured, found):
        assert difference(alone.weights(), other.weights()) == 0.0
        for key, reports in alone.reports.items():
            for one, two in zip(reports, other.reports[key], strict=True):
                assert one.metrics["eval_loss"] == two.metrics["eval_loss"]
                assert one.metrics["tokens"] == two.metrics["tokens"]


def test_forecast_and_outcome_are_told_once_for_each_larger_pack(spec, tmp_path):
    specs = [unlike(spec, number) for number in (4, 3, 2)]
    trials = train(specs, tmp_path, memory=ROOMY, seats=2)
    readings = [gauge.reading for gauge in trials.gauges]
    assert [(one.seats, one.capacity) for one in readings] == [(2, ROOMY), (1, ROOMY)]
    engine = build_engine(spec.base)
    for number, one in enumerate(specs[:2]):
        engine.join(str(number), one)
    engine.step(["0", "1"])
    first = readings[0]
    assert first.measured["base"] == base_bytes(engine)
    assert first.measured["adapters"] == sum(adapter_bytes(engine, name) for name in "01")
    assert first.measured["optimizer"] == sum(optimizer_bytes(engine, name) for name in "01")
    assert first.forecast["adapters"] == first.measured["adapters"]
    assert first.forecast["optimizer"] == first.measured["optimizer"]
    assert first.forecast["base"] == pytest.approx(first.measured["base"], rel=0.05)
    peak = measure_pass(engine, ["0", "1"]).peak
    assert peak <= first.measured["passing"] < 3 * peak  # rows at least as long
    assert first.correction.factor == pytest.approx(
        first.measured["passing"] / first.forecast["passing"], rel=1e-6
    )


def test_later_forecasts_are_corrected_by_what_was_measured(spec):
    engine = Engine(load_base(spec.base), memory=ROOMY)
    engine.join("first", spec)
    before = engine.foresight.trial_bytes("first")
    assert engine.rehearse(["first"])
    after = engine.foresight.trial_bytes("first")
    assert after.forecast == before.forecast
    reading = engine.foresight.take_reading()
    assert engine.foresight.take_reading() is None
    assert after.found != before.found
    assert after.found == pytest.approx(reading.measured_bytes, rel=0.02)

    # A factor of 1.5 makes the second seat exceed what would hold it uncorrected.
    length = max(engine._seats["first"].lengths)
    plain = Engine(load_base(spec.base), memory=ROOMY)
    for name in ("one", "two"):
        plain.join(name, spec)
    needed = plain.foresight._total([*plain._seats.values()])
    for factor, room in ((1.0, 2), (1.5, 1)):
        known = Calibration(by_length={length: Correction(factor=factor)})
        small = Engine(load_base(spec.base), memory=needed, calibration=known)
        small.join("one", replace(spec, optim=replace(spec.optim, gradient_checkpointing=False)))
        assert small.foresight.room() == room


def test_nothing_is_measured_without_a_limit_of_the_memory(spec):
    engine = build_engine(spec.base)
    if engine.base.device.type == "cuda":
        pytest.skip("a GPU's memory is always known")
    engine.join("seat", spec)
    assert not engine.rehearse(["seat"])
    assert engine.foresight.room() is None
    assert engine.foresight.take_reading() is None


def test_a_rehearsal_passes_the_longest_rows_and_leaves_nothing_behind(spec):
    rows = [{"prompt": "abc"[i % 3] * (3 + i), "completion": "xy"} for i in range(20)]
    spec = replace(spec, data=DataSpec(train=rows, validation=rows[:2]))
    engine = Engine(load_base(spec.base), memory=ROOMY)
    engine.join("seat", spec)
    passed = []
    backward = engine._backward
    engine._backward = lambda batches, answers: (passed.extend(batches),
                                                 backward(batches, answers))[1]  # fmt: skip
    engine.rehearse(["seat"])
    seat = engine._seats["seat"]
    (batch,) = passed
    assert all(parameter.grad is None for parameter in seat.parameters)
    assert (seat.step, seat.tokens) == (0, 0)
    largest = 0
    for _ in range(STEPS):
        largest = max([largest, *(one.block.tokens for one in engine._passes("seat"))])
        engine.step(["seat"])
    assert batch.block.tokens == largest


class ShortEngine(Engine):
    """An engine whose device holds gradients of so many tokens."""

    def __init__(self, base, tokens):
        super().__init__(base, memory=ROOMY)
        self.most, self.asked = tokens, []

    def _backward(self, batches, answers):
        tokens = sum(batch.block.tokens for batch in batches)
        self.asked.append(tokens)
        if tokens > self.most:
            raise torch.OutOfMemoryError("no room for activations")
        return super()._backward(batches, answers)


def test_what_will_run_out_does_so_before_the_first_step(spec, tmp_path):
    rows = [{"prompt": "abc"[i % 3] * 3, "completion": "xy"} for i in range(40)]
    rows[20] = {"prompt": "a" * 30, "completion": "b" * 30}
    optim = replace(spec.optim, batch_size=2, micro_batch_size=2, gradient_checkpointing=False)
    long = replace(
        spec, data=DataSpec(train=rows, validation=rows[:2], test_fraction=0.0), optim=optim
    )
    engine = ShortEngine(load_base(spec.base), 70)
    trials = Trials([long], tmp_path)
    HostLoop(bench_of(engine), trials).run()
    assert engine.asked[0] > 70  # two of the longest rows, before any step
    assert engine.asked[2] == engine.asked[0] / 2  # then one of them in a pass
    assert all(tokens <= 70 for tokens in engine.asked[2:])
    assert trials.reports["trial 0"][-1].step == STEPS


def test_memory_that_ran_out_limits_the_seats_and_loses_no_trial(spec, tmp_path):
    specs = [replace(spec, seed=number) for number in range(4)]
    optim = replace(spec.optim, gradient_checkpointing=False)
    specs = [replace(one, optim=optim) for one in specs]
    probe = Engine(load_base(spec.base), memory=ROOMY)
    probe.join("seat", specs[0])
    longest = 2 * max(probe._seats["seat"].lengths)
    engine = ShortEngine(load_base(spec.base), 2 * longest)  # two seats, and no third
    trials = Trials(specs, tmp_path)
    gauge = Gauge(engine, lambda: 0.0, finds_seats=True, prior=HostPrior(speeds=(1, 2, 3, 4)))
    HostLoop(bench_of(engine), trials, gauge=gauge).run()
    assert [reports[-1].step for reports in trials.reports.values()] == [STEPS] * 4
    decisions = [one.decision for one in trials.gauges if one.decision is not None]
    assert (decisions[0].seats, decisions[0].reason) == (4, "knee")
    assert (decisions[-1].seats, decisions[-1].reason) == (2, "memory")


@pytest.mark.parametrize(
    ("fixed", "seats"),
    # Speed of n seats: n / (fixed + n); gain of one more: fixed / (n (fixed + n + 1)).
    [(0.0, 1), (0.2, 1), (0.3, 2), (3.0, 4), (1e6, 10)],
)
def test_seats_are_filled_up_to_the_knee(spec, tmp_path, fixed, seats, monkeypatch):
    monkeypatch.setattr("trainables.hosts.gauging.MOST_MEASURING_S", 1e12)
    engine = FakeEngine(tmp_path)
    clock = Clock(engine, fixed)
    gauge = Gauge(engine, clock, finds_seats=True)
    gauge.measure_speeds(spec)
    assert not engine.seats  # the trials of the measurement are gone
    decision = gauge.take(None).decision
    assert (decision.seats, decision.by_knee, decision.reason) == (seats, seats, "knee")
    assert len(decision.speeds) == min(seats + 1, 10)
    assert gauge.take(None) is None


def test_a_measurement_that_takes_long_ends_with_what_it_has(spec, tmp_path):
    engine = FakeEngine(tmp_path)
    gauge = Gauge(engine, Clock(engine, fixed=1e6), finds_seats=True)
    gauge.measure_speeds(spec)
    assert gauge.take(None).decision.seats == 1


def test_a_trial_that_cannot_be_measured_says_so_in_its_own_seat(spec, tmp_path):
    broken = replace(spec, lora=replace(spec.lora, targets=("no-join:0",)))
    engine = FakeEngine(tmp_path)
    gauge = Gauge(engine, Clock(engine), finds_seats=True)
    gauge.measure_speeds(broken)
    assert gauge.take(None).decision.seats == 1
    gauge.measure_speeds(spec)  # the next trial is measured
    assert gauge.take(None).decision.reason == "knee"


@dataclass
class Room:
    """Memory that holds so many seats."""

    seats: int

    def room(self):
        return self.seats

    def take_reading(self):
        return None


def test_memory_limits_the_seats_and_the_measurement(spec, tmp_path):
    engine = FakeEngine(tmp_path)
    engine.foresight = Room(3)
    gauge = Gauge(engine, Clock(engine, fixed=1e6), finds_seats=True)
    gauge.measure_speeds(spec)
    joined = [line for line in engine.log_file.read_text().splitlines() if "join" in line]
    assert len(joined) <= 3
    engine.foresight = Room(2)
    gauge.forget("seat")
    decision = gauge.take(None).decision
    assert decision.by_memory == 2


def test_what_a_host_measured_is_kept_for_the_next_of_its_group(spec, tmp_path):
    first = train([spec], tmp_path, memory=ROOMY, finds_seats=True)
    prior = HostPrior()
    for gauge in first.gauges:
        prior = prior.learn(gauge)
    assert prior.speeds
    assert len(prior.corrections) == 1
    assert prior.learn(HostGauge()) == prior
    engine = FakeEngine(tmp_path)
    again = Gauge(engine, Clock(engine), finds_seats=True, prior=prior)
    again.measure_speeds(spec)
    assert "join" not in engine.log_file.read_text()
