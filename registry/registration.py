"""Register bundles as versions of a named adapter: once each, whoever does it and how often."""

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

from registry.adapters import (
    CHECKPOINTS_TAG,
    DIGEST_TAG,
    FORM_TAG,
    METRIC_PREFIX,
    MODEL_DIGEST_TAG,
    MODEL_TAG,
    VERSION_TAG,
    AdapterVersion,
    checkpoint_tag,
    find_versions,
    get,
)
from registry.bundle import read_bundle
from registry.card import CardFacts, build_card
from registry.connection import connect, is_server, plain_errors
from registry.errors import IntegrityError, RegistryError
from registry.ledger import adapters_experiment, ensure_model
from registry.measures import FORMS
from registry.packaging import digest_model, write_model
from registry.refs import AdapterRef, require_name
from registry.tracking import shortened

logger = logging.getLogger(__name__)

# mlflow/store/model_registry/dbmodels/models.py
_MAX_DESCRIPTION = 5000

_ELSEWHERE = ("quantization", "quantization_config")
"""Of the base: under its own name, and in the manifest alone."""


def register(  # noqa: PLR0913
    bundle: Path,
    name: str,
    *,
    tracking_uri: str,
    run_id: str | None = None,
    tags: Mapping[str, str] | None = None,
    form: str = "trained",
    checkpoints: Mapping[int, Path] = MappingProxyType({}),
    card: str = "",
) -> AdapterVersion:
    """Register a bundle as the next version of an adapter.

    The same bundle registered again under the same name is the same version, by two processes at
    once too; tags, metrics and a card that are new since then are added to it.

    Args:
        bundle: Folder of an exported adapter.
        name: Adapter it becomes a version of.
        tracking_uri: MLflow server or database.
        run_id: Run that trained it.
        tags: More tags; none of them can replace what the manifest says.
        form: Serving form that it is meant for.
        checkpoints: Bundles of the same training at earlier steps, to keep with it.
        card: Text for people, in Markdown; a new version without one gets what its manifest says.

    Raises:
        IntegrityError: A bundle is not what its manifest says, or holds anything else.
        RefError: MLflow cannot hold the name.
        RegistryError: It is registered already for another form.
        TrackingError: The server cannot be used.
    """
    require_name(name)
    _require_form(form)
    manifest = read_bundle(bundle)
    earlier = _read_checkpoints(checkpoints, manifest)
    wanted = {**(tags or {}), **_tags(manifest)}
    client = connect(tracking_uri)
    with plain_errors(tracking_uri):
        ensure_model(client, name)
        known = _find(client, name, manifest["digest"])
        if known is not None:
            _require_same(known, form, earlier)
            _update(client, known, wanted, card)
            version = known.version
        else:
            wanted |= {FORM_TAG: form}
            if earlier:
                wanted[CHECKPOINTS_TAG] = ",".join(str(step) for step in sorted(earlier))
                wanted |= {checkpoint_tag(step): one for step, one in earlier.items()}
            model = _Model(
                bundle=bundle,
                manifest=manifest,
                form=form,
                checkpoints=checkpoints,
                card=card or build_card(CardFacts(name=name, manifest=manifest, form=form)),
            )
            version = _create(client, name, model, run_id, wanted)
    return get(AdapterRef(name=name, version=version), tracking_uri=tracking_uri)


@dataclass(frozen=True, kw_only=True)
class _Model:
    """What goes into a version's files."""

    bundle: Path
    manifest: Mapping[str, Any]
    form: str
    checkpoints: Mapping[int, Path]
    card: str


def _require_form(form: str) -> None:
    if form not in FORMS:
        raise RegistryError(
            f"form: got {form!r}; allowed: {', '.join(FORMS)}. Choose the one it is meant for."
        )


