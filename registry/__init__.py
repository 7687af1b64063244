"""What is kept and trusted: sweeps' runs, registered adapters, and the folders they come from.

Importing any part of this package imports MLflow, which takes 2 to 3 seconds.
"""

from registry.adapters import AdapterVersion, get, list_adapters, register, set_alias
from registry.errors import (
    AdapterNotFoundError,
    IntegrityError,
    RefError,
    RegistryError,
    TrackingError,
)
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
    "get",
    "list_adapters",
    "load",
    "promote",
    "pull",
    "register",
    "set_alias",
    "tracking_uri_for",
]
