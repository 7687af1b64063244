"""The host's loop against the real state machine and a fake engine, in one process."""

import json
import time
from pathlib import Path

import pytest

from orchestrator.hosts.members import HostStart
from orchestrator.hosts.seats import Seats
from tests.support import fake_engine
from tests.support.damage import DAMAGES, garble
from trainables.errors import SpecError
from trainables.hosts.bench import Bench, Failure, attempt
from trainables.hosts.claims import claim
from trainables.hosts.host import HostLoop
from trainables.hosts.orders import SeatRequest, Task
from trainables.hosts.storage import fetch_folder, join_location, list_folders
from trainables.spec import BaseSpec, DataSpec, EvalSpec, LoraSpec, OptimSpec, TrialSpec


class Sweep:
    """Plays broker and proxies: trials that ask for `every` steps at a time up to the horizon.

    `say` is called with the exchange's number and may leave trials or raise to stop the host.
    """

    def __init__(self, folder, seats=4):
        self.folder = folder
        self.location = str(folder)
        self.state = Seats(lease_s=1e9)
        self.state.open_host(HostStart(host_id="h", group="g", base={}), seats, None)
        self.heard = {}
        self.specs = {}
        self.say = lambda number: None
        self.exchanges = 0
        self.incarnations = 0
        self.build_bench = fake_engine.build_bench
        self.clock = time.monotonic
        self.is_ending = lambda: False

    def add(self, trial, *faults, steps=20, every=10, lr=1e-3, batch_size=8, keep_every=0):
        spec = TrialSpec(
            base=BaseSpec(model=str(self.folder)),
            lora=LoraSpec(targets=("q_proj", *faults)),
            optim=OptimSpec(steps=steps, learning_rate=lr, batch_size=batch_size),
            data=DataSpec(train="rows.jsonl"),
            eval=EvalSpec(every=every, keep_every=keep_every),
            seed=trial,
        )
        request = SeatRequest(
            spec=spec.to_dict(),
            state_dir=join_location(self.location, f"t{trial}", "state"),
            bundle_dir=join_location(self.location, f"t{trial}", "bundle"),
        )
        self.specs[trial] = spec
        self.heard[trial] = []
        self.state.join(trial, "a", "g", request, 0.0)
        return self

    def run(self):
        """One life of the host."""
        self.incarnations += 1
        self.name = f"life-{self.incarnations}"
        self.state.hello("h", self.name)
        bench = self.build_bench(BaseSpec(model=str(self.folder)))
        HostLoop(bench, self, self.clock, is_ending=self.is_ending).run()
        return self

    def exchange(self, report):
        self.exchanges += 1
        self.state.take("h", self.name, report)
        self.say(self.exchanges)
        for trial in self.specs:
            self.play(trial)
        if not self.state.members and all(e.report for e in self.state.tasks.values()):
            self.state.close()
        return self.state.orders("h", self.name)

    def play(self, trial):
        spec, heard = self.specs[trial].optim, self.heard[trial]
        every = self.specs[trial].eval.every
        last = heard[-1].step if heard else 0
        until = min(last + every, spec.steps)
        standing = self.state.advance(trial, "a", until, 0.0)
        if standing.phase == "seated" and standing.report and standing.answers(until):
            heard.append(standing.report)
        elif standing.report and standing.report.fault:
            heard.append(standing.report)
            self.state.leave(trial, "a", True, 0.0)
            return
        if heard and heard[-1].step >= spec.steps:
            self.state.leave(trial, "a", True, 0.0)

    def log(self, word):
        lines = (self.folder / "log.txt").read_text().splitlines()
        return [line for line in lines if line.startswith(word)]

    def steps(self, trial):
        return [report.step for report in self.heard[trial]]

    def weights(self, trial):
        return [report.metrics["eval_accuracy"] for report in self.heard[trial]]

    def bundle(self, trial):
        return json.loads((self.folder / f"t{trial}" / "bundle" / "manifest.json").read_text())


