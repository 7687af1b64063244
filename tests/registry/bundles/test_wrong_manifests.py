"""A manifest with a right digest and values of wrong shape is refused, and nothing of it kept."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from registry import Registry
from registry.bundles.integrity import read_bundle
from registry.errors import IntegrityError, RegistryError
from tests.support.bundles import write_bundle
from tests.support.mutations import mutations, sample
from trainables.contract import identity_digest
from trainables.errors import BundleError
from trainables.training.bundle import read_manifest


def write(bundle: Path, text: str) -> None:
    """Write a manifest with its right digest, if it has a digest."""
    manifest = json.loads(text)
    if str(manifest.get("digest")).startswith("sha256:"):
        manifest["digest"] = identity_digest(manifest)
    (bundle / "manifest.json").write_text(json.dumps(manifest))


def attempt(work: Callable[[], object], kind: type[Exception], change: str) -> str:
    """The message of the expected error; empty without an error."""
    try:
        work()
    except kind as error:
        return str(error)
    except Exception as error:
        raise AssertionError(change) from error
    return ""


def test_every_change_is_read_or_refused_by_both_readers(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "bundle", seed=7)
    record = json.loads((bundle / "manifest.json").read_text())
    messages = []
    for change, text in mutations(record):
        write(bundle, text)
        messages.append(attempt(lambda: read_bundle(bundle), IntegrityError, change))
        messages.append(attempt(lambda: read_manifest(bundle), BundleError, change))
    refused = list(filter(None, messages))
    assert 500 < len(refused) < len(messages)
    assert max(map(len, refused)) < 900
    assert not any("\n" in message for message in refused)


@pytest.mark.parametrize(
    ("section", "field", "value", "flaw"),
    [
        ("lora", "rank", "eight", "lora.rank is 'eight', which is not a whole number"),
        ("lora", "rank", True, "lora.rank is True, which is not a whole number"),
        ("lora", "targets", "q_proj", "lora.targets is 'q_proj', which is not a list of names"),
        ("lora", "alpha", float("nan"), "lora.alpha is nan, which is not a finite number"),
        ("base", "model", None, "base.model is None, which is not text"),
        ("data", "max_tokens", 10**400, "data.max_tokens is 1000"),
        ("metrics", "eval_loss", "low", "metrics.eval_loss is 'low', which is not a number"),
        ("", "seed", 10**400, "seed is 1000"),
        ("", "steps", [80], r"steps is \[80\], which is not a whole number"),
    ],
)
def test_nothing_is_registered_of_a_manifest_of_wrong_shape(
    adapters: Registry, tmp_path: Path, section: str, field: str, value: object, flaw: str
) -> None:
    bundle = write_bundle(tmp_path / "bundle", seed=7)
    manifest = json.loads((bundle / "manifest.json").read_text())
    (manifest[section] if section else manifest)[field] = value
    write(bundle, json.dumps(manifest))
    with pytest.raises(IntegrityError, match=flaw):
        adapters.register(bundle, "wrong-shape")
    with pytest.raises(BundleError, match=flaw):
        read_manifest(bundle)
    assert adapters.versions(name="wrong-shape") == []


def test_a_change_that_is_accepted_can_be_registered_or_is_refused_in_words(
    adapters: Registry, tmp_path: Path, name: str
) -> None:
    bundle = write_bundle(tmp_path / "bundle", seed=7)
    record = json.loads((bundle / "manifest.json").read_text())
    accepted = []
    for change, text in mutations(record):
        write(bundle, text)
        if not attempt(lambda: read_bundle(bundle), IntegrityError, change):
            accepted.append((change, text))
    for change, text in sample(accepted, 25):
        write(bundle, text)
        said = attempt(lambda: adapters.register(bundle, name), RegistryError, change)
        assert "\n" not in said
