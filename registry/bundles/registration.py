"""Register bundles as versions of an adapter; a bundle registered again is one version."""

from __future__ import annotations

import logging
import math
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import LoggedModelOutput, Metric

from registry.bundles.card import CardFacts, build_card
from registry.bundles.integrity import read_bundle
from registry.bundles.packaging import digest_model, write_model
from registry.errors import IntegrityError, RegistryError
from registry.tracking.connection import is_server, plain_errors
from registry.tracking.experiments import adapters_experiment
from registry.tracking.limits import MAX_DESCRIPTION_CHARS, shortened
from registry.versions.ledger import ensure_model
from registry.versions.refs import AdapterRef, require_name
from registry.versions.tags import METRIC_PREFIX, fold, merge
from registry.versions.versions import (
    CHECKPOINTS_TAG,
    DIGEST_TAG,
    FORM_TAG,
    MODEL_DIGEST_TAG,
    MODEL_TAG,
    VERSION_TAG,
    AdapterVersion,
    checkpoint_tag,
    find_versions,
    get_version,
)
from trainables.contract import SERVING_FORMS

logger = logging.getLogger(__name__)

_ELSEWHERE = ("quantization", "quantization_config")
"""Fields of the base with a tag of another name, or without a tag."""

_NESTED = (dict, list)
"""Types of values that are too complex for a tag; the manifest holds them."""


def register(  # noqa: PLR0913
    client: MlflowClient,
    bundle: Path,
    name: str,
    *,
    run_id: str | None = None,
    tags: Mapping[str, str] | None = None,
    form: str = "trained",
    checkpoints: Mapping[int, Path] = MappingProxyType({}),
    card: str = "",
) -> AdapterVersion:
    """Register a bundle as the next version of an adapter.

    A bundle registered again under the same name gives the same version, for two processes at once
    too; new tags, metrics and a new card are added to the version.

    Args:
        client: Of the server.
        bundle: Folder of an exported adapter.
        name: Adapter that gets the version.
        run_id: Run that trained the adapter.
        tags: More tags; tags from the manifest cannot be replaced.
        form: Serving form in which the version is used.
        checkpoints: Bundles of the same training at earlier steps, kept with the version.
        card: Text for people, in Markdown; left out, it is built from the manifest.

    Raises:
        IntegrityError: A file of a bundle is missing, changed or unexpected.
        RefError: MLflow does not allow the name.
        RegistryError: The bundle is registered already for another form, or its base has no such
            form.
        TrackingError: The server cannot be used.
    """
    require_name(name)
    if form not in SERVING_FORMS:
        raise RegistryError(
            f"form: got {form!r}; allowed: {', '.join(SERVING_FORMS)}. Choose the form that is "
            "served."
        )
    manifest = read_bundle(bundle)
    if manifest["base"].get("prequantized") and form != "trained":
        raise RegistryError(
            f"form: got {form!r}; allowed: trained, as the base's own files are quantized and it "
            "has no unquantized weights. Choose that form."
        )
    earlier = _read_checkpoints(checkpoints, manifest)
    given, facts = tags or {}, _facts(manifest)
    with plain_errors(client.tracking_uri):
        ensure_model(client, name)
        known = _find_by_digest(client, name, manifest["digest"])
        if known is not None:
            if known.form != form:
                raise RegistryError(
                    f"adapter {known.ref}: it was registered for the form {known.form}; got "
                    f"{form!r} for the same bundle; allowed: one form for each name. Register it "
                    "under another name."
                )
            _update(client, known, fold(facts, given), earlier, card)
            version = known.version
        else:
            own: dict[str, str] = {FORM_TAG: form}
            if earlier:
                own[CHECKPOINTS_TAG] = ",".join(str(step) for step in sorted(earlier))
                own |= {checkpoint_tag(step): one for step, one in earlier.items()}
            model = _Model(
                bundle=bundle,
                manifest=manifest,
                form=form,
                checkpoints=checkpoints,
                card=card or build_card(CardFacts(name=name, manifest=manifest, form=form)),
            )
            params = {**given, **facts, **own}
            version = _create(client, name, model, run_id, params, fold(facts, given) | own)
    return get_version(client, AdapterRef(name=name, version=version))


@dataclass(frozen=True, kw_only=True)
class _Model:
    """Content of a version's files."""

    bundle: Path
    manifest: Mapping[str, Any]
    form: str
    checkpoints: Mapping[int, Path]
    card: str


def _read_checkpoints(
    checkpoints: Mapping[int, Path], manifest: Mapping[str, Any]
) -> dict[int, str]:
    """Digests of the bundles of earlier steps.

    Raises:
        IntegrityError: A bundle is broken, or belongs to another training.
    """
    found: dict[int, str] = {}
    for step, folder in checkpoints.items():
        earlier = read_bundle(folder)
        same = [earlier[key] == manifest[key] for key in ("base", "seed")]
        if earlier["steps"] != step or step >= manifest["steps"] or not all(same):
            raise IntegrityError(
                f"bundle {folder}: it is of step {earlier['steps']} of seed {earlier['seed']} on "
                f"{earlier['base']['model']}; allowed: step {step}, before {manifest['steps']}, "
                f"of seed {manifest['seed']} on {manifest['base']['model']}. Give the bundle "
                "that the same training left at that step."
            )
        found[step] = earlier["digest"]
    return found


def _find_by_digest(client: MlflowClient, name: str, digest: str) -> AdapterVersion | None:
    """First version with a digest; two processes may have created a version each."""
    same = find_versions(client, name, digest=digest)
    return same[-1] if same else None


