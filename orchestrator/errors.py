"""Errors of a sweep.

SweepError
├── SweepSpecError (ValueError)   a sweep file or SweepSpec cannot work
├── SweepStorageError (RuntimeError)  the storage folder holds another sweep or is unusable
│   └── SweepInUseError               another driver runs the sweep in the folder
├── ClusterError (RuntimeError)       Ray cannot be started or joined, or a process of ours died
└── SweepFailedError (RuntimeError)   no trial produced an adapter
"""

from __future__ import annotations

import errno

DISK_IS_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Numbers of the errors for no space, no quota, and a file beyond the limit of `ulimit -f`."""

DISK_IS_GONE = (
    errno.EIO, errno.EROFS, errno.ESTALE, errno.ENODEV, errno.ENXIO, errno.ENOTCONN,
    errno.EHOSTDOWN, errno.EREMOTEIO, errno.ETIMEDOUT, errno.ESHUTDOWN,
)  # fmt: skip
"""Numbers of the errors of a disk that broke, became read-only, or went away with its server."""
_OF_A_BUCKET = "allowed: a bucket on an S3 server that answers"


class SweepError(Exception):
    """Base of all errors that the package raises on purpose."""


class SweepSpecError(SweepError, ValueError):
    """A value in a sweep spec is impossible."""


class SweepStorageError(SweepError, RuntimeError):
    """The storage folder belongs to another sweep, is in use, or cannot be written."""


class SweepInUseError(SweepStorageError):
    """Another driver runs the sweep in this folder."""


class ClusterError(SweepError, RuntimeError):
    """Ray cannot be started or joined, or lost a process that the sweep cannot do without.

    The last kind ends a run of the driver, never a trial: the same command continues the sweep.
    """


class SweepFailedError(SweepError, RuntimeError):
    """A sweep ended without an adapter."""


def full_disk(place: str) -> SweepStorageError:
    """The error for a full disk, with the remedy."""
    return SweepStorageError(
        f"{place}: no space is left; allowed: room for the states and adapters of the trials. "
        "Nothing recorded is lost: free some space (lorchestra prune FOLDER lists what ended "
        "sweeps do not need) and run the same command again."
    )


def storage_fault(what: str, reason: str) -> SweepStorageError | None:
    """The error of the storage that a reason of a failure tells of; `None` for another reason.

    Python writes `[Errno 28]`, safetensors and other libraries in Rust `(os error 28)`, and a
    bucket's errors say what is allowed.

    Args:
        what: What failed, such as `trial 3`.
        reason: The reason, as an exception says it.
    """
    if _names(reason, DISK_IS_FULL):
        return full_disk(f"{what}: {reason}")
    if _names(reason, DISK_IS_GONE) or _OF_A_BUCKET in reason:
        return SweepStorageError(
            f"{what}: the storage cannot be used ({reason}). Nothing recorded is lost: bring the "
            "storage back and run the same command again."
        )
    return None


def _names(reason: str, numbers: tuple[int, ...]) -> bool:
    return any(f"[Errno {one}]" in reason or f"(os error {one})" in reason for one in numbers)
