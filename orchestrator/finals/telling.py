"""How work that takes minutes tells which of its pieces it does."""

from __future__ import annotations

from typing import Protocol


class Tell(Protocol):
    """Shows the present piece of work, with the pieces done and all pieces, if they are known."""

    def __call__(self, text: str, done: int = 0, total: int = 0) -> None:
        """Show it."""


def tell_nobody(text: str, done: int = 0, total: int = 0) -> None:
    """Show nothing."""
