"""One local Ray for all tests that need it, and a fake engine that Ray can carry to workers."""

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from tests.support import fake_engine
from tests.support.fake_base import FakeBase
from tests.support.searched import SearchedSweep, build_searched_spec
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
            address="local",  # else a cluster that another test has started is joined
            num_cpus=4,
            dashboard_host="127.0.0.1",
            object_store_memory=100 * 2**20,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    yield
    ray.shutdown()


@pytest.fixture(scope="session", autouse=True)
def carried_engine() -> None:
    """The fake engine is pickled by value: Ray's workers do not import tests."""
    ray.cloudpickle.register_pickle_by_value(fake_engine)


@pytest.fixture
def fake_base(tmp_path):
    return FakeBase(tmp_path)


@pytest.fixture(scope="session")
def expected_weight(tmp_path_factory):
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


@pytest.fixture
def build_scene(tmp_path):
    scenes = []

    def build(**changes):
        scenes.append(SearchedSweep(tmp_path, build_searched_spec(**changes)))
        return scenes[-1]

    yield build
    for scene in scenes:
        scene.log.close()


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
