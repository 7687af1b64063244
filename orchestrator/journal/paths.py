"""Names of what lies in a sweep's storage, whether that is a folder or a place in a bucket."""

from __future__ import annotations

EVENTS_FILE = "events.jsonl"
LOG_FILE = "lorchestra.log"
CURSOR_FILE = "delivered.json"
REPORT_FOLDER = "report"
REQUESTS_FOLDER = "requests"
DATA_FOLDER = "data"
TRIALS_FOLDER = "trials"


def trial_folder(trial: int) -> str:
    """Folder of a trial's files."""
    return f"{TRIALS_FOLDER}/t{trial:04d}"


def state_folder(trial: int) -> str:
    """Where a trial's states are saved, to go on from."""
    return f"{trial_folder(trial)}/state"


def bundle_folder(trial: int) -> str:
    """Where a trial's adapter is exported to, as the log records it."""
    return f"{trial_folder(trial)}/bundle"


def evaluation_file(trial: int, form: str) -> str:
    """Where the scores of a trial's adapter in a serving form are kept."""
    return f"{trial_folder(trial)}/scores/{form}.json"
