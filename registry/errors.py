"""What can go wrong in the adapter registry.

RegistryError
├── RefError (ValueError)          an adapter reference cannot be read
├── AdapterNotFoundError (LookupError)  no such adapter, version or alias
├── IntegrityError (RuntimeError)  files differ from what was registered
├── NotComparableError (ValueError)  two evaluations were measured in different ways
├── ConflictError (RuntimeError)   another process moved an alias at the same time
├── RetiredError (ValueError)      a version that is out of use, or one that cannot be taken out
├── RuleError (ValueError)         a rule of promotion that makes no sense
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
    """Two evaluations were not measured on the same rows in the same way."""


class ConflictError(RegistryError, RuntimeError):
    """Another process moved an alias at the same time."""


class RetiredError(RegistryError, ValueError):
    """A version is out of use, or cannot be taken out of use."""


class RuleError(RegistryError, ValueError):
    """A rule of promotion makes no sense."""


class TrackingError(RegistryError, RuntimeError):
    """The tracking server cannot be used."""
