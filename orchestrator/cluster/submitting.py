"""`lorchestra submit`: a sweep file checked, rendered and applied to a cluster.

One name is one sweep: the ConfigMap with its file is immutable and outlives the RayJob, so that
another sweep under an old name is refused, whatever has become of the RayJob. What a sweep may
continue with, such as a larger budget, takes the place of the old file once the RayJob has ended.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from orchestrator.cluster.api import Kube, Manifest
from orchestrator.cluster.rendering import (
    FILE_KEY,
    Rendered,
    file_name,
    mounted_places,
    render,
    requests_name,
)
from orchestrator.cluster.state import JobState, read_job
from orchestrator.cluster.sweep_file import (
    SweepFile,
    differences,
    read_submitted,
    read_sweep_file,
)
from orchestrator.cluster.templates import load_template, overlay_of
from orchestrator.errors import ClusterError, SweepError, SweepSpecError
from orchestrator.preflight.plan import plan_sweep
from orchestrator.spec.sweep import RESUMABLE_CHANGES
from orchestrator.sweepfile.reading import YamlText
from orchestrator.wording import last_line
from trainables.errors import TrialError

MANAGER = "lorchestra"
"""Field manager of what `submit` and `resume` apply."""


_MAX_DELETION_S = 180.0
_LOOK_EVERY_S = 1.0


@dataclass(frozen=True, kw_only=True)
class Submission:
    """A sweep that is ready to be applied.

    Attributes:
        sweep: The checked sweep file.
        rendered: Its objects.
        lines: The plan, as sentences for the user.
    """

    sweep: SweepFile
    rendered: Rendered
    lines: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Submitted:
    """What submitting did.

    Attributes:
        job: The RayJob's state.
        done: A sentence for the user.
    """

    job: JobState
    done: str


def prepare_submission(
    path: Path,
    *,
    namespace: str,
    overlay: str,
    changes: tuple[str, ...] = (),
    sweeps: str | None = None,
    image: str | None = None,
    runs: Path = Path("runs"),
) -> Submission:
    """Check, plan and render a sweep; needs no cluster.

    Args:
        path: The sweep file.
        namespace: The namespace.
        overlay: Name or folder of the RayJob that the sweep is made from.
        changes: Changed fields of the file, such as `lora.rank=16`.
        sweeps: Folder or bucket prefix that holds sweeps; the overlay's when not given.
        image: Image of all containers; the overlay's when not given.
        runs: Folder of earlier sweeps, for their speeds.

    Raises:
        SweepSpecError: A value cannot work, or no configuration fits the overlay's GPU.
        DataError: A row cannot be used.
    """
    template = load_template(overlay)
    sweep = read_sweep_file(path, changes, mounted_places(template))
    rendered = render(template, sweep, namespace, sweeps, image)
    known = overlay_of(overlay)
    gpu = None if known is None else known.gpu
    lines = (*plan_sweep(sweep.spec).lines, *_outlook(sweep, gpu, runs))
    return Submission(sweep=sweep, rendered=rendered, lines=lines)


def submit(kube: Kube, submission: Submission) -> Submitted:
    """Apply a sweep; the same sweep again changes nothing.

    Raises:
        SweepSpecError: The name belongs to a sweep with other settings.
        ClusterError: The cluster refuses, or does not answer.
    """
    rendered = submission.rendered
    kube.require_rayjobs()
    known_file = kube.get("ConfigMap", file_name(rendered.name))
    before = kube.get("RayJob", rendered.name)
    state = None if before is None else read_job(before)
    changed = ""
    if known_file is not None:
        changed = _allowed_changes(known_file, submission.sweep, state, kube.namespace)
    if before is not None and state is not None:
        _require_kept(before)
        if state.is_ended and not changed:
            return Submitted(job=state, done=_ended(state, kube.namespace))
    if state is not None and state.is_ended:
        kube.delete("RayJob", rendered.name)
        await_deletion(kube, rendered.name)
        kube.delete("ConfigMap", requests_name(rendered.name))
        before = None
    kube.apply("RayJob", rendered.job, MANAGER, is_trial=True)  # all refusals, before any change
    if changed:
        kube.delete("ConfigMap", file_name(rendered.name))
    if changed or known_file is None:
        kube.apply("ConfigMap", rendered.file, MANAGER)
    after = kube.apply("RayJob", rendered.job, MANAGER)
    done = _done(before, after) + (f"; it continues, and {changed}" if changed else "")
    return Submitted(job=read_job(after), done=done)


def await_deletion(kube: Kube, name: str) -> None:
    """Wait until KubeRay has let go of a RayJob.

    Raises:
        ClusterError: It takes too long.
    """
    end = time.monotonic() + _MAX_DELETION_S
    while kube.get("RayJob", name) is not None:
        if time.monotonic() > end:
            raise ClusterError(
                f"RayJob {name}: it is being deleted for {_MAX_DELETION_S:.0f} s; allowed: an "
                "operator that ends it. See whether KubeRay's operator runs, then submit the "
                "sweep again: it continues from its storage."
            )
        time.sleep(_LOOK_EVERY_S)


def mlflow_lines(namespace: str) -> tuple[str, ...]:
    """How to reach MLflow's pages from the laptop."""
    return (
        f"MLflow: kubectl -n {namespace} port-forward service/mlflow 5000",
        "  then http://localhost:5000, as lorchestra with the password in k8s/secrets/mlflow.env",
    )


