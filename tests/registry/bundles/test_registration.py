"""A bundle is one version, whoever registers it and how often, with all that belongs to it."""

import json
import math
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from mlflow import MlflowClient

from registry import Registry
from registry.bundles.integrity import read_bundle
from registry.errors import AdapterNotFoundError, IntegrityError, RefError, RegistryError
from registry.tracking.tracker import Tracker
from registry.versions.versions import AdapterVersion

Build = Callable[..., Path]


@pytest.fixture
def checkpoint(new_bundle: Build, tmp_path: Path) -> Callable[..., Path]:
    """Makes the bundle of an earlier step of `new_bundle()`."""

    def build(step: int, seed: int = 7, **records: object) -> Path:
        folder = new_bundle(seed=seed, steps=step, **records)
        return folder.rename(tmp_path / f"step-{step}-{seed}")

    return build


def test_same_bundle_is_one_version(
    adapters: Registry, client: MlflowClient, new_bundle: Build, name: str
) -> None:
    first = adapters.register(new_bundle(metrics={"eval_loss": 1.5}), name)
    measured = new_bundle(metrics={"eval_loss": 1.5, "test_loss": 1.0})
    again = adapters.register(measured, name)
    other = adapters.register(new_bundle(seed=8), name)
    assert (first.version, again.version, other.version) == (1, 1, 2)
    assert again.metrics["test_loss"] == 1.0
    assert len(client.search_model_versions(f"name = '{name}'")) == 2


# Filters of warnings are the process's, and one thread's are undone by another.
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_same_bundle_registered_at_once_is_one_version(
    adapters: Registry, client: MlflowClient, new_bundle: Build, name: str
) -> None:
    bundle, start = new_bundle(seed=4242), threading.Barrier(3)
    # MLflow fills its table of registry stores on first use, which threads must not do at once.
    assert adapters.versions(name=name) == []

    def run(_: int) -> AdapterVersion:
        start.wait()
        return adapters.register(bundle, name)

    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(run, range(3)))
    assert len({version.version for version in found}) == 1
    listed = adapters.versions(name=name)
    assert [version.version for version in listed] == [found[0].version]
    experiment = client.get_experiment_by_name("lorchestra-adapters").experiment_id
    models = client.search_logged_models([experiment], filter_string="params.seed = '4242'")
    lost = {model.model_id for model in models} - {listed[0].model_id}
    found_later = {one.model_id for one in adapters.find_garbage(older_than_s=0)}
    assert lost <= found_later
    assert listed[0].model_id not in found_later


def test_version_says_for_which_form_it_is(
    adapters: Registry, new_bundle: Build, name: str
) -> None:
    bundle = new_bundle()
    version = adapters.register(bundle, name, form="merged")
    assert (version.form, version.tags["serving.form"]) == ("merged", "merged")
    assert adapters.register(bundle, name, form="merged").version == 1
    with pytest.raises(RegistryError, match="registered for the form merged; got 'trained'"):
        adapters.register(bundle, name)
    other = adapters.register(bundle, f"{name}-b")
    assert other.tags["serving.form"] == "trained"
    with pytest.raises(RegistryError, match="form: got 'pruned'"):
        adapters.register(bundle, name, form="pruned")


def test_earlier_steps_are_kept_and_found(
    adapters: Registry, client: MlflowClient, new_bundle: Build, name: str,
    checkpoint: Callable[..., Path],
) -> None:  # fmt: skip
    earlier = {step: checkpoint(step) for step in (40, 20)}
    version = adapters.register(new_bundle(), name, checkpoints=earlier)
    assert (version.checkpoints, version.tags["checkpoints"]) == ((20, 40), "20,40")
    found = adapters.get(f"{name}/1@step-20")
    assert found.digest_at(20) == read_bundle(earlier[20])["digest"]
    assert found.digest_at(None) == version.digest != found.digest_at(20)
    with pytest.raises(AdapterNotFoundError, match=f"allowed: {name}/1@step-20, {name}/1@step-40"):
        adapters.get(f"{name}/1@step-30")
    folder = Path(client.get_model_version_download_uri(name, "1").removeprefix("file://"))
    assert read_bundle(folder / "checkpoints" / "step-40")["steps"] == 40
    again = adapters.register(new_bundle(), name, checkpoints=earlier)
    assert (again.version, again.checkpoints) == (1, (20, 40))


