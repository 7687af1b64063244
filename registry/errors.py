"""Errors of the registry.

RegistryError
├── RefError (ValueError)          an adapter reference cannot be read
├── AdapterNotFoundError (LookupError)  no such adapter, version or alias
├── IntegrityError (RuntimeError)  files differ from what was registered
├── NotComparableError (ValueError)  two evaluations were made in different ways
├── ConflictError (RuntimeError)   another process moved an alias at the same time
├── RetiredError (ValueError)      a version is out of use, or cannot be retired
├── RuleError (ValueError)         a value of a promotion rule is not allowed
└── TrackingError (RuntimeError)   the tracking server cannot be used
"""


class RegistryError(Exception):
    """Base of every error this package raises on purpose."""


class RefError(RegistryError, ValueError):
    """An adapter reference cannot be read."""


class AdapterNotFoundError(RegistryError, LookupError):
    """No such adapter, version or alias."""


class IntegrityError(RegistryError, RuntimeError):
    """Files differ from what was registered, or are unsafe to load."""


class NotComparableError(RegistryError, ValueError):
    """Two evaluations were not made on the same rows in the same way."""


class ConflictError(RegistryError, RuntimeError):
    """Another process moved an alias at the same time."""


class RetiredError(RegistryError, ValueError):
    """A version is out of use, or cannot be retired."""


class RuleError(RegistryError, ValueError):
    """A value of a promotion rule is not allowed."""


class TrackingError(RegistryError, RuntimeError):
    """The tracking server cannot be used."""