@pytest.fixture
def sweep(tmp_path):
    return Sweep(tmp_path)


@pytest.fixture
def solo_weights(tmp_path_factory):
    """Weights of an undisturbed trial of this number at its reports."""

    def train(trial, **kwargs):
        return Sweep(tmp_path_factory.mktemp("solo")).add(trial, **kwargs).run().weights(trial)

    return train


def test_a_trial_reports_at_its_evaluations_and_leaves_a_bundle_of_the_last(sweep):
    sweep.add(0).run()
    assert sweep.steps(0) == [10, 20]
    assert sweep.bundle(0)["step"] == 20
    assert len(sweep.log("step")) == 20


def test_reports_hold_plain_numbers_of_every_metric(sweep):
    metrics = sweep.add(0).run().heard[0][-1].metrics
    assert set(metrics) == {
        "step", "tokens", "eval_loss", "eval_accuracy", "eval_token_accuracy", "train_loss",
        "scheduled_learning_rate", "tokens_per_s", "peak_memory_gib", "trainable_params", "host_s",
        "forecast_memory_gib", "host_peak_memory_gib",
    }  # fmt: skip
    assert {type(value) for value in metrics.values()} == {int, float}
    assert (metrics["tokens"], metrics["peak_memory_gib"]) == (200, 0.25)
    assert metrics["train_loss"] == pytest.approx(1 + sum(1 / s for s in range(11, 21)) / 10)
    assert metrics["scheduled_learning_rate"] == pytest.approx(1e-3 * (1 - 19 / 20))


def test_trials_on_one_host_step_together(sweep):
    sweep.add(0).add(1).run()
    assert {line.count(".a") for line in sweep.log("step")} == {2}


def test_only_the_newest_state_is_kept(sweep):
    sweep.add(0, steps=30).run()
    (kept,) = (sweep.folder / "t0" / "state").iterdir()
    assert kept.name == "step-00000030"


def test_adapters_of_earlier_steps_are_kept_where_the_spec_asks_for_them(sweep):
    sweep.add(0, steps=50, keep_every=20).add(1, steps=20).run()
    kept = {path.name: path for path in (sweep.folder / "t0").iterdir() if "bundle" in path.name}
    assert set(kept) == {"bundle", "bundle-step-20", "bundle-step-40"}
    manifests = [json.loads((kept[name] / "manifest.json").read_text()) for name in sorted(kept)]
    assert [manifest["step"] for manifest in manifests] == [50, 20, 40]
    assert len({manifest["weight"] for manifest in manifests}) == 3
    assert not list((sweep.folder / "t1").glob("bundle-*"))


@pytest.mark.parametrize("ends", [[14], [4], [14, 18], [11, 25]], ids=str)
def test_a_host_that_is_ending_saves_its_trials_as_they_are(sweep, solo_weights, location, ends):
    """Nothing is trained twice, and the report is that of an undisturbed trial."""
    sweep.location = location
    sweep.is_ending = lambda: sweep.exchanges in ends
    sweep.add(0, steps=30).add(1, steps=30).run()
    for _ in ends:
        sweep.run()
    for trial in (0, 1):
        assert sweep.weights(trial) == solo_weights(trial, steps=30)
        loss = 1 + sum(1 / step for step in range(11, 21)) / 10
        assert sweep.heard[trial][1].metrics["train_loss"] == pytest.approx(loss)
        assert sweep.heard[trial][1].metrics["tokens"] == 200
        assert sum(f"t000{trial}." in line for line in sweep.log("step")) == 30
        assert list_folders(f"{location}/t{trial}/state") == ["step-00000030"]


def test_a_trial_that_left_after_a_notice_leaves_a_bundle_of_its_last_report(sweep):
    sweep.is_ending = lambda: sweep.exchanges == 16
    sweep.add(0, steps=40).run()
    (between,) = (sweep.folder / "t0" / "state").glob("between-*")
    sweep.state.leave(0, "a", True, 0.0)
    sweep.run()
    assert sweep.bundle(0)["step"] == 10
    assert sweep.bundle(0)["weight"] == sweep.weights(0)[0]
    assert int(between.name.rpartition("-")[2]) > 10


