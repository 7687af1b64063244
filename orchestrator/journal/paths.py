"""Names of files and folders in a sweep's storage, a local folder or a bucket prefix."""

from __future__ import annotations

EVENTS_FILE = "events.jsonl"
LOG_FILE = "lorchestra.log"
SWEEP_FILE = "sweep.yaml"
"""The present spec as a sweep file, for readers; nothing reads it again."""
CURSOR_FILE = "delivered.json"
REPORT_FOLDER = "report"
PAGE_FILE = "report.html"
REQUESTS_FOLDER = "requests"
DATA_FOLDER = "data"
TRIALS_FOLDER = "trials"
TUNE_FOLDER, HOSTS_FOLDER = "tune", "hosts"
"""Files of Ray Tune and Ray Train, which exist while a driver runs; nothing reads them again."""


def trial_folder(trial: int) -> str:
    """Folder of a trial's files."""
    return f"{TRIALS_FOLDER}/t{trial:04d}"


def state_folder(trial: int) -> str:
    """Folder of a trial's saved states."""
    return f"{trial_folder(trial)}/state"


def bundle_folder(trial: int) -> str:
    """Folder of a trial's exported adapter; the log records this name."""
    return f"{trial_folder(trial)}/bundle"


def evaluation_file(trial: int, form: str) -> str:
    """File with the evaluation of a trial's adapter in a serving form."""
    return f"{trial_folder(trial)}/scores/{form}.json"
