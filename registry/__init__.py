"""The registry: adapter versions and the runs of sweeps, kept in MLflow.

    from registry import Registry
    adapters = Registry("http://mlflow:5000")

Names are imported on first use: errors and references work without MLflow, whose import takes 2 to
3 seconds.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from registry.client import Registry
    from registry.comparison import Comparison
    from registry.connection import tracking_uri_for
    from registry.errors import (
        AdapterNotFoundError,
        ConflictError,
        IntegrityError,
        RefError,
        RegistryError,
        TrackingError,
    )
    from registry.evaluation import Evaluation
    from registry.ledger import AliasMove
    from registry.promotion import PromotionDecision, PromotionRule
    from registry.refs import AdapterRef
    from registry.tracking import Tracker
    from registry.versions import AdapterVersion

__all__ = [
    "AdapterNotFoundError",
    "AdapterRef",
    "AdapterVersion",
    "AliasMove",
    "Comparison",
    "ConflictError",
    "Evaluation",
    "IntegrityError",
    "PromotionDecision",
    "PromotionRule",
    "RefError",
    "Registry",
    "RegistryError",
    "Tracker",
    "TrackingError",
    "tracking_uri_for",
]

_HOMES = {
    "registry.versions": ("AdapterVersion",),
    "registry.client": ("Registry",),
    "registry.comparison": ("Comparison",),
    "registry.connection": ("tracking_uri_for",),
    "registry.errors": (
        "AdapterNotFoundError",
        "ConflictError",
        "IntegrityError",
        "RefError",
        "RegistryError",
        "TrackingError",
    ),
    "registry.ledger": ("AliasMove",),
    "registry.evaluation": ("Evaluation",),
    "registry.promotion": (
        "PromotionDecision",
        "PromotionRule",
    ),
    "registry.refs": ("AdapterRef",),
    "registry.tracking": ("Tracker",),
}


def __getattr__(name: str) -> object:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(home), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
