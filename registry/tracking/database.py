"""A SQLite file of MLflow, made fit for use: its schema, its creation, its artifact addresses.

MLflow records artifact addresses as absolute paths. Here artifacts lie beside their database:
after a runs folder was moved or copied, the place of the database gives the new addresses.
"""

from __future__ import annotations

import fcntl
import functools
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

import mlflow.store.db_migrations
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

from registry.errors import TrackingError

SQLITE = "sqlite:///"
ARTIFACTS_FOLDER = "mlartifacts"

_WAIT_S = 30.0
"""Longest wait for another process that writes to the database."""

_ADDRESSES = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)
"""Columns of MLflow's tables with addresses of artifacts."""


def sqlite_file(tracking_uri: str) -> Path | None:
    """The file of a SQLite database; `None` for an address of another kind."""
    if not tracking_uri.startswith(SQLITE):
        return None
    return Path(tracking_uri.removeprefix(SQLITE)).absolute()


@contextmanager
def fit_for_use(database: Path) -> Iterator[None]:
    """Allow the block to open a database; a process that creates the file keeps others waiting.

    Addresses of artifacts follow a database that was moved or copied with its `mlartifacts`.

    Raises:
        TrackingError: The database is broken, or another version of MLflow wrote it.
    """
    database.parent.mkdir(parents=True, exist_ok=True)
    if _is_ready(database):
        _follow_move(database)
        yield
        return
    with _only_one(database.parent):
        if not database.exists() or database.stat().st_size == 0:
            _create(database)
        _require_usable(database)
        _follow_move(database)
        yield


def _create(database: Path) -> None:
    """Create MLflow's tables in another file, which gets the database's name when whole.

    A process that is killed on the way leaves no half-made database under the name.
    """
    making = f".{database.name}-new"
    for left in database.parent.glob(f"{making}*"):
        left.unlink(missing_ok=True)
    new = database.with_name(f"{making}-{os.getpid()}")
    artifacts = (database.resolve().parent / ARTIFACTS_FOLDER).as_uri()
    SqlAlchemyStore(f"{SQLITE}{new}", artifacts).engine.dispose()
    try:
        os.link(new, database)
    except FileExistsError:  # empty, or made by another process where files cannot be locked
        if database.stat().st_size == 0:
            new.replace(database)
    new.unlink(missing_ok=True)


def _require_usable(database: Path) -> None:
    """Raise `TrackingError` unless MLflow can use or create the database file."""
    if _is_ready(database):
        return
    tables, revision = _read(database)
    if not tables:
        return
    address = f"{SQLITE}{database}"
    if revision is not None and not _is_known(revision):
        raise TrackingError(
            f"{database}: a newer MLflow wrote it (its schema is {revision}, this MLflow "
            f"{mlflow.__version__} has {_newest_revision()}); allowed: a database of this "
            "MLflow. Install the newer MLflow (pip install -U mlflow), or name another database "
            "in MLFLOW_TRACKING_URI."
        )
    if tables & {"experiments", "alembic_version"} and not _has_runs(database, tables):
        raise TrackingError(
            f"{database}: its creation was interrupted, and it holds no run; allowed: a whole "
            f"database of MLflow. Delete it and run the same command again."
        )
    if "experiments" not in tables:
        raise TrackingError(
            f"{database}: its tables are not those of MLflow; allowed: a database of MLflow. "
            f"Move it away, or name another one in MLFLOW_TRACKING_URI."
        )
    raise TrackingError(
        f"{database}: an older MLflow wrote it (its schema is {revision or 'unnumbered'}, this "
        f"MLflow {mlflow.__version__} needs {_newest_revision()}); allowed: a database of this "
        f"MLflow. Keep a copy, then run: mlflow db upgrade {address}"
    )


def _has_runs(database: Path, tables: frozenset[str]) -> bool:
    if "runs" not in tables:
        return False
    with closing(_open(database, "ro")) as connection:
        return connection.execute("SELECT 1 FROM runs LIMIT 1").fetchone() is not None


