"""What past versions were trained with, the most wanted first."""

from collections.abc import Callable
from pathlib import Path

from registry import Registry
from registry.tracking.tracker import Tracker

Build = Callable[..., Path]


def test_champion_comes_first_then_the_best(
    adapters: Registry, new_bundle: Build, name: str
) -> None:
    for seed, loss in ((1, 3.0), (2, 1.0), (3, 2.0), (4, 4.0)):
        adapters.register(new_bundle(seed=seed, metrics={"eval_loss": loss}), name)
    adapters.set_alias(f"{name}/1", "champion")
    specs = adapters.best_specs(name, 3)
    assert [spec["seed"] for spec in specs] == [1, 2, 3]
    worst_first = adapters.best_specs(name, 2, mode="max")
    assert [spec["seed"] for spec in worst_first] == [1, 4]
    assert specs[0]["lora"]["rank"] == 4
    assert specs[0]["lora"]["targets"] == ["q_proj", "v_proj"]
    assert specs[0]["optim"]["learning_rate"] == 0.001
    assert set(specs[0]) == {"base", "lora", "optim", "seed"}


def test_targets_are_named_as_the_run_named_them(
    tracking_uri: str, adapters: Registry, artifact_location: str, new_bundle: Build, name: str
) -> None:
    tracker = Tracker(tracking_uri, name, artifact_location)
    tracker.start_sweep("s", "sweep", {}, {})
    for number, named in enumerate(("attention", "q_proj+v_proj")):
        run_id = tracker.start_trial("s", number, "trial", {"lora.targets": named}, 1.0)
        bundle = new_bundle(seed=number, metrics={"eval_loss": 1.0 + number})
        adapters.register(bundle, name, run_id=run_id)
    found = [spec["lora"]["targets"] for spec in adapters.best_specs(name)]
    assert found == ["attention", ["q_proj", "v_proj"]]


def test_unknown_name_has_no_versions(adapters: Registry) -> None:
    assert adapters.best_specs("no-such-name") == []


def test_version_without_its_files_is_left_out(
    adapters: Registry, client, new_bundle: Build, name: str
) -> None:
    for seed in (1, 2):
        adapters.register(new_bundle(seed=seed), name)
    stored = Path(client.get_model_version_download_uri(name, "2").removeprefix("file://"))
    (stored / "artifacts/adapter/manifest.json").unlink()
    assert [spec["seed"] for spec in adapters.best_specs(name)] == [1]
