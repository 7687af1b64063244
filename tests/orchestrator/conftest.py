"""One local Ray for all tests that need it, and a fake engine that Ray can carry to workers."""

import importlib.util
import json
import logging
import os
import sys
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import ray

from orchestrator.journal.history import SweepHistory
from orchestrator.journal.log import EventLog
from orchestrator.journal.paths import bundle_folder
from orchestrator.journal.recording import SweepRecord
from orchestrator.spec.finals_sections import FinalsSpec, RegisterSpec
from orchestrator.spec.sweep import BudgetSpec, SweepSpec
from tests.support.events import event
from trainables.base.loading import load_base
from trainables.engine import Engine
from trainables.spec import BaseSpec, DataSpec, EvalSpec, LoraSpec, OptimSpec, TrialSpec


@pytest.fixture(scope="session")
def local_ray(s3_server: dict[str, str]) -> Iterator[None]:
    """A quiet Ray of four logical CPUs, with whatever dashboard is installed, on loopback.

    Its workers know the way to the S3 server, as every node of a cluster must.
    """
    os.environ["RAY_AUTH_MODE"] = "disabled"
    os.environ["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] = "1"
    os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"  # the coming default; else a warning
    with pytest.MonkeyPatch.context() as patch:
        for name, value in s3_server.items():
            patch.setenv(name, value)
        ray.init(
            num_cpus=4,
            dashboard_host="127.0.0.1",
            object_store_memory=100 * 2**20,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def fake_engine() -> ModuleType:
    """The fake engine's module, pickled by value: workers cannot import it."""
    path = Path(__file__).parents[1] / "trainables" / "hosts" / "fake_engine.py"
    spec = importlib.util.spec_from_file_location("fake_engine", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["fake_engine"] = module
    spec.loader.exec_module(module)
    ray.cloudpickle.register_pickle_by_value(module)
    return module


class FakeBase:
    """A folder that stands for a base: its log, its trials' specs and what became of them."""

    def __init__(self, storage: Path, name: str = "base"):
        self.storage = storage
        self.folder = storage / name
        self.folder.mkdir()

    def build_spec(self, trial, *faults, steps=40, every=10, lr=1e-3):
        return TrialSpec(
            base=BaseSpec(model=str(self.folder)),
            lora=LoraSpec(targets=("q_proj", *faults)),
            optim=OptimSpec(steps=steps, learning_rate=lr),
            data=DataSpec(train="rows.jsonl"),
            eval=EvalSpec(every=every),
            seed=trial,
        )

    def log(self, word):
        lines = (self.folder / "log.txt").read_text().splitlines()
        return [line for line in lines if line.startswith(word)]

    def furthest_step(self, trial):
        words = " ".join(self.log("step")).split()
        return max(int(w.split("@")[1]) for w in words if w.startswith(f"t{trial:04d}."))

    def bundle(self, trial):
        return json.loads((self.storage / bundle_folder(trial) / "manifest.json").read_text())


@pytest.fixture
def fake_base(tmp_path):
    return FakeBase(tmp_path)


@pytest.fixture(scope="session")
def build_fake_base():
    return FakeBase


@pytest.fixture(scope="session")
def expected_weight(fake_engine, tmp_path_factory):
    """The weight an undisturbed trial has after some steps."""

    def train(spec, steps):
        folder = tmp_path_factory.mktemp("solo")
        engine = fake_engine.FakeEngine(folder)
        engine.join("solo", spec)
        for _ in range(steps):
            engine.seats["solo"] = (spec, engine.seats["solo"][1])
            engine.step_one("solo")
        return engine.snapshot("solo").weight

    return train


# ------------------------------------------------------------------------ a search that is over

LOSSES = {0: 3.0, 1: 1.0, 2: 2.0}
FORMS = {0: "nf4", 1: "fp4", 2: "nf4"}


def _build_spec(test_fraction=0.1, **changes):
    values = {
        "name": "tiny",
        "base": BaseSpec(model="owner/name"),
        "data": DataSpec(train="owner/rows", test_fraction=test_fraction),
        "optim": OptimSpec(steps=20),
        "eval": EvalSpec(every=10),
        "budget": BudgetSpec(trials=4),
        "space": {"lora.rank": {"choice": [2, 4, 8, 16]}},
        "finals": FinalsSpec(top=2, seeds=0),
        "register": RegisterSpec(top=2),
    }
    return SweepSpec(**(values | changes))


def _trial_spec(spec, form):
    base = replace(spec.base, quantization=form)
    return TrialSpec(
        base=base, lora=LoraSpec(), optim=spec.optim, data=spec.data, eval=spec.eval
    ).to_dict()


class Scene:
    """A sweep whose search is over: three trials ended, one diverged."""

    losses = LOSSES

    def __init__(self, storage, spec):
        self.storage, self.spec = storage, spec
        self.log = EventLog(storage / "events.jsonl")
        self.record = SweepRecord(self.log, SweepHistory(), lambda history: None)
        add = self.record.add
        add(
            event(
                "sweep_started", sweep_id=uuid.uuid4().hex, spec=spec.to_dict(), digest=spec.digest
            )
        )
        for trial, loss in LOSSES.items():
            add(
                event("trial_started", trial=trial, knobs={}, spec=_trial_spec(spec, FORMS[trial]))
            )
            add(event("report", trial=trial, step=20, metrics={"eval_loss": loss}))
            folder = storage / bundle_folder(trial)
            folder.mkdir(parents=True)
            (folder / "manifest.json").write_text("{}")
            self.end(trial, "completed", str(folder.relative_to(storage)))
        add(event("trial_started", trial=3, knobs={}, spec=_trial_spec(spec, "nf4")))
        add(event("report", trial=3, step=10, metrics={"eval_loss": 0.1}))
        self.end(3, "diverged", None)

    def repeat(self, trial, of, outcome):
        spec = self.record.history.trials[of].spec
        self.record.add(event("trial_started", trial=trial, knobs={}, spec=spec, repeat_of=of))
        self.record.add(event("report", trial=trial, step=20, metrics={"eval_loss": 1.5}))
        folder = self.storage / bundle_folder(trial)
        folder.mkdir(parents=True)
        (folder / "manifest.json").write_text("{}")
        self.end(trial, outcome, str(folder.relative_to(self.storage)))

    def end(self, trial, outcome, bundle):
        self.record.add(
            event("trial_ended", trial=trial, outcome=outcome, reason="", step=20, bundle=bundle)
        )


@pytest.fixture
def build_scene(tmp_path):
    scenes = []

    def build(**changes):
        scenes.append(Scene(tmp_path, _build_spec(**changes)))
        return scenes[-1]

    yield build
    for scene in scenes:
        scene.log.close()


@pytest.fixture(scope="session")
def write_bundle():
    """Writes a registrable bundle of meaningless weights, as the registry's tests do."""
    path = Path(__file__).parents[1] / "registry" / "conftest.py"
    spec = importlib.util.spec_from_file_location("registry_fixtures", path)
    fixtures = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fixtures)

    def write(folder, seed, metrics, **records):
        (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')
        weights = fixtures.np.full((4, 4), seed, dtype="float32")
        fixtures.save_file({"w": weights}, folder / "adapter_model.safetensors")
        fixtures._write_manifest(folder, seed=seed, metrics=metrics, **records)

    write.document = fixtures._new_document
    return write


@pytest.fixture(scope="session")
def real_bundle(
    tiny_base: Path, tiny_data: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A bundle of the tiny base that an engine trained and wrote."""
    base = BaseSpec(model=str(tiny_base), quantization="nf4", compute_dtype="float32")
    spec = TrialSpec(
        base=base,
        lora=LoraSpec(rank=4, targets=("q_proj", "v_proj")),
        optim=OptimSpec(steps=4, learning_rate=0.05),
        data=DataSpec(train=str(tiny_data)),
        eval=EvalSpec(every=4),
    )
    engine = Engine(load_base(base))
    engine.join("solo", spec)
    for _ in range(4):
        engine.step(("solo",))
    folder = tmp_path_factory.mktemp("real") / "bundle"
    engine.export("solo", folder, engine.evaluate("solo"))
    return folder
