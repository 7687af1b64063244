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
    from registry.errors import (
        AdapterNotFoundError,
        ConflictError,
        IntegrityError,
        RefError,
        RegistryError,
        TrackingError,
    )
    from registry.evaluations.comparison import Comparison
    from registry.evaluations.evaluation import Evaluation
    from registry.evaluations.gate import PromotionDecision, PromotionRule
    from registry.tracking.connection import tracking_uri_for
    from registry.tracking.tracker import Tracker
    from registry.versions.entries import AliasMove
    from registry.versions.refs import AdapterRef
    from registry.versions.versions import AdapterVersion

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
    "registry.client": ("Registry",),
    "registry.errors": (
        "AdapterNotFoundError",
        "ConflictError",
        "IntegrityError",
        "RefError",
        "RegistryError",
        "TrackingError",
    ),
    "registry.evaluations.comparison": ("Comparison",),
    "registry.evaluations.evaluation": ("Evaluation",),
    "registry.evaluations.gate": ("PromotionDecision", "PromotionRule"),
    "registry.tracking.connection": ("tracking_uri_for",),
    "registry.tracking.tracker": ("Tracker",),
    "registry.versions.entries": ("AliasMove",),
    "registry.versions.refs": ("AdapterRef",),
    "registry.versions.versions": ("AdapterVersion",),
}


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> object:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(home), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