def test_a_trial_called_away_between_reports_leaves_a_bundle_of_its_last_report(sweep):
    sweep.say = lambda number: number == 16 and sweep.state.leave(0, "a", True, 0.0)
    sweep.add(0, steps=40).run()
    assert sweep.steps(0) == [10]
    assert sweep.bundle(0)["step"] == 10
    assert sweep.bundle(0)["weight"] == sweep.weights(0)[0]


def test_a_trial_called_away_before_its_first_report_leaves_no_bundle(sweep):
    sweep.say = lambda number: number == 5 and sweep.state.leave(0, "a", True, 0.0)
    sweep.add(0).run()
    assert not (sweep.folder / "t0" / "bundle").exists()
    assert sweep.log("leave")


def test_a_new_host_goes_on_from_the_saved_state_to_the_same_weights(sweep, solo_weights):
    def die(number):
        if number == 16:
            raise ConnectionError

    sweep.say = die
    sweep.add(3, steps=40).add(4, steps=40)
    with pytest.raises(ConnectionError):
        sweep.run()
    sweep.run()
    assert sweep.weights(3) == solo_weights(3, steps=40)
    assert "join t0003.a 10" in sweep.log("join")


def test_states_and_bundles_in_a_bucket_are_those_of_a_disk(
    sweep, solo_weights, s3_location, tmp_path
):
    def die(number):
        if number == 16:
            raise ConnectionError

    sweep.location, sweep.say = s3_location, die
    sweep.add(3, steps=40)
    with pytest.raises(ConnectionError):
        sweep.run()
    sweep.run()
    assert sweep.weights(3) == solo_weights(3, steps=40)
    assert "join t0003.a 10" in sweep.log("join")
    assert list_folders(f"{s3_location}/t3/state") == ["step-00000040"]
    bundle = fetch_folder(f"{s3_location}/t3/bundle", tmp_path / "bundle")
    assert json.loads((bundle / "manifest.json").read_text())["step"] == 40
    assert not (sweep.folder / "t3").exists()


def test_reports_nobody_heard_are_said_again_in_order_and_without_training(sweep):
    sweep.add(0, steps=40).run()
    first = sweep.weights(0)
    again = Sweep(sweep.folder).add(0, steps=40).run()
    assert again.weights(0) == first
    assert again.steps(0) == [10, 20, 30, 40]
    assert len(sweep.log("step")) == 40


@pytest.mark.parametrize(
    ("fault", "outcome", "reason"),
    [
        ("nan:15", "diverged", "loss nan or its gradient is not finite at step 15"),
        ("inf-eval:20", "diverged", "eval_loss is inf at step 20"),
        (
            "oom:15",
            "infeasible",
            "out of memory with 8 rows per pass, and again with 1 "
            "(MemoryError: no room for activations)",
        ),
        ("raise:15", "failed", "RuntimeError: a broken kernel"),
        ("no-join:0", "failed", "data.train: no such file. Name the data."),
    ],
)
def test_a_fault_ends_its_trial_and_not_its_neighbours(
    sweep, solo_weights, fault, outcome, reason
):
    sweep.add(0).add(1, fault).add(2).run()
    last = sweep.heard[1][-1]
    assert (last.fault, last.reason) == (outcome, reason)
    assert last.metrics["eval_loss"] == 1e9
    for neighbour in (0, 2):
        assert sweep.weights(neighbour) == solo_weights(neighbour)


def test_a_lone_trial_out_of_memory_trains_on_with_half_its_rows_per_pass(sweep, solo_weights):
    sweep.add(0, "oom-whole:15").run()
    assert sweep.steps(0) == [10, 20]
    assert sweep.weights(0) == solo_weights(0)
    assert len(sweep.log("join")) == 2


