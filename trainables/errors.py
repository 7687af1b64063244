"""Errors of describing and training adapters.

    TrialError
    ├── SpecError (ValueError)   a value a user wrote cannot work
    │   └── DataError            a data file or one of its rows cannot be used
    ├── BaseModelError (RuntimeError)  a base model cannot be found, quantized or trusted
    ├── BundleError (RuntimeError)     a bundle folder is incomplete, changed or unsafe
    ├── StateError (RuntimeError)      a saved state is damaged or belongs to another trial
    └── StorageError (RuntimeError)    a bucket cannot be read or written
        └── DamagedFolderError         a folder in a bucket is not as it was uploaded

Messages name the dotted field, the value, the allowed values and the remedy. A class takes no
argument but the message, because errors are pickled between processes.
"""


class TrialError(Exception):
    """Base class of this package's own errors."""


class SpecError(TrialError, ValueError):
    """A value in a spec is impossible."""


class DataError(SpecError):
    """A data file or a row of data cannot be used."""


class BaseModelError(TrialError, RuntimeError):
    """A base model cannot be found, quantized or trusted."""


class BundleError(TrialError, RuntimeError):
    """A bundle folder is incomplete, changed or unsafe."""


class StateError(TrialError, RuntimeError):
    """A saved state is damaged, or belongs to another trial or to other inputs."""


class SupersededError(TrialError, RuntimeError):
    """Another seat has taken the trial over; see `trainables.hosts.claims`."""


class StorageError(TrialError, RuntimeError):
    """A bucket cannot be read or written."""


class MissingObjectError(StorageError):
    """There is no object of this name in a bucket, or no longer."""


class DamagedFolderError(StorageError):
    """A folder in a bucket is not as it was uploaded."""
