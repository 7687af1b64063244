"""What is kept and trusted: sweeps' runs, registered adapters, and the folders they come from.

Names are imported on first use, so that errors and references can be had without MLflow, which
takes 2 to 3 seconds to import.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from registry.adapters import AdapterVersion, get, list_adapters
    from registry.aliases import retire, rollback, set_alias, unretire
    from registry.comparison import Comparison, compare
    from registry.errors import (
        AdapterNotFoundError,
        ConflictError,
        IntegrityError,
        RefError,
        RegistryError,
        TrackingError,
    )
    from registry.evaluations import list_evaluations, record_evaluation
    from registry.ledger import AliasMove, history
    from registry.loading import load, pull
    from registry.measures import Evaluation
    from registry.promotion import PromotionDecision, PromotionRule, promote
    from registry.refs import AdapterRef
    from registry.registration import register
    from registry.tracking import Tracker, tracking_uri_for
    from registry.warmstart import best_specs

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
    "RegistryError",
    "Tracker",
    "TrackingError",
    "best_specs",
    "compare",
    "get",
    "history",
    "list_adapters",
    "list_evaluations",
    "load",
    "promote",
    "pull",
    "record_evaluation",
    "register",
    "retire",
    "rollback",
    "set_alias",
    "tracking_uri_for",
    "unretire",
]

_HOMES = {
    "registry.adapters": ("AdapterVersion", "get", "list_adapters"),
    "registry.aliases": ("retire", "rollback", "set_alias", "unretire"),
    "registry.comparison": ("Comparison", "compare"),
    "registry.errors": (
        "AdapterNotFoundError",
        "ConflictError",
        "IntegrityError",
        "RefError",
        "RegistryError",
        "TrackingError",
    ),
    "registry.evaluations": ("list_evaluations", "record_evaluation"),
    "registry.ledger": ("AliasMove", "history"),
    "registry.loading": ("load", "pull"),
    "registry.measures": ("Evaluation",),
    "registry.promotion": ("PromotionDecision", "PromotionRule", "promote"),
    "registry.refs": ("AdapterRef",),
    "registry.registration": ("register",),
    "registry.tracking": ("Tracker", "tracking_uri_for"),
    "registry.warmstart": ("best_specs",),
}


def __getattr__(name: str) -> object:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(home), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