def test_an_odd_micro_batch_is_split_too(sweep):
    sweep.add(0, "oom:15", batch_size=7).run()
    reason = sweep.heard[0][-1].reason
    assert reason.startswith("out of memory with 7 rows per pass, and again with 1 (MemoryError")


def test_a_micro_batch_of_one_row_cannot_be_split(sweep):
    sweep.add(0, "oom-whole:15", batch_size=1).run()
    last = sweep.heard[0][-1]
    assert last.fault == "infeasible"
    assert last.reason.startswith("out of memory with 1 row per pass (MemoryError")
    assert len(sweep.log("join")) == 1


def test_a_trial_that_does_not_fit_keeps_what_its_last_report_measured(sweep):
    metrics = sweep.add(0, "oom:15").run().heard[0][-1].metrics
    assert (metrics["peak_memory_gib"], metrics["tokens"]) == (0.25, 100)


def test_a_pack_that_does_not_fit_is_stepped_in_halves_and_loses_nobody(sweep, solo_weights):
    for trial in range(4):
        sweep.add(trial, "crowd:2")
    sweep.run()
    assert [sweep.steps(trial) for trial in range(4)] == [[10, 20]] * 4
    assert sweep.weights(3) == solo_weights(3)
    assert {line.count(".a") for line in sweep.log("step")[-10:]} == {2}


class Clock:
    """Seconds that pass only when somebody works."""

    def __init__(self):
        self.now_s = 0.0

    def __call__(self):
        return self.now_s


class TimedEngine(fake_engine.FakeEngine):
    """4 seconds a step, whoever is in it; half a second an evaluation."""

    def __init__(self, log, clock):
        super().__init__(log)
        self.clock = clock

    def step(self, seats):
        self.clock.now_s += 4.0
        return super().step(seats)

    def evaluate(self, seat, split="validation"):
        self.clock.now_s += 0.5
        return super().evaluate(seat, split)


@pytest.fixture
def timed(sweep):
    """A sweep on a host whose work takes known times; saving takes a quarter of a second."""
    clock = Clock()

    def save_state(state, folder):
        clock.now_s += 0.25
        fake_engine.save_state(state, folder)

    sweep.clock = clock
    sweep.build_bench = lambda base: Bench(
        engine=TimedEngine(Path(base.model), clock),
        save_state=save_state,
        load_state=fake_engine.load_state,
        load_bundle=fake_engine.load_bundle,
        peak_memory_gib=lambda: 0.25,
    )
    return sweep


def host_seconds(sweep, trial):
    return [report.metrics["host_s"] for report in sweep.heard[trial]]


def test_host_seconds_of_a_step_are_shared_by_those_who_took_it(timed):
    timed.add(0).add(1, steps=10).run()
    assert host_seconds(timed, 1) == [10 * 4.0 / 2 + 0.5]
    # 10 steps together, then 10 alone; what saving took is in the report after it
    assert host_seconds(timed, 0) == [20.5, 20.5 + 0.25 + 10 * 4.0 + 0.5]


def test_host_seconds_go_on_from_the_saved_reports(timed):
    def die(number):
        if number == 16:
            raise ConnectionError

    timed.say = die
    timed.add(0)
    with pytest.raises(ConnectionError):
        timed.run()
    timed.run()
    first = 10 * 4.0 + 0.5
    assert host_seconds(timed, 0) == [first, first + 10 * 4.0 + 0.5]


def test_steps_that_failed_and_were_taken_again_count(timed):
    timed.add(0, "oom-whole:15").run()
    first = 10 * 4.0 + 0.5
    # steps 11 to 15, of which the last failed; then 11 to 20
    assert host_seconds(timed, 0) == [first, first + 0.25 + 15 * 4.0 + 0.5]


def test_a_trial_with_a_fault_says_what_it_cost(timed):
    timed.add(0, "nan:15").run()
    assert host_seconds(timed, 0) == [40.5, 40.75 + 5 * 4.0]


