"""Lengths that MLflow 3.17 allows; MLflow's client splits long batches by itself."""

from __future__ import annotations

MAX_PARAM_CHARS = 6000
"""mlflow/utils/validation.py"""

MAX_TAG_CHARS = 8000
"""mlflow/utils/validation.py"""

MAX_DESCRIPTION_CHARS = 5000
"""mlflow/store/model_registry/dbmodels/models.py"""


def shortened(text: str, max_chars: int) -> str:
    """The text, cut to `max_chars` with a mark when it is longer."""
    return text if len(text) <= max_chars else text[: max_chars - 1] + "…"
