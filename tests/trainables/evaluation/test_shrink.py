"""A bundle of a lower rank: what it keeps, what it loses, and who can read it."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import peft
import pytest
import torch
from safetensors.torch import load_file

from registry.bundles.integrity import read_bundle
from trainables.base.loading import load_base
from trainables.engine import build_engine
from trainables.errors import BundleError, SpecError
from trainables.evaluation.shrink import choose_smallest, energy, shrink_bundle
from trainables.spec import BaseSpec, DataSpec, LoraSpec, OptimSpec, TrialSpec
from trainables.training.bundle import read_manifest, write_files

KINDS = {
    "plain": {},
    "rslora": {"rslora": True},
    "dora": {"dora": True},
    "wider-than-a-layer": {"rank": 48, "targets": ("k_proj",)},
}
WEIGHTS = "adapter_model.safetensors"


@pytest.fixture(scope="module")
def spec(tiny_base: Path, tiny_data: Path) -> TrialSpec:
    return TrialSpec(
        base=BaseSpec(model=str(tiny_base), compute_dtype="float32"),
        lora=LoraSpec(rank=8, alpha=12, targets=("up_proj", "q_proj")),
        optim=OptimSpec(steps=6, batch_size=4, learning_rate=2e-2, schedule="constant"),
        data=DataSpec(train=str(tiny_data)),
        seed=3,
    )


@pytest.fixture(scope="module")
def train(spec: TrialSpec, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The trained bundle of a kind, the same folder each time: only read it."""
    engine = build_engine(spec.base)
    folder = tmp_path_factory.mktemp("bundles")

    def of_kind(kind: str) -> Path:
        if not (folder / kind).exists():
            engine.join(kind, replace(spec, lora=replace(spec.lora, **KINDS[kind])))
            for _ in range(6):
                engine.step([kind])
            engine.export(kind, folder / kind, {"eval_loss": 1.5})
            engine.leave(kind)
        return folder / kind

    return of_kind


def updates(bundle: Path) -> dict[str, np.ndarray]:
    """`scaling * B A` of every layer in float64, by the formula and with none of our code."""
    config = json.loads((bundle / "adapter_config.json").read_text())
    scaling = config["lora_alpha"] / (
        math.sqrt(config["r"]) if config["use_rslora"] else config["r"]
    )
    tensors = load_file(bundle / WEIGHTS)
    return {
        name.removesuffix(".lora_A.weight"): scaling
        * tensors[name.replace("lora_A", "lora_B")].double().numpy()
        @ tensors[name].double().numpy()
        for name in tensors
        if "lora_A" in name
    }


def logits(spec: TrialSpec, bundle: Path) -> torch.Tensor:
    """What PEFT makes of a bundle on its base."""
    base = load_base(spec.base)
    model = peft.PeftModel.from_pretrained(base.model, bundle).eval()
    with torch.no_grad():
        return model(input_ids=torch.arange(5, 45)[None]).logits


@pytest.mark.parametrize("kind", KINDS)
def test_at_its_own_rank_an_adapter_stays_what_it_is(train, kind, tmp_path):
    bundle = train(kind)
    shrink_bundle(bundle, read_manifest(bundle)["lora"]["rank"], tmp_path / "same")
    after = updates(tmp_path / "same")
    for layer, update in updates(bundle).items():
        assert np.abs(update).max() > 1e-3
        np.testing.assert_allclose(after[layer], update, rtol=0, atol=1e-6 * np.abs(update).max())


@pytest.mark.parametrize("rank", [1, 3, 7])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_lost_is_the_tail_of_the_singular_values(train, kind, rank, tmp_path):
    bundle = train(kind)
    shrink_bundle(bundle, rank, tmp_path / "small")
    after = updates(tmp_path / "small")
    for layer, update in updates(bundle).items():
        values = np.linalg.svd(update, compute_uv=False)
        lost = update - after[layer]
        assert np.linalg.matrix_rank(after[layer], tol=1e-5 * values[0]) <= rank
        near = {"rel": 1e-4, "abs": 1e-6 * values[0]}
        assert np.linalg.norm(lost, 2) == pytest.approx(values[rank], **near)
        assert np.linalg.norm(lost) == pytest.approx(np.linalg.norm(values[rank:]), **near)