def _read_checkpoints(
    checkpoints: Mapping[int, Path], manifest: Mapping[str, Any]
) -> dict[int, str]:
    """Digests of the bundles of earlier steps.

    Raises:
        IntegrityError: One of them is broken, or of another training.
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


def _find(client: MlflowClient, name: str, digest: str) -> AdapterVersion | None:
    """The version of that digest: the first, should two processes have made one each."""
    same = [found for found in find_versions(client, name) if found.digest == digest]
    return same[-1] if same else None


def _require_same(known: AdapterVersion, form: str, earlier: Mapping[int, str]) -> None:
    if known.form != form:
        raise RegistryError(
            f"adapter {known.ref}: it was registered for the form {known.form}; got {form!r} for "
            "the same bundle; allowed: one form for each name. Register it under another name."
        )
    if any(known.tags.get(checkpoint_tag(step)) != one for step, one in earlier.items()):
        logger.warning(
            "%s: it keeps the steps %s as registered; got %s",
            known.ref, list(known.checkpoints) or "none", sorted(earlier),
        )  # fmt: skip


def _update(
    client: MlflowClient, known: AdapterVersion, wanted: Mapping[str, str], card: str
) -> None:
    number = str(known.version)
    entry = client.get_model_version(known.name, number)
    for key, value in wanted.items():
        if entry.tags.get(key) != value:
            client.set_model_version_tag(known.name, number, key, value)
    if card and entry.description != _description(card):
        client.update_model_version(known.name, number, _description(card))


def _create(
    client: MlflowClient,
    name: str,
    model: _Model,
    run_id: str | None,
    tags: Mapping[str, str],
) -> int:
    # Through the client and not mlflow.pyfunc.log_model, which works on a process-wide server
    # and run. A crash on the way leaves a logged model that no version points at.
    if run_id is None:
        experiment_id = adapters_experiment(client)
    else:
        experiment_id = client.get_run(run_id).info.experiment_id
    params = {key: value for key, value in tags.items() if not key.startswith(METRIC_PREFIX)}
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
    # Writing to a database, MLflow looks logged models up at a process-wide server instead.
    is_known = run_id is not None or is_server(client.tracking_uri)
    created = client.create_model_version(
        name,
        source=logged.artifact_location,
        run_id=run_id,
        tags={**tags, MODEL_DIGEST_TAG: model_digest, MODEL_TAG: logged.model_id},
        description=_description(model.card) or None,
        model_id=logged.model_id if is_known else None,
        await_creation_for=0,  # the version is there at once, as its files are
    )
    logger.info("registered %s/%s from %s", name, created.version, model.bundle)
    # Who collects garbage may not see this version; whose model it is, is said by the model too.
    client.set_logged_model_tags(logged.model_id, {VERSION_TAG: f"{name}/{created.version}"})
    return _settle_race(client, name, int(created.version), model.manifest)


def _settle_race(client: MlflowClient, name: str, made: int, manifest: Mapping[str, Any]) -> int:
    """MLflow lets two processes make a version each of the same bundle: the first one stays."""
    first = _find(client, name, manifest["digest"])
    if first is None or first.version >= made:
        return made
    client.delete_model_version(name, str(made))  # its files are left to `find_garbage`
    logger.info("%s/%s was registered twice at once: %s stays", name, made, first.ref)
    return first.version


def _link(client: MlflowClient, run_id: str, model_id: str, manifest: Mapping[str, Any]) -> None:
    """Show the model with the run that trained it, and the run's last metrics with the model."""
    step = manifest["steps"]
    client.log_outputs(run_id, models=[LoggedModelOutput(model_id, step)])
    metrics = [
        Metric(key, value, _time_of(client, run_id, key, value, step), step, model_id=model_id)
        for key, value in manifest["metrics"].items()
        if math.isfinite(value)  # MLflow turns a model's NaN into 0
    ]
    client.log_batch(run_id, metrics=metrics)


def _time_of(client: MlflowClient, run_id: str, key: str, value: float, step: int) -> int:
    """Milliseconds of the run's own point of that value, so that it stays one; else of now."""
    for point in reversed(client.get_metric_history(run_id, key)):
        if (point.step, point.value) == (step, value):
            return int(point.timestamp)
    return round(time.time() * 1000)


def _description(card: str) -> str:
    return shortened(card, _MAX_DESCRIPTION)


def _tags(manifest: Mapping[str, Any]) -> dict[str, str]:
    base, lora, data = manifest["base"], manifest["lora"], manifest["data"]
    values = {
        **{f"base.{key}": value for key, value in base.items() if key not in _ELSEWHERE},
        **{f"lora.{key}": value for key, value in lora.items() if key != "scaling"},  # follows
        **{f"optim.{key}": value for key, value in manifest["optim"].items()},
        **{f"data.{key}": value for key, value in data.items() if not _is_nested(value)},
        **{f"package.{key}": value for key, value in manifest["packages"].items()},
        **{METRIC_PREFIX + key: float(value) for key, value in manifest["metrics"].items()},
        DIGEST_TAG: manifest["digest"],
        "quantization": base["quantization"],
        "lora.targets": ",".join(lora["targets"]),
        "lora.alpha": f"{lora['alpha']:g}",  # 16, as who filters by it writes it
        "seed": manifest["seed"],
        "steps": manifest["steps"],
        "tokens": manifest["tokens"],
    }
    return {key: str(value) for key, value in values.items() if value is not None}


def _is_nested(value: object) -> bool:
    """Whether a value is too much for a tag; the manifest has it."""
    return isinstance(value, dict | list)