def _update(
    client: MlflowClient,
    known: AdapterVersion,
    wanted: Mapping[str, str],
    earlier: Mapping[int, str],
    card: str,
) -> None:
    """Write new tags and a new card to a version; the bundles of earlier steps stay."""
    if any(known.tags.get(checkpoint_tag(step)) != one for step, one in earlier.items()):
        logger.warning(
            "%s: it keeps the steps %s as registered; got %s",
            known.ref, list(known.checkpoints) or "none", sorted(earlier),
        )  # fmt: skip
    number = str(known.version)
    entry = client.get_model_version(known.name, number)
    for key, value in merge(entry.tags, wanted).items():
        if entry.tags.get(key) != value:
            client.set_model_version_tag(known.name, number, key, value)
    if card and entry.description != _description(card):
        client.update_model_version(known.name, number, _description(card))


def _create(
    client: MlflowClient,
    name: str,
    model: _Model,
    run_id: str | None,
    facts: Mapping[str, str],
    tags: Mapping[str, str],
) -> int:
    # With the client: mlflow.pyfunc.log_model uses a process-wide server and run. A crash here
    # leaves a logged model without a version, which is garbage to collect.
    if run_id is None:
        experiment_id = adapters_experiment(client)
    else:
        experiment_id = client.get_run(run_id).info.experiment_id
    params = {key: value for key, value in facts.items() if not key.startswith(METRIC_PREFIX)}
    logged = client.create_logged_model(
        experiment_id, name="adapter", source_run_id=run_id, params=params
    )
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work) / "model"
        write_model(
            model.bundle,
            model.manifest,
            folder,
            logged.model_id,
            run_id,
            form=model.form,
            checkpoints=model.checkpoints,
            card=model.card,
        )
        model_digest = digest_model(folder)
        client.log_model_artifacts(logged.model_id, str(folder))
    client.finalize_logged_model(logged.model_id, "READY")
    if run_id is not None:
        _link(client, run_id, logged.model_id, model.manifest)
    # With a database, MLflow would look the logged model up at a process-wide server.
    is_known = run_id is not None or is_server(client.tracking_uri)
    created = client.create_model_version(
        name,
        source=logged.artifact_location,
        run_id=run_id,
        tags={**tags, MODEL_DIGEST_TAG: model_digest, MODEL_TAG: logged.model_id},
        description=_description(model.card) or None,
        model_id=logged.model_id if is_known else None,
        await_creation_for=0,  # the files are stored already, so the version is ready at once
    )
    logger.info("registered %s/%s from %s", name, created.version, model.bundle)
    # A user who collects garbage may not see this version, but reads this tag of the model.
    client.set_logged_model_tags(logged.model_id, {VERSION_TAG: f"{name}/{created.version}"})
    return _resolve_duplicate(client, name, int(created.version), model.manifest)


def _resolve_duplicate(
    client: MlflowClient, name: str, made: int, manifest: Mapping[str, Any]
) -> int:
    """Number of the first version, if two processes each registered the same bundle."""
    first = _find_by_digest(client, name, manifest["digest"])
    if first is None or first.version >= made:
        return made
    client.delete_model_version(name, str(made))  # the files are garbage now
    logger.info("%s/%s was registered twice at once: %s stays", name, made, first.ref)
    return first.version


def _link(client: MlflowClient, run_id: str, model_id: str, manifest: Mapping[str, Any]) -> None:
    """Link the model and its training run, and show the last metrics with the model."""
    step = manifest["steps"]
    client.log_outputs(run_id, models=[LoggedModelOutput(model_id, step)])
    metrics = []
    for key, value in manifest["metrics"].items():
        if math.isfinite(value):  # MLflow turns a model's NaN into 0
            points = reversed(client.get_metric_history(run_id, key))
            # With the time of the run's existing point, logging the point again adds none.
            same = (p.timestamp for p in points if (p.step, p.value) == (step, value))
            at_ms = int(next(same, time.time() * 1000))
            metrics.append(Metric(key, value, at_ms, step, model_id=model_id))
    client.log_batch(run_id, metrics=metrics)


def _description(card: str) -> str:
    return shortened(card, MAX_DESCRIPTION_CHARS)


def _facts(manifest: Mapping[str, Any]) -> dict[str, str]:
    """Facts of a manifest by the names of tags."""
    base, lora, data = manifest["base"], manifest["lora"], manifest["data"]
    values = {
        **{f"base.{key}": value for key, value in base.items() if key not in _ELSEWHERE},
        **{f"lora.{key}": value for key, value in lora.items() if key != "scaling"},  # follows
        **{f"optim.{key}": value for key, value in manifest["optim"].items()},
        **{f"data.{key}": value for key, value in data.items() if not isinstance(value, _NESTED)},
        **{f"package.{key}": value for key, value in manifest["packages"].items()},
        **{METRIC_PREFIX + key: float(value) for key, value in manifest["metrics"].items()},
        DIGEST_TAG: manifest["digest"],
        "quantization": base["quantization"],
        "lora.targets": ",".join(lora["targets"]),
        "lora.alpha": f"{lora['alpha']:g}",  # 16, not 16.0, as users write a filter
        "engine": manifest.get("engine"),
        "seed": manifest["seed"],
        "steps": manifest["steps"],
        "tokens": manifest["tokens"],
    }
    return {key: str(value) for key, value in values.items() if value is not None}
