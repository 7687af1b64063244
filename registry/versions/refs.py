"""References to adapters: `name@champion`, `name/7`, `name/7@step-400`, or `name` (newest)."""

from __future__ import annotations

import re
from dataclasses import dataclass

from registry.errors import RefError

# MLflow refuses `/` and `:`; `@` would make a reference ambiguous; MLflow's filter language cannot
# escape quotes and backslashes.
_NAME = re.compile(r"[^/:@'\"`\\\s\x00-\x1f]([^/:@'\"`\\\x00-\x1f]*[^/:@'\"`\\\s\x00-\x1f])?")
_ALIAS = re.compile(r"[\w-]+", re.ASCII)
_VERSION_AND_STEP = re.compile(r"([0-9]{1,18})(?:@step-([0-9]{1,18}))?")
_LIKE_A_VERSION = re.compile(r"[vV]?\d+")


@dataclass(frozen=True, kw_only=True)
class AdapterRef:
    """A reference to one version of an adapter; without alias and version, to the newest.

    >>> AdapterRef.parse("wordnet-classes@champion").alias
    'champion'
    >>> str(AdapterRef(name="wordnet-classes", version=7, step=400))
    'wordnet-classes/7@step-400'

    Attributes:
        name: Registered model name.
        alias: A movable name of a version, such as `champion`.
        version: A number from 1.
        step: An earlier step of the version's training, with a kept adapter.
    """

    name: str
    alias: str | None = None
    version: int | None = None
    step: int | None = None

    def __post_init__(self) -> None:
        require_name(self.name)
        if self.alias is not None:
            require_alias(self.alias)
        if self.alias is not None and self.version is not None:
            raise RefError(
                f"adapter reference: got alias {self.alias!r} and version {self.version}; "
                "allowed: one of the two. Leave one out."
            )
        if self.version is not None and self.version < 1:
            raise RefError(
                f"adapter version: got {self.version}; allowed: 1 and above. Count from 1."
            )
        if self.step is not None and (self.version is None or self.step < 1):
            raise RefError(
                f"adapter step: got {self.step} of version {self.version}; allowed: a step from 1 "
                "on of a version that is named by its number. Write name/7@step-400."
            )

    @classmethod
    def parse(cls, text: str | AdapterRef) -> AdapterRef:
        """Read `name@alias`, `name/version`, `name/version@step-N` or `name`.

        An `AdapterRef` is returned unchanged.

        Raises:
            RefError: The text has another form.
        """
        if isinstance(text, AdapterRef):
            return text
        name, mark, rest = re.fullmatch(r"([^@/]*)([@/]?)(.*)", text, re.DOTALL).groups()  # type: ignore[union-attr]
        if mark == "@":
            return cls(name=name, alias=rest)
        if mark == "/":
            numbers = _VERSION_AND_STEP.fullmatch(rest)
            if numbers is None:
                raise RefError(
                    f"adapter reference: got {text!r}, where {rest!r} is no version number; "
                    "allowed: name/7, name/7@step-400, name@champion or name. Write an alias "
                    "after @."
                )
            version, step = numbers.groups()
            return cls(name=name, version=int(version), step=None if step is None else int(step))
        return cls(name=name)

    def __str__(self) -> str:
        if self.alias is not None:
            return f"{self.name}@{self.alias}"
        if self.version is None:
            return self.name
        step = "" if self.step is None else f"@step-{self.step}"
        return f"{self.name}/{self.version}{step}"


def require_name(name: str) -> None:
    """Refuse a name that MLflow or a reference cannot express.

    Raises:
        RefError: The name is empty, too long or has a forbidden character.
    """
    if not _NAME.fullmatch(name) or len(name) > 250:
        raise RefError(
            f"adapter name: got {name!r}; allowed: up to 250 characters without / : @ quotes, "
            "backslashes and outer spaces. Choose a name such as support-answers."
        )


def require_alias(alias: str) -> None:
    """Refuse an alias that looks like a version or has characters forbidden by MLflow.

    Raises:
        RefError: The alias is reserved or has a forbidden character.
    """
    if alias.lower() == "latest" or _LIKE_A_VERSION.fullmatch(alias):
        raise RefError(
            f"adapter alias: got {alias!r}, which is reserved; allowed: a name that is neither "
            "'latest' nor a version number. Write name for the newest and name/7 for version 7."
        )
    if not _ALIAS.fullmatch(alias) or len(alias) > 250:
        raise RefError(
            f"adapter alias: got {alias!r}; allowed: up to 250 letters, digits, _ and -. "
            "Choose an alias such as champion."
        )
