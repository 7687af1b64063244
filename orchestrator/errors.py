"""What can go wrong while running a sweep.

SweepError
├── SweepSpecError (ValueError)   a sweep file or SweepSpec cannot work
├── SweepStorageError (RuntimeError)  the storage folder holds another sweep or cannot be used
│   └── SweepInUseError               another driver is running the sweep in it
├── ClusterError (RuntimeError)       Ray cannot be started or joined
└── SweepFailedError (RuntimeError)   no trial came to an adapter
"""


class SweepError(Exception):
    """Base of every error this package raises on purpose."""


class SweepSpecError(SweepError, ValueError):
    """A value in a sweep spec is impossible."""


class SweepStorageError(SweepError, RuntimeError):
    """The storage folder belongs to another sweep, is in use, or cannot be written."""


class SweepInUseError(SweepStorageError):
    """Another driver is running the sweep in this folder."""


class ClusterError(SweepError, RuntimeError):
    """Ray cannot be started here, or the named one cannot be joined."""


class SweepFailedError(SweepError, RuntimeError):
    """A sweep ended without one adapter."""
