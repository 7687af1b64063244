"""`lorchestra plan`, and what `check` and `run` say of memory, hours and money."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path

from orchestrator.capacity.hardware import Hardware, find_gpu, hardware_of_cpu, hardware_of_gpu
from orchestrator.capacity.lengths import SweepLengths
from orchestrator.capacity.outlook import Outlook, look_ahead
from orchestrator.preflight.data_report import DataReport, read_local_rows, with_fetched_configs
from orchestrator.preflight.machine import look_at_machine
from orchestrator.preflight.plan import plan_sweep
from orchestrator.quiet import library_chatter_held
from orchestrator.spec.sweep import SweepSpec
from trainables.base.presence import hub_fault, is_hub_model, stay_offline
from trainables.errors import TrialError
from trainables.rows.inspection import inspect_data
from trainables.rows.splits import RawSplits
from trainables.spec import BaseSpec

logger = logging.getLogger(__name__)


def plan_ahead(spec: SweepSpec, gpu: str | None, runs: Path) -> Outlook:
    """The outlook of a sweep, from its file, its rows and the sizes of its bases.

    Neither Ray nor a GPU, MLflow or the sweep's storage is needed. Rows that are not on this
    machine, or a base without a tokenizer here, count with the limits of the file.

    Args:
        spec: The sweep.
        gpu: Name of a GPU; this machine's device if not given.
        runs: Folder of earlier sweeps.

    Raises:
        SweepSpecError: There is no such GPU, or a value in the spec cannot work.
        DataError: A row cannot be used.
    """
    hardware = find_gpu(gpu) if gpu is not None else own_hardware()
    with library_chatter_held():
        if any(is_hub_model(base.model) for base in spec.bases) and hub_fault():
            stay_offline()
        spec = with_fetched_configs(spec)
        rows = read_local_rows(spec)
        lengths = {base.model: _counted(spec, base, rows) for base in spec.bases}
        return _look(spec, lengths, hardware, runs)


def outlook_on_this_machine(spec: SweepSpec, data: DataReport, runs: Path) -> Outlook:
    """The outlook of a sweep whose rows were counted, on this machine's device.

    Args:
        spec: The sweep.
        data: The inspection of its rows.
        runs: Folder of earlier sweeps.
    """
    lengths = {model: SweepLengths(splits=splits) for model, splits in data.lengths.items()}
    return _look(spec, lengths, own_hardware(), runs)


def require_fitting(outlook: Outlook) -> None:
    """Refuse a sweep of which no configuration fits the device.

    Raises:
        SweepSpecError: Nothing fits, even if every forecast is too large by its stated error.
    """
    if outlook.is_hopeless:
        raise outlook.refusal()


def own_hardware() -> Hardware | None:
    """The device of this machine that has least memory; `None` if Ray runs elsewhere."""
    if os.environ.get("RAY_ADDRESS", "").strip() not in ("", "local"):
        return None
    machine = look_at_machine()
    if machine.gpus:
        gpu = min(machine.gpus, key=lambda one: one.memory)
        return hardware_of_gpu(gpu.name, gpu.memory)
    return hardware_of_cpu(machine.whole_memory, has_bfloat16=machine.has_bfloat16)


def _look(
    spec: SweepSpec, lengths: Mapping[str, SweepLengths], hardware: Hardware | None, runs: Path
) -> Outlook:
    plan = plan_sweep(spec)
    hardware = None if hardware is None else hardware.limited(spec.hosts.memory)
    return look_ahead(spec, lengths, hardware, trials=plan.trials, repeats=plan.repeats, runs=runs)


def _counted(spec: SweepSpec, base: BaseSpec, rows: RawSplits | None) -> SweepLengths:
    """Lengths of the rows in a base's tokens, if rows and tokenizer are here."""
    if rows is None:
        return SweepLengths(why="the rows are not on this machine")
    try:
        summary = inspect_data(base, spec.data, rows, spec.eval.max_rows)
    except (TrialError, OSError) as error:
        logger.info("the rows were not counted: %s", error)
        return SweepLengths(why="the base's tokenizer is not on this machine, or not usable")
    found = {name: one.lengths for name, one in summary.splits.items() if one.lengths is not None}
    return SweepLengths(splits=found)
