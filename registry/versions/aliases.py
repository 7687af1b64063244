"""Aliases of adapter versions: set, drop, roll back; and versions that are retired."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime

from mlflow import MlflowClient

from registry.errors import AdapterNotFoundError, RefError, RetiredError
from registry.tracking.connection import plain_errors
from registry.versions.entries import AliasMove
from registry.versions.moves import current_user, move, settle
from registry.versions.refs import AdapterRef, require_alias, require_name
from registry.versions.versions import RETIRED_TAG, AdapterVersion, get_version, list_versions

CHAMPION = "champion"
"""Alias of the version in use."""

CHALLENGER = "challenger"
"""Alias of the latest candidate that did not beat the champion."""


def move_alias(
    client: MlflowClient,
    ref: AdapterRef | str,
    alias: str,
    *,
    why: str,
    expected: int | None = None,
) -> AliasMove | None:
    """Point an alias at a version; no other version of the adapter keeps the alias.

    Args:
        client: Of the server.
        ref: The version.
        alias: Name of the alias.
        why: Reason for the ledger.
        expected: Number of the alias's latest move when the caller decided, 0 for none; `None`
            moves the alias without this check.

    Returns:
        The move; `None` when the alias points at the version already.

    Raises:
        AdapterNotFoundError: There is no such version.
        ConflictError: The alias was moved since `expected`.
        RefError: The reference or the alias cannot be read, or `ref` is an earlier step.
        RetiredError: The version is retired.
        TrackingError: The server cannot be used.
    """
    require_alias(alias)
    version = get_whole(client, ref)
    if version.retired:
        raise RetiredError(
            f"adapter {version.ref}: it was retired ({version.retired}); allowed: versions in "
            "use. Choose another, or bring it back: unretire."
        )
    with plain_errors(client.tracking_uri):
        return move(client, version.name, alias, version.version, why, expected=expected)


def set_alias(
    client: MlflowClient, ref: AdapterRef | str, alias: str, *, why: str = ""
) -> AdapterVersion:
    """Point an alias at a version, and return the version with its new aliases.

    Raises:
        AdapterNotFoundError: There is no such version.
        RefError: The reference or the alias cannot be read.
        RetiredError: The version is retired.
        TrackingError: The server cannot be used.
    """
    version = get_whole(client, ref)
    move_alias(client, version.ref, alias, why=why)
    return get_version(client, version.ref)


def drop_alias(client: MlflowClient, name: str, alias: str, *, why: str = "") -> None:
    """Remove an alias from an adapter; an alias that does not exist is no error.

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
    """Point an alias back at its previous version.

    A second rollback goes back one version further. Versions that were retired or deleted since
    are skipped.

    Raises:
        AdapterNotFoundError: The alias has no previous version in use.
        ConflictError: Another process moved the alias meanwhile.
        RefError: The name or the alias cannot be read.
        TrackingError: The server cannot be used.
    """
    require_alias(alias)
    versions = list_versions(client, name)
    usable = {version.version for version in versions if not version.retired}
    with plain_errors(client.tracking_uri):
        previous = None
        if versions:
            ledger = settle(client, name)
            present = ledger.aliases.get(alias)
            held = _versions_held([one for one in ledger.moves if one.alias == alias])
            candidates = (one for one in reversed(held) if one in usable and one != present)
            previous = next(candidates, None)
        if previous is None:
            raise AdapterNotFoundError(
                f"adapter {name}: alias {alias!r} has no earlier version to go back to; allowed: "
                "a version that held the alias and is neither retired nor deleted. Point the "
                "alias at a version yourself: set_alias."
            )
        expected = ledger.last_number(alias)
        made = move(client, name, alias, previous, why, expected=expected, is_rollback=True)
    assert made is not None  # since the `expected` move, the alias points at another version
    return made


def retire(client: MlflowClient, ref: AdapterRef | str, reason: str) -> AdapterVersion:
    """Take a version out of use: aliases are removed and cannot be set, files stay.

    Raises:
        AdapterNotFoundError: There is no such version.
        RetiredError: The version is the champion, or `reason` is empty.
        TrackingError: The server cannot be used.
    """
    version = get_whole(client, ref)
    if not reason.strip():
        raise RetiredError(
            f"adapter {version.ref}: got no reason to retire it; allowed: a few words. Say why."
        )
    _require_no_champion(version)
    at = datetime.now(UTC).isoformat(timespec="seconds")
    record = {"at": at, "who": current_user(), "reason": reason.strip()}
    with plain_errors(client.tracking_uri):
        number = str(version.version)
        client.set_model_version_tag(version.name, number, RETIRED_TAG, json.dumps(record))
        settle(client, version.name)  # waits for moves that began before the tag was set
        retired = get_version(client, version.ref)
        if CHAMPION in retired.aliases:  # promoted meanwhile
            client.delete_model_version_tag(version.name, number, RETIRED_TAG)
            _require_no_champion(retired)
        for alias in retired.aliases:
            move(client, version.name, alias, None, f"{version.ref} was retired: {reason}")
    return get_version(client, version.ref)


def unretire(client: MlflowClient, ref: AdapterRef | str) -> AdapterVersion:
    """Bring a retired version back into use; its former aliases are not restored.

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
    """The version of a reference, which must not name an earlier step.

    Raises:
        AdapterNotFoundError: There is no such version.
        RefError: The reference cannot be read, or names an earlier step.
        TrackingError: The server cannot be used.
    """
    ref = AdapterRef.parse(ref)
    if ref.step is not None:
        raise RefError(
            f"adapter reference: got {ref}; allowed: a version without a step, as aliases and "
            f"retirement belong to whole versions. Write {ref.name}/{ref.version}."
        )
    return get_version(client, ref)


def _require_no_champion(version: AdapterVersion) -> None:
    if CHAMPION in version.aliases:
        raise RetiredError(
            f"adapter {version.ref}: it is the champion; allowed: other versions. Promote another "
            "or roll back first, then retire it."
        )


def _versions_held(moves: Sequence[AliasMove]) -> list[int]:
    """Former targets of an alias, oldest first, without targets undone by a rollback."""
    held: list[int] = []
    for one in moves:
        if one.is_rollback and one.target in held:
            while held[-1] != one.target:
                held.pop()
        elif one.target is not None:
            held.append(one.target)
    return held