def test_a_state_that_cannot_be_saved_fails_its_trial_alone(sweep):
    sweep.add(0).add(1)
    (sweep.folder / "t1").mkdir()
    (sweep.folder / "t1" / "state").write_text("not a folder")
    sweep.run()
    assert sweep.heard[1][-1].fault == "failed"
    assert sweep.steps(0) == [10, 20]


def test_an_impossible_spec_fails_its_trial_alone(sweep):
    sweep.add(0).add(1)
    next(m for m in sweep.state.members.values() if m.trial == 1).request.spec["lora"]["rank"] = 0
    sweep.run()
    assert sweep.heard[1][-1].reason.startswith("lora.rank: got 0")
    assert sweep.steps(0) == [10, 20]


def test_tasks_measure_the_base_and_a_saved_state_on_test_rows(sweep):
    sweep.add(0).run()
    later = Sweep(sweep.folder)
    spec, state_dir = sweep.specs[0].to_dict(), str(sweep.folder / "t0" / "state")
    bundle_dir = str(sweep.folder / "final")
    later.state.submit_task("base", "g", Task(spec=spec, split="validation"), 0.0)
    task = Task(spec=spec, split="test", state_dir=state_dir, bundle_dir=bundle_dir)
    later.state.submit_task("final", "g", task, 0.0)
    later.run()
    reports = {name: submitted.report for name, submitted in later.state.tasks.items()}
    assert reports["base"].metrics["eval_loss"] == 9.0
    assert reports["final"].metrics["test_accuracy"] == sweep.weights(0)[-1]
    manifest = json.loads((sweep.folder / "final" / "manifest.json").read_text())
    assert (manifest["step"], manifest["test_token_accuracy"]) == (20, 0.5)


def final_task(sweep, trial=0):
    """A task on the test rows for a trial that has ended, on a host of its own."""
    later = Sweep(sweep.folder)
    folder = sweep.folder / f"t{trial}"
    task = Task(
        spec=sweep.specs[trial].to_dict(),
        split="test",
        state_dir=str(folder / "state"),
        bundle_dir=str(folder / "bundle"),
    )
    later.state.submit_task("final", "g", task, 0.0)
    later.run()
    return later.state.tasks["final"].report


def test_a_task_evaluates_the_bundle_of_a_trial_whose_state_was_damaged_later(sweep):
    sweep.add(0).run()
    (states(sweep)[-1] / "state.json").write_text("{")
    assert final_task(sweep).metrics["test_accuracy"] == sweep.weights(0)[-1]
    manifest = sweep.bundle(0)
    assert (manifest["step"], manifest["test_token_accuracy"]) == (20, 0.5)
    assert manifest["eval_accuracy"] == sweep.weights(0)[-1]


@pytest.mark.parametrize("step", [10, None])
def test_a_task_evaluates_no_other_bundle_than_that_of_the_damaged_state(sweep, step):
    sweep.add(0).run()
    (states(sweep)[-1] / "state.json").write_text("{")
    manifest = sweep.folder / "t0" / "bundle" / "manifest.json"
    manifest.write_text(json.dumps({**sweep.bundle(0), "step": step}) if step else "{")
    assert "the saved state of step 20 is damaged" in final_task(sweep).error


def test_a_task_on_a_state_that_is_not_there_says_so(sweep):
    sweep.add(0)
    task = Task(spec=sweep.specs[0].to_dict(), split="test", state_dir=str(sweep.folder / "no"))
    sweep.state.submit_task("final", "g", task, 0.0)
    sweep.run()
    assert "task.state_dir: got" in sweep.state.tasks["final"].report.error
    assert sweep.steps(0) == [10, 20]


def states(sweep, trial=0):
    return sorted((sweep.folder / f"t{trial}" / "state").iterdir())


