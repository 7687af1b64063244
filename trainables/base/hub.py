"""Commit that a name of a hub repository stands for today."""

from __future__ import annotations

import logging
import re
from pathlib import Path

from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

logger = logging.getLogger(__name__)

_COMMIT = re.compile(r"[0-9a-f]{40}")


def is_commit(revision: str | None) -> bool:
    """Whether a revision is a commit; a branch or tag may move."""
    return revision is not None and _COMMIT.fullmatch(revision) is not None


def dataset_commit(name: str, revision: str | None) -> str | None:
    """The commit of a dataset; `None` if the hub does not answer.

    Args:
        name: Such as `owner/name`.
        revision: Branch, tag or commit; `None` is the default branch.
    """
    if is_commit(revision):
        return revision
    try:
        found: str | None = HfApi().dataset_info(name, revision=revision).sha
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        logger.warning("the commit of the dataset %s is not known: %s", name, error)
        return None
    return found


def model_commit(name: str, revision: str | None) -> str | None:
    """The commit of a model, offline from the hub's cache; `None` if the commit is unknown.

    Args:
        name: Such as `owner/name`.
        revision: Branch, tag or commit; `None` is the default branch.
    """
    if is_commit(revision):
        return revision
    try:
        config = hf_hub_download(name, "config.json", revision=revision)
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        logger.warning("the commit of the base %s is not known: %s", name, error)
        return None
    # The hub's cache names a snapshot's folder by its commit.
    return Path(config).parent.name