def test_version_without_earlier_steps_says_so(
    adapters: Registry, new_bundle: Build, name: str
) -> None:
    assert adapters.register(new_bundle(), name).checkpoints == ()
    with pytest.raises(AdapterNotFoundError, match="no earlier step was kept"):
        adapters.get(f"{name}/1@step-20")


def test_steps_of_another_training_are_refused(
    adapters: Registry, new_bundle: Build, name: str, checkpoint: Callable[..., Path]
) -> None:
    bundle = new_bundle()
    for step, folder in {40: checkpoint(20), 30: checkpoint(30, seed=8), 80: bundle}.items():
        with pytest.raises(IntegrityError, match=f"allowed: step {step}"):
            adapters.register(new_bundle(), name, checkpoints={step: folder})
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(IntegrityError):
        adapters.register(new_bundle(seed=9), name, checkpoints={80: folder})
    assert adapters.versions(name=name) == []


def test_card_is_the_description_and_a_new_one_takes_its_place(
    adapters: Registry, client: MlflowClient, new_bundle: Build, name: str
) -> None:
    bundle = new_bundle()
    for card, shown in (("# Mine", "# Mine"), ("# New", "# New"), ("", "# New")):
        adapters.register(bundle, name, card=card)
        assert client.get_model_version(name, "1").description == shown
    adapters.register(bundle, name, card="x" * 9000)
    assert len(client.get_model_version(name, "1").description) == 5000


def test_pages_can_be_filtered_by_what_the_version_is(
    adapters: Registry, client: MlflowClient, new_bundle: Build, name: str
) -> None:
    version = adapters.register(new_bundle(), name, tags={"seed": "9"})
    shown = {
        "lora.rank": "4", "lora.alpha": "8", "lora.targets": "q_proj,v_proj",
        "quantization": "nf4", "optim.learning_rate": "0.001", "seed": "7", "steps": "80",
        "base.model": "owner/name", "data.test": "sha256:cc", "serving.form": "trained",
    }  # fmt: skip
    assert shown.items() <= version.tags.items()
    assert shown.items() <= client.get_logged_model(version.model_id).params.items()
    wanted = f"name = '{name}' and tags.`lora.rank` = '4' and tags.`metric.eval_loss` = '1.5'"
    assert len(client.search_model_versions(wanted)) == 1


def test_run_and_model_show_the_manifests_metrics(
    tracking_uri: str,
    adapters: Registry,
    artifact_location: str,
    client: MlflowClient,
    new_bundle: Build,
    name: str,
) -> None:
    tracker = Tracker(tracking_uri, name, artifact_location)
    tracker.start_sweep("s", "sweep", {}, {})
    run_id = tracker.start_trial("s", 0, "trial", {}, 1.0)
    for step in (40, 80):
        client.log_metric(run_id, "eval_loss", 1.5, step=step)
    bundle = new_bundle(metrics={"eval_loss": 1.5, "test_loss": math.nan, "accuracy": 1})
    version = adapters.register(bundle, name, run_id=run_id)
    assert version.run_id == run_id
    run = client.get_run(run_id)
    assert [one.model_id for one in run.outputs.model_outputs] == [version.model_id]
    metrics = client.get_logged_model(version.model_id).metrics
    shown = sorted((one.key, one.value, one.step) for one in metrics)
    assert shown == [("accuracy", 1.0, 80), ("eval_loss", 1.5, 80)]
    assert [one.step for one in client.get_metric_history(run_id, "eval_loss")] == [40, 80]


def test_broken_bundle_or_name_is_refused(
    adapters: Registry, new_bundle: Build, name: str
) -> None:
    bundle = new_bundle()
    with pytest.raises(RefError):
        adapters.register(bundle, "a/b")
    manifest = json.loads((bundle / "manifest.json").read_text())
    (bundle / "manifest.json").write_text(json.dumps({**manifest, "seed": 1}))
    with pytest.raises(IntegrityError):
        adapters.register(bundle, name)
