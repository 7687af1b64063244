"""What is kept and trusted: sweeps' runs, registered adapters, and the folders they come from.

Names are imported on first use, so that errors and references can be had without MLflow, which
takes 2 to 3 seconds to import.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from registry.adapters import AdapterVersion, get, list_adapters, register, set_alias
    from registry.errors import (
        AdapterNotFoundError,
        IntegrityError,
        RefError,
        RegistryError,
        TrackingError,
    )
    from registry.history import best_specs
    from registry.loading import load, pull
    from registry.promotion import PromotionDecision, promote
    from registry.refs import AdapterRef
    from registry.tracking import Tracker, tracking_uri_for

__all__ = [
    "AdapterNotFoundError",
    "AdapterRef",
    "AdapterVersion",
    "IntegrityError",
    "PromotionDecision",
    "RefError",
    "RegistryError",
    "Tracker",
    "TrackingError",
    "best_specs",
    "get",
    "list_adapters",
    "load",
    "promote",
    "pull",
    "register",
    "set_alias",
    "tracking_uri_for",
]

_HOMES = {
    "registry.adapters": ("AdapterVersion", "get", "list_adapters", "register", "set_alias"),
    "registry.errors": (
        "AdapterNotFoundError",
        "IntegrityError",
        "RefError",
        "RegistryError",
        "TrackingError",
    ),
    "registry.history": ("best_specs",),
    "registry.loading": ("load", "pull"),
    "registry.promotion": ("PromotionDecision", "promote"),
    "registry.refs": ("AdapterRef",),
    "registry.tracking": ("Tracker", "tracking_uri_for"),
}


def __getattr__(name: str) -> object:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(home), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