def _outlook(sweep: SweepFile, gpu: str | None, runs: Path) -> Iterator[str]:
    """The forecast for a GPU, where rows and bases can be looked up from here.

    Raises:
        SweepSpecError: No configuration fits.
    """
    if gpu is None:
        return
    if not sweep.is_whole:
        yield f"Memory of a GPU ({gpu}): not forecast, as rows or a base are in the cluster alone."
        return
    from orchestrator.preflight.looking_ahead import plan_ahead, require_fitting

    try:
        outlook = plan_ahead(sweep.spec, gpu, runs)
    except SweepSpecError:
        raise
    except (SweepError, TrialError, OSError) as error:
        yield f"Memory of a GPU ({gpu}): not forecast ({last_line(error)})."
        return
    require_fitting(outlook)
    yield from outlook.short_lines()


def _allowed_changes(
    known: Manifest, sweep: SweepFile, state: JobState | None, namespace: str
) -> str:
    """What may differ from the sweep that was submitted under the name, in words.

    Raises:
        SweepSpecError: Other settings differ, or the sweep has not ended.
    """
    name = sweep.spec.name
    place = f"ConfigMap {file_name(name)}"
    text = (known.get("data") or {}).get(FILE_KEY, "")
    if text == sweep.text:
        return ""
    old, new = _settings_of(text, place), sweep.settings
    if not differences(_deciding(old), _deciding(new)):
        told = differences(old, new)
        if told and state is not None and not state.is_ended:
            raise SweepSpecError(
                f"name: sweep {name} in {namespace} has not ended, and {told}; allowed: the "
                "settings it runs with. Wait for its end, or cancel it, then submit it again."
            )
        return told
    raise SweepSpecError(
        f"name: sweep {name} was submitted to {namespace} with other settings "
        f"({differences(old, new)}); allowed: the settings it was submitted with, in which only "
        f"{', '.join(RESUMABLE_CHANGES)} may change, because earlier and later trials could not "
        "be compared. Choose another name, or restore the settings."
    )


def _deciding(settings: Mapping[str, object]) -> dict[str, object]:
    return {name: one for name, one in settings.items() if name not in RESUMABLE_CHANGES}


def _settings_of(text: str, place: str) -> Mapping[str, object]:
    try:
        return read_submitted(text, place).settings
    except SweepSpecError:  # another version wrote it: what it wrote can still be compared
        return YamlText(place, text).mapping()


def _require_kept(job: Manifest) -> None:
    if job["metadata"].get("deletionTimestamp"):
        raise ClusterError(
            f"RayJob {job['metadata']['name']}: it is being deleted; allowed: a name that is free "
            "or that runs. Wait until `kubectl get rayjobs` shows it no more, and submit again."
        )


def _ended(state: JobState, namespace: str) -> str:
    again = f"lorchestra resume {state.name} --namespace {namespace}"
    if state.is_completed and not state.is_cancelled:
        return f"sweep {state.name} has completed; nothing was started"
    return f"sweep {state.name} has ended: {state.describe()}; continue it with: {again}"


def _done(before: Manifest | None, after: Manifest) -> str:
    name = after["metadata"]["name"]
    if before is None:
        return f"RayJob {name} was created"
    if before["metadata"]["resourceVersion"] == after["metadata"]["resourceVersion"]:
        return f"RayJob {name} is there and unchanged"
    return f"RayJob {name} was changed; a running attempt keeps its cluster"
