"""`lorchestra submit`: a sweep file checked, rendered and applied to a cluster.

One name is one sweep: the ConfigMap with its file is immutable and outlives the RayJob, so that
another file under an old name is refused, whatever has become of the RayJob.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from orchestrator.cluster.api import Kube, Manifest
from orchestrator.cluster.rendering import FILE_KEY, Rendered, file_name, mounted_places, render
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
from orchestrator.sweepfile.reading import YamlText
from orchestrator.wording import last_line
from trainables.errors import TrialError

MANAGER = "lorchestra"
"""Field manager of what `submit` and `resume` apply."""


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
    if known_file is not None:
        _require_same(known_file, submission.sweep, kube.namespace)
    before = kube.get("RayJob", rendered.name)
    if before is not None:
        _require_kept(before)
        state = read_job(before)
        if state.is_ended:
            return Submitted(job=state, done=_ended(state, kube.namespace))
    kube.apply("RayJob", rendered.job, MANAGER, is_trial=True)  # all refusals, before any change
    if known_file is None:
        kube.apply("ConfigMap", rendered.file, MANAGER)
    after = kube.apply("RayJob", rendered.job, MANAGER)
    return Submitted(job=read_job(after), done=_done(before, after))


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


def _require_same(known: Manifest, sweep: SweepFile, namespace: str) -> None:
    """Refuse another sweep under an old name.

    Raises:
        SweepSpecError: The settings differ.
    """
    name = sweep.spec.name
    place = f"ConfigMap {file_name(name)}"
    text = (known.get("data") or {}).get(FILE_KEY, "")
    if text == sweep.text:
        return
    told = differences(_settings_of(text, place), sweep.settings)
    if told:
        raise SweepSpecError(
            f"name: sweep {name} was submitted to {namespace} with other settings ({told}); "
            "allowed: the settings it was submitted with, because earlier and later trials could "
            "not be compared. Choose another name, or restore the settings; lorchestra resume "
            "continues the old sweep."
        )


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