def _is_ready(database: Path) -> bool:
    return _read(database)[1] == _newest_revision()


def _read(database: Path) -> tuple[frozenset[str], str | None]:
    """Names of the tables, and MLflow's number of their schema.

    Raises:
        TrackingError: The file cannot be read as a database.
    """
    if not database.exists() or database.stat().st_size == 0:
        return frozenset(), None
    # A process that was killed in a transaction leaves a journal, which only a writer rolls back.
    mode = "rw" if Path(f"{database}-journal").exists() else "ro"
    try:
        with closing(_open(database, mode)) as connection:
            names = "SELECT name FROM sqlite_master WHERE type = 'table'"
            tables = frozenset(row[0] for row in connection.execute(names))
            if "alembic_version" not in tables:
                return tables, None
            row = connection.execute("SELECT version_num FROM alembic_version").fetchone()
            return tables, None if row is None else str(row[0])
    except sqlite3.Error as error:
        raise TrackingError(
            f"{database}: it cannot be read ({error}); allowed: a whole SQLite database of "
            "MLflow. Restore it from a copy, or move it away to begin a new one."
        ) from error


def _open(database: Path, mode: str) -> sqlite3.Connection:
    uri = f"file:{quote(str(database))}?mode={mode}"
    return sqlite3.connect(uri, uri=True, timeout=_WAIT_S)


@functools.cache
def _migrations() -> ScriptDirectory:
    return ScriptDirectory(str(Path(mlflow.store.db_migrations.__path__[0])))


@functools.cache
def _newest_revision() -> str | None:
    return _migrations().get_current_head()


def _is_known(revision: str) -> bool:
    try:
        return _migrations().get_revision(revision) is not None
    except CommandError:
        return False


@contextmanager
def _only_one(folder: Path) -> Iterator[None]:
    """Run the block in one process at a time; the operating system frees a dead process's lock."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


# ------------------------------------------------------------------------- a folder that moved


def _follow_move(database: Path) -> None:
    """Rewrite addresses below the earlier place of `mlartifacts` to the place of the database.

    Raises:
        TrackingError: The database cannot be written.
    """
    if "experiments" not in _read(database)[0]:
        return
    here = database.resolve().parent / ARTIFACTS_FOLDER
    with closing(_open(database, "ro")) as connection:
        found = connection.execute("SELECT DISTINCT artifact_location FROM experiments")
        parts = [urlsplit(address or "") for (address,) in found]
    local = [part for part in parts if part.scheme == "file" and not part.netloc]
    places = [Path(unquote(part.path)) for part in local]
    earlier = [
        place
        for place in places
        # An address that MLflow itself chose ends with the number of the experiment.
        if place.name == ARTIFACTS_FOLDER
        and place != here
        and (here.exists() or not place.exists())
    ]
    if not earlier:
        return
    try:
        with closing(_open(database, "rw")) as connection, connection:
            connection.execute("BEGIN IMMEDIATE")
            for place in earlier:
                _replace(connection, place.as_uri(), here.as_uri())
                _replace(connection, str(place), str(here))
    except sqlite3.Error as error:
        raise TrackingError(
            f"{database}: it was moved here from {earlier[0].parent}, and the new place cannot be "
            f"written into it ({error}); allowed: a database that this user can write. Correct "
            "its permissions, or move it back."
        ) from error


def _replace(connection: sqlite3.Connection, old: str, new: str) -> None:
    for table, column in _ADDRESSES:
        columns = {row[1] for row in connection.execute(f"PRAGMA table_info({table})")}
        if column in columns:
            connection.execute(
                f"UPDATE {table} SET {column} = :new || substr({column}, length(:old) + 1) "
                f"WHERE {column} = :old OR substr({column}, 1, length(:old) + 1) = :old || '/'",
                {"old": old, "new": new},
            )