def stop_after(sweep, reports):
    """Train until a trial has some reports, then lose the host."""

    def die(number):
        if len(sweep.heard[0]) >= reports:
            raise ConnectionError

    sweep.say = die
    with pytest.raises(ConnectionError):
        sweep.run()
    sweep.say = lambda number: None


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_trial_with_a_damaged_state_trains_on_from_the_state_before(sweep, damage, solo_weights):
    stop_after(sweep.add(0, steps=40), 2)
    newest = states(sweep)[-1]
    assert newest.name == "step-00000020"
    DAMAGES[damage](newest / "state.json")
    sweep.run()
    assert sweep.log("join")[-1].endswith(" 10")
    assert sweep.steps(0) == [10, 20, 30, 40]
    assert sweep.weights(0) == solo_weights(0, steps=40)
    marks = [report.metrics.get("lost_state_of_step") for report in sweep.heard[0]]
    assert marks == [None, None, 20.0, 20.0]
    assert sweep.heard[0][-1].metrics["continued_from_step"] == 10.0


def test_a_trial_without_a_sound_state_trains_from_the_beginning(sweep, solo_weights):
    stop_after(sweep.add(0, steps=40), 2)
    for state in states(sweep):
        garble(state / "state.json")
    sweep.run()
    assert sweep.weights(0) == solo_weights(0, steps=40)
    assert sweep.heard[0][-1].metrics["continued_from_step"] == 0.0


def test_a_damaged_state_of_an_ended_trial_is_not_exported_as_another_step(sweep):
    stop_after(sweep.add(0, steps=40), 2)
    garble(states(sweep)[-1] / "state.json")
    sweep.state.leave(0, "a", True, 0.0)
    later = sweep.run()
    assert not (later.folder / "t0" / "bundle").exists()
    task = Task(
        spec=sweep.specs[0].to_dict(), split="test", state_dir=str(sweep.folder / "t0" / "state")
    )
    evaluating = Sweep(sweep.folder)
    evaluating.state.submit_task("final", "g", task, 0.0)
    evaluating.run()
    assert "state of step 20 is damaged" in evaluating.state.tasks["final"].report.error


def test_a_state_of_another_trial_fails_the_trial_in_one_sentence(sweep):
    stop_after(sweep.add(0, steps=40), 2)
    other = Sweep(sweep.folder).add(0, steps=40, lr=5e-3).run()
    (report,) = other.heard[0]
    assert (report.fault, report.trace) == ("failed", "")
    assert "belongs to another trial, with optim.learning_rate 0.001" in report.reason


class AcceleratorError(RuntimeError):
    """Named like torch's."""


def fail_with(error):
    def work():
        raise error

    return work


def test_a_device_that_is_lost_takes_the_host_down():
    with pytest.raises(AcceleratorError):
        attempt(fail_with(AcceleratorError("CUDA error: device-side assert triggered")))


@pytest.mark.parametrize(
    ("error", "failure"),
    [
        (SpecError("lora.rank: got 0"), Failure(fault="failed", reason="lora.rank: got 0")),
        (ValueError("a\nb"), Failure(fault="failed", reason="ValueError: a b")),
        (MemoryError("all"), Failure(fault="infeasible", reason="MemoryError: all")),
    ],
    ids=["ours", "other", "memory"],
)
def test_errors_are_told_in_one_line(error, failure):
    assert attempt(fail_with(error)) == failure


def test_a_host_that_wakes_after_its_trial_was_given_away_writes_nothing(sweep):
    """It is stopped in the middle of a stretch; meanwhile another seat takes the trial over."""
    sweep.add(3, steps=40)

    def give_away(number):
        if number == 16:
            claim(join_location(sweep.location, "t3", "state"), 500)

    sweep.say = give_away
    sweep.run()
    assert sweep.heard[3][-1].fault == "failed"
    assert "that seat 500 has taken over" in sweep.heard[3][-1].reason
    assert [state.name for state in states(sweep, 3)] == ["step-00000010"]
    assert not (sweep.folder / "t3" / "bundle").exists()