@pytest.mark.parametrize("kind", ["plain", "rslora", "dora"])
def test_peft_gives_the_same_logits_at_the_full_rank_and_others_below(spec, train, kind, tmp_path):
    before = logits(spec, train(kind))
    shrink_bundle(train(kind), 8, tmp_path / "same")
    shrink_bundle(train(kind), 1, tmp_path / "small")
    torch.testing.assert_close(logits(spec, tmp_path / "same"), before, rtol=0, atol=1e-4)
    assert float((logits(spec, tmp_path / "small") - before).abs().max()) > 1e-2


@pytest.mark.parametrize("kind", ["plain", "rslora"])
def test_peft_scales_the_smaller_adapter_as_meant(spec, train, kind, tmp_path):
    shrink_bundle(train(kind), 3, tmp_path / "small")
    meant = updates(tmp_path / "small")
    model = peft.PeftModel.from_pretrained(
        load_base(replace(spec.base, quantization="none")).model, tmp_path / "small"
    )
    for layer, update in meant.items():
        delta = model.get_submodule(layer).get_delta_weight("default")
        np.testing.assert_allclose(delta.detach(), update, atol=1e-5 * np.abs(update).max())


def test_magnitudes_of_dora_stay(train, tmp_path):
    shrink_bundle(train("dora"), 2, tmp_path / "small")
    before, after = load_file(train("dora") / WEIGHTS), load_file(tmp_path / "small" / WEIGHTS)
    magnitudes = [name for name in before if name.endswith("lora_magnitude_vector")]
    assert len(magnitudes) == 4  # layers times targets
    assert all(torch.equal(before[name], after[name]) for name in magnitudes)


def test_singular_values_are_split_evenly(train, tmp_path):
    shrink_bundle(train("plain"), 4, tmp_path / "small")
    tensors = load_file(tmp_path / "small" / WEIGHTS)
    for name in [name for name in tensors if "lora_A" in name]:
        a, b = tensors[name], tensors[name.replace("lora_A", "lora_B")]
        assert a.dtype == b.dtype == torch.float32
        torch.testing.assert_close(a @ a.T, b.T @ b, rtol=1e-4, atol=1e-6)


