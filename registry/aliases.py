"""Say which version of an adapter is which: aliases, their way back, and versions out of use."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime

from mlflow import MlflowClient

from registry.connection import plain_errors
from registry.errors import AdapterNotFoundError, RefError, RetiredError
from registry.ledger import AliasMove
from registry.moves import current_user, move, settle
from registry.refs import AdapterRef, require_alias, require_name
from registry.versions import RETIRED_TAG, AdapterVersion, get_version, list_versions

CHAMPION = "champion"
"""The version that is in use."""

CHALLENGER = "challenger"
"""The version that was last found not to be better than the champion."""


def move_alias(
    client: MlflowClient,
    ref: AdapterRef | str,
    alias: str,
    *,
    why: str,
    expected: int | None = None,
) -> AliasMove | None:
    """Point an alias at a version, away from any other version of that adapter.

    Args:
        client: Of the server.
        ref: The version.
        alias: Which.
        why: For the ledger.
        expected: Number of the latest move of this alias that the decision was made on, 0 when
            there was none; left out, whatever was there is overwritten.

    Returns:
        The move; `None` when the alias stands there already.

    Raises:
        AdapterNotFoundError: There is no such version.
        ConflictError: The alias was moved since `expected`.
        RefError: The reference or the alias cannot be read, or it is of an earlier step.
        RetiredError: The version was retired.
        TrackingError: The server cannot be used.
    """
    require_alias(alias)
    version = get_whole(client, ref)
    require_in_use(version)
    with plain_errors(client.tracking_uri):
        return move(client, version.name, alias, version.version, why, expected=expected)


def set_alias(
    client: MlflowClient, ref: AdapterRef | str, alias: str, *, why: str = ""
) -> AdapterVersion:
    """Point an alias at a version, away from any other version of that adapter.

    Raises:
        AdapterNotFoundError: There is no such version.
        RefError: The reference or the alias cannot be read.
        RetiredError: The version was retired.
        TrackingError: The server cannot be used.
    """
    version = get_whole(client, ref)
    move_alias(client, version.ref, alias, why=why)
    return get_version(client, version.ref)


def drop_alias(client: MlflowClient, name: str, alias: str, *, why: str = "") -> None:
    """Take an alias away from an adapter; nothing happens when it has none of that name.

    Raises:
        RefError: The name or the alias cannot be read.
        TrackingError: The server cannot be used.
    """
    require_name(name)
    require_alias(alias)
    with plain_errors(client.tracking_uri):
        move(client, name, alias, None, why)


def rollback(
    client: MlflowClient, name: str, *, alias: str = CHAMPION, why: str = ""
) -> AliasMove:
    """Point an alias back at the version that held it before.

    Done again it goes back further, and not to and fro. Versions that were retired or deleted
    since are passed over.

    Raises:
        AdapterNotFoundError: No earlier version is left to go back to.
        ConflictError: The alias was moved by another process meanwhile.
        RefError: The name or the alias cannot be read.
        TrackingError: The server cannot be used.
    """
    require_alias(alias)
    versions = list_versions(client, name)
    usable = {version.version for version in versions if not version.retired}
    with plain_errors(client.tracking_uri):
        found = None
        if versions:
            ledger = settle(client, name)
            now = ledger.aliases.get(alias)
            earlier = _held_before([one for one in ledger.moves if one.alias == alias])
            found = next((one for one in earlier if one in usable and one != now), None)
        if found is None:
            raise AdapterNotFoundError(
                f"adapter {name}: alias {alias!r} has no earlier version to go back to; allowed: "
                "one that held it and was neither retired nor deleted. Point it at a version "
                "yourself: set_alias."
            )
        expected = ledger.last_number(alias)
        made = move(client, name, alias, found, why, expected=expected, is_rollback=True)
    assert made is not None  # it stood elsewhere at the `expected` move
    return made


def retire(client: MlflowClient, ref: AdapterRef | str, reason: str) -> AdapterVersion:
    """Take a version out of use: it keeps its files and can have no alias any more.

    Raises:
        AdapterNotFoundError: There is no such version.
        RetiredError: It is the champion, or no reason is given.
        TrackingError: The server cannot be used.
    """
    version = get_whole(client, ref)
    if not reason.strip():
        raise RetiredError(
            f"adapter {version.ref}: got no reason to retire it; allowed: a few words. Say why."
        )
    _require_no_champion(version)
    record = {"at": _now(), "who": current_user(), "reason": reason.strip()}
    with plain_errors(client.tracking_uri):
        number = str(version.version)
        client.set_model_version_tag(version.name, number, RETIRED_TAG, json.dumps(record))
        settle(client, version.name)  # nobody begins to move an alias to it any more
        retired = get_version(client, version.ref)
        if CHAMPION in retired.aliases:  # promoted meanwhile
            client.delete_model_version_tag(version.name, number, RETIRED_TAG)
            _require_no_champion(retired)
        for alias in retired.aliases:
            move(client, version.name, alias, None, f"{version.ref} was retired: {reason}")
    return get_version(client, version.ref)


def unretire(client: MlflowClient, ref: AdapterRef | str) -> AdapterVersion:
    """Bring a retired version back into use; its aliases stay where they went.

    Raises:
        AdapterNotFoundError: There is no such version.
        TrackingError: The server cannot be used.
    """
    version = get_whole(client, ref)
    with plain_errors(client.tracking_uri):
        if version.retired:
            client.delete_model_version_tag(version.name, str(version.version), RETIRED_TAG)
    return get_version(client, version.ref)


def get_whole(client: MlflowClient, ref: AdapterRef | str) -> AdapterVersion:
    """The version that a reference points at, as a whole.

    Raises:
        AdapterNotFoundError: There is no such version.
        RefError: The reference cannot be read, or is of an earlier step.
        TrackingError: The server cannot be used.
    """
    ref = AdapterRef.parse(ref)
    if ref.step is not None:
        raise RefError(
            f"adapter reference: got {ref}; allowed: a whole version, as aliases and states are "
            f"of versions and not of their steps. Write {ref.name}/{ref.version}."
        )
    return get_version(client, ref)


def require_in_use(version: AdapterVersion) -> None:
    """Refuse a version that was retired.

    Raises:
        RetiredError: It was.
    """
    if version.retired:
        raise RetiredError(
            f"adapter {version.ref}: it was retired ({version.retired}); allowed: versions in "
            "use. Choose another, or bring it back: unretire."
        )


def _require_no_champion(version: AdapterVersion) -> None:
    if CHAMPION in version.aliases:
        raise RetiredError(
            f"adapter {version.ref}: it is the champion; allowed: other versions. Promote another "
            "or roll back first, then retire it."
        )


def _held_before(moves: Sequence[AliasMove]) -> list[int]:
    """Versions that an alias pointed at before, the latest first.

    Going back to a version takes back all that came after it.
    """
    held: list[int] = []
    for one in moves:
        if one.is_rollback and one.target in held:
            while held[-1] != one.target:
                held.pop()
        elif one.target is not None:
            held.append(one.target)
    return held[::-1]


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