def test_the_manifest_says_where_it_comes_from_and_only_what_was_measured(train, tmp_path):
    old = read_manifest(train("rslora"))
    new = shrink_bundle(train("rslora"), 4, tmp_path / "small", metrics={"test_loss": 2.0})
    assert new["derived"] == {"from": old["digest"], "method": "svd", "rank": 4}
    assert new["metrics"] == {"test_loss": 2.0}
    assert (new["lora"]["rank"], new["lora"]["alpha"], new["lora"]["scaling"]) == (4, 12, 6.0)
    assert new["digest"] != old["digest"]
    same = ("base", "optim", "data", "seed", "steps", "tokens", "packages")
    assert {key: new[key] for key in same} == {key: old[key] for key in same}
    assert read_manifest(tmp_path / "small") == read_bundle(tmp_path / "small") == new
    config = json.loads((tmp_path / "small" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["use_rslora"]) == (4, 12, True)


def test_without_measurements_the_manifest_holds_none(train, tmp_path):
    assert shrink_bundle(train("plain"), 2, tmp_path / "small")["metrics"] == {}


def test_a_smaller_adapter_can_be_shrunk_again(train, tmp_path):
    first = shrink_bundle(train("plain"), 4, tmp_path / "four")
    second = shrink_bundle(tmp_path / "four", 2, tmp_path / "two")
    shrink_bundle(train("plain"), 2, tmp_path / "at-once")
    assert second["derived"]["from"] == first["digest"]
    at_once = updates(tmp_path / "at-once")
    for layer, update in updates(tmp_path / "two").items():
        np.testing.assert_allclose(update, at_once[layer], atol=1e-5 * np.abs(update).max())


def test_the_share_that_a_rank_keeps_is_that_of_its_squared_singular_values(train):
    every = [np.linalg.svd(one, compute_uv=False)[:8] for one in updates(train("rslora")).values()]
    squares = np.sum(np.square(every), axis=0)
    shares = energy(train("rslora"))
    assert list(shares) == list(range(1, 9))
    np.testing.assert_allclose(list(shares.values()), squares.cumsum() / squares.sum(), rtol=1e-5)
    assert shares[8] == pytest.approx(1.0)


def rewrite(bundle: Path, folder: Path, change: Callable[[torch.Tensor], torch.Tensor]) -> Path:
    """A whole bundle like another one, but for one changed `B`."""
    tensors = load_file(bundle / WEIGHTS)
    name = next(name for name in tensors if "lora_B" in name)
    tensors[name] = change(tensors[name])
    config = json.loads((bundle / "adapter_config.json").read_text())
    write_files(folder, config=config, tensors=tensors, manifest=read_manifest(bundle))
    return folder


def test_an_untrained_update_keeps_all_of_nothing(spec, tmp_path):
    engine = build_engine(spec.base)
    engine.join("seat", spec)
    engine.export("seat", tmp_path / "fresh", {})
    assert set(energy(tmp_path / "fresh").values()) == {1.0}
    shrink_bundle(tmp_path / "fresh", 2, tmp_path / "small")
    assert not any(update.any() for update in updates(tmp_path / "small").values())


@pytest.mark.parametrize("rank", [-1, 0, 9])
def test_a_rank_that_the_adapter_does_not_have_is_refused(train, rank, tmp_path):
    with pytest.raises(SpecError, match=f"rank: got {rank}; allowed: 1 to 8, the rank of"):
        shrink_bundle(train("plain"), rank, tmp_path / "small")
    assert not (tmp_path / "small").exists()


def test_a_bundle_is_not_overwritten_by_its_smaller_self(train):
    with pytest.raises(SpecError, match=r"folder: got .* the bundle itself"):
        shrink_bundle(train("plain"), 2, train("plain"))


@pytest.mark.parametrize("use", [energy, lambda path: shrink_bundle(path, 2, path / "small")])
def test_a_folder_without_a_bundle_is_refused(use, tmp_path):
    with pytest.raises(BundleError, match=r"no readable manifest\.json"):
        use(tmp_path)


def test_weights_that_are_no_numbers_or_of_another_rank_are_refused(train, tmp_path):
    broken = rewrite(train("plain"), tmp_path / "nan", lambda b: b * math.nan)
    with pytest.raises(BundleError, match="holds weights that are not finite"):
        shrink_bundle(broken, 2, tmp_path / "small")
    uneven = rewrite(train("plain"), tmp_path / "uneven", lambda b: b[:, :4])
    with pytest.raises(BundleError, match="allowed: 8, as the manifest says of every layer"):
        energy(uneven)


@pytest.mark.parametrize(
    ("mode", "values", "tolerance", "chosen"),
    [
        ("min", {2: 1.2, 4: 1.05, 8: 1.0}, 0.1, 4),
        ("min", {2: 1.2, 4: 1.05, 8: 1.0}, 0.0, 8),
        ("min", {2: 0.9, 4: 1.05}, 0.0, 2),
        ("max", {2: 0.7, 4: 0.95, 8: 1.2}, 0.1, 4),
        ("max", {2: 0.7, 4: 0.8}, 0.1, None),
        ("min", {2: math.nan, 4: math.inf, 8: 1.0}, 0.5, 8),
        ("min", {}, 0.5, None),
    ],
    ids=["within", "no-loss", "better", "max", "none", "not-finite", "no-candidates"],
)
def test_the_smallest_rank_that_is_good_enough_is_chosen(mode, values, tolerance, chosen):
    assert choose_smallest(1.0, values, mode, tolerance) == chosen


def test_impossible_questions_are_refused():
    with pytest.raises(SpecError, match="reference: got nan"):
        choose_smallest(math.nan, {2: 1.0}, "min", 0.1)
    with pytest.raises(SpecError, match=r"tolerance: got -0\.1"):
        choose_smallest(1.0, {2: 1.0}, "min", -0.1)
