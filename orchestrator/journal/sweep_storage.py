"""The storage of a sweep: a local folder, or a bucket prefix, `s3://bucket/prefix`.

The driver reads and writes local files. For a sweep in a bucket, these files are a mirror in the
cache folder: the bucket is authoritative, and the mirror can be lost. Hosts and proxies access the
bucket directly.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from orchestrator.errors import SweepInUseError, SweepStorageError
from orchestrator.journal.history import SweepHistory
from orchestrator.journal.lease import Lease
from orchestrator.journal.log import EventLog, LogTail, decode_events
from orchestrator.journal.paths import (
    CURSOR_FILE,
    EVENTS_FILE,
    REPORT_FOLDER,
    TRIALS_FOLDER,
    bundle_folder,
    state_folder,
)
from orchestrator.journal.replica import LogReplica, read_remote_log
from orchestrator.wording import refusal
from trainables.base.origin import cache_folder
from trainables.contract import MANIFEST, file_record, identity_digest
from trainables.errors import DamagedFolderError, StorageError
from trainables.hosts.objects import (
    delete_objects,
    download_file,
    list_objects,
    read_object,
    upload_file,
    write_object,
)
from trainables.hosts.orders import kept_bundle
from trainables.hosts.storage import (
    fetch_folder,
    file_sizes,
    has_folder,
    is_remote,
    join_location,
    path_below,
    remove_folder,
)
from trainables.whole import new_file, remove_tree, replace_file

logger = logging.getLogger(__name__)

_MADE_FROM_LOG = (CURSOR_FILE, REPORT_FOLDER, "trials", "tune", "hosts")


class SweepStorage:
    """The storage of a sweep; `open_log` reserves the storage for this driver.

    Args:
        location: A local folder, or `s3://bucket/prefix`.

    Attributes:
        location: Absolute path or bucket address as text, for hosts and proxies.
        folder: Folder of the driver's files: the storage itself, or the mirror of a bucket.
        is_remote: The storage is in a bucket.

    Raises:
        SweepStorageError: The location is neither.
    """

    def __init__(self, location: str | Path) -> None:
        self.location = locate_storage(location)
        self.is_remote = is_remote(self.location)
        self.folder = Path(self.location)
        if self.is_remote:
            digest = hashlib.sha256(self.location.encode()).hexdigest()[:16]
            self.folder = cache_folder().absolute() / "storage" / digest

    def open_log(self, lease: Lease | None = None) -> EventLog:
        """The log with this process as the only writer; a remote log is copied into the mirror.

        Args:
            lease: Lease of a remote log; `None` makes one with the default times.

        Raises:
            SweepInUseError: Another driver is running the sweep.
            SweepStorageError: The storage cannot be used.
        """
        path = self.folder / EVENTS_FILE
        if not self.is_remote:
            return EventLog(path)
        known = path.read_bytes() if path.is_file() else b""
        replica = LogReplica(self.location, lease or Lease(self.location))
        try:
            log = EventLog(path, replica)
        except SweepInUseError as error:  # from the mirror's lock; users know only the location
            message = str(error).replace(str(self.folder), self.location)
            raise SweepInUseError(message) from error
        if not path.read_bytes().startswith(known):
            self._forget()
        return log

    def state_location(self, trial: int) -> str:
        """Location of a trial's saved states."""
        return join_location(self.location, state_folder(trial))

    def bundle_location(self, trial: int) -> str:
        """Location of a trial's exported adapter."""
        return join_location(self.location, bundle_folder(trial))

    def has_bundle(self, trial: int, *, downloads: bool = False) -> bool:
        """Whether a trial has exported its adapter, and no file of it has changed since.

        Args:
            trial: Number of the trial.
            downloads: Whether a bundle in a bucket is downloaded, to compare contents; otherwise
                sizes are compared there.

        Raises:
            SweepStorageError: The bucket cannot be read.
        """
        location = self.bundle_location(trial)
        with _sweep_errors():
            if not has_folder(location):
                return False
            if not self.is_remote:
                problem = _damage_of(Path(location))
            elif downloads:
                problem = _damage_after_download(location)
            else:
                problem = ""
        if problem:
            logger.warning("%s: %s: the adapter is exported again", location, problem)
        return not problem

    def remove_bundle(self, trial: int) -> None:
        """Remove the adapter of a trial that continues.

        Raises:
            SweepStorageError: The storage cannot be written.
        """
        with _sweep_errors():
            remove_folder(self.bundle_location(trial))

    def fetch_bundle(self, trial: int) -> Path:
        """The local folder of a trial's adapter; copied into the mirror for a remote sweep.

        Raises:
            SweepStorageError: The adapter is missing, or the bucket cannot be read.
        """
        return self._fetch(self.bundle_location(trial))

    def fetch_kept(self, trial: int, steps: Iterable[int]) -> dict[int, Path]:
        """Local folders of adapters kept at earlier steps of a trial.

        Raises:
            SweepStorageError: The bucket cannot be read.
        """
        places = {step: kept_bundle(self.bundle_location(trial), step) for step in steps}
        with _sweep_errors():
            there = {step: place for step, place in places.items() if has_folder(place)}
        return {step: self._fetch(place) for step, place in there.items()}

    def _fetch(self, location: str) -> Path:
        found = self._download(location) if self.is_remote else Path(location)
        if found is None or not found.is_dir():
            raise SweepStorageError(
                f"{location}: no such bundle; allowed: the bundle of a trial that exported one. "
                "Run the sweep again: finalists then export their bundles again."
            )
        return found

    def push(self, name: str) -> None:
        """Copy a file or folder of the mirror, file by file, to the bucket.

        Raises:
            SweepStorageError: The bucket cannot be written.
        """
        if not self.is_remote:
            return
        root = self.folder / name
        files = sorted(root.rglob("*")) if root.is_dir() else [root]
        with _sweep_errors():
            for file in files:
                if file.is_file() and not file.name.startswith("."):
                    upload_file(file, self._address(file.relative_to(self.folder).as_posix()))

    def pull(self, name: str) -> None:
        """Copy a file or folder, if it exists, from the bucket into the mirror.

        Raises:
            SweepStorageError: The bucket cannot be read.
        """
        if not self.is_remote:
            return
        with _sweep_errors():
            content = read_object(self._address(name))
            if content is not None:
                self._write(name, content)
            for below in list_objects(self._address(name)):
                self._download_file(f"{name}/{below}")

    def send(self, name: str, content: bytes) -> None:
        """Write a small file for the driver to `collect`, on any machine.

        Raises:
            SweepStorageError: The storage cannot be written.
        """
        if not self.is_remote:
            self._write(name, content)
            return
        with _sweep_errors():
            write_object(self._address(name), content)

    def collect(self, name: str) -> None:
        """Move sent files below a name from the bucket into the driver's folder.

        Raises:
            SweepStorageError: The bucket cannot be read.
        """
        if not self.is_remote:
            return
        with _sweep_errors():
            names = list_objects(self._address(name))
            for below in names:
                self._download_file(f"{name}/{below}")
            delete_objects(self._address(name), names)

    def _download(self, location: str) -> Path | None:
        """Copy a folder into the mirror, in place of an earlier copy; `None` if missing."""
        target = self.folder / location.removeprefix(f"{self.location}/")
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".fetching-", dir=target.parent) as temporary:
            with _sweep_errors():
                found = fetch_folder(location, Path(temporary) / target.name)
            if found is None:
                return None
            remove_tree(target)
            found.rename(target)
        return target

    def _download_file(self, name: str) -> None:
        target = path_below(self.folder, name)
        target.parent.mkdir(parents=True, exist_ok=True)
        with new_file(target) as writing:
            download_file(self._address(name), writing)

    def _write(self, name: str, content: bytes) -> None:
        target = self.folder / name
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            replace_file(target, content)
        except OSError as error:
            raise SweepStorageError(
                f"{target}: cannot be written ({error}); allowed: a writable storage folder. "
                "Choose another folder or correct its permissions."
            ) from error

    def _address(self, name: str) -> str:
        return f"{self.location}/{name}"

    def _forget(self) -> None:
        """Clear the mirror if the bucket has another sweep now."""
        for name in _MADE_FROM_LOG:
            path = self.folder / name
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)


def _damage_of(bundle: Path) -> str:
    """The first difference between a bundle and its manifest; empty for a sound bundle."""
    try:
        manifest = json.loads((bundle / MANIFEST).read_text())
        if manifest.get("digest", identity_digest(manifest)) != identity_digest(manifest):
            return f"{MANIFEST} differs from its digest"
        for name, record in manifest.get("files", {}).items():
            if file_record(bundle / name) != record:
                return f"{name} differs from {MANIFEST}"
    except (OSError, ValueError, TypeError, AttributeError) as error:
        return f"it cannot be read ({error})"
    return ""


def _damage_after_download(location: str) -> str:
    """The first difference between a bundle in a bucket and what was uploaded; empty if none."""
    with tempfile.TemporaryDirectory(prefix="lorchestra-") as temporary:
        try:
            bundle = fetch_folder(location, Path(temporary))
        except DamagedFolderError as error:
            return str(error)
        return "it is gone" if bundle is None else _damage_of(bundle)


def locate_storage(location: str | Path) -> str:
    """The storage location as text: an absolute path, or an address without a final `/`.

    Raises:
        SweepStorageError: The location is neither a path nor an `s3://` address.
    """
    text = str(location)
    if isinstance(location, str) and "://" in text:
        address = text.rstrip("/")
        if not is_remote(text) or address == "s3:":
            allowed = "a local folder or s3://bucket/prefix"
            raise SweepStorageError(refusal("storage", text, allowed, "Choose one of these."))
        return address
    return str(Path(location).absolute())


def require_cache() -> None:
    """Refuse a folder for quantized bases that cannot be written: each host would fail.

    Raises:
        SweepStorageError: It cannot be made or written.
    """
    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise SweepStorageError(
            f"LORCHESTRA_CACHE: {folder} cannot be written ({error.strerror}); allowed: a "
            "writable folder for quantized bases. Name another one, or correct its permissions."
        ) from error


class GrowingHistory:
    """The history of a sweep that a driver may write meanwhile, read on any machine.

    Args:
        location: The sweep's storage.

    Attributes:
        history: The history as of the last call of `read_on`; the next call changes this object,
            or replaces it where the log was replaced or lies in a bucket.
    """

    def __init__(self, location: str | Path) -> None:
        self._address = locate_storage(location)
        is_local = not is_remote(self._address)
        self._tail = LogTail(Path(self._address) / EVENTS_FILE) if is_local else None
        self._content = b""
        self.history = SweepHistory()

    def read_on(self) -> bool:
        """Read what was written since the last call; gives whether there was anything.

        Only new lines of a local log are read; the log of a bucket is read whole.

        Raises:
            SweepStorageError: The log is damaged, or missing beside trials of a sweep, or cannot
                be read.
        """
        if self._tail is not None:
            entries = self._tail.read_on()
            if self._tail.is_anew:
                self.history = SweepHistory()
            is_changed = bool(entries) or self._tail.is_anew
        else:
            with _sweep_errors():
                content = read_remote_log(self._address)
            is_changed, self._content = content != self._content, content
            if is_changed:
                self.history = SweepHistory()
            entries = list(decode_events(content, self._address)) if is_changed else []
        for entry in entries:
            self.history.apply(entry)
        if self.history.sweep_id is None:
            _require_no_trials(self._address, self.history)
        return is_changed


def read_history(location: str | Path) -> SweepHistory:
    """The history from a sweep's log, read on any machine; a driver may write meanwhile.

    Raises:
        SweepStorageError: The log is damaged, or missing beside trials of a sweep, or cannot be
            read.
    """
    growing = GrowingHistory(location)
    growing.read_on()
    return growing.history


def _require_no_trials(location: str, history: SweepHistory) -> None:
    """Refuse trials without their sweep's start: a new sweep would continue from their states.

    Raises:
        SweepStorageError: There are trials.
    """
    with _sweep_errors():
        found = {name.split("/")[0] for name in file_sizes(f"{location}/{TRIALS_FOLDER}")}
    names = sorted(found | {f"t{number:04d}" for number in history.trials})
    if names:
        raise SweepStorageError(
            f"{location}: holds {len(names)} trials ({names[0]}, …) but no sweep in "
            f"{EVENTS_FILE}; allowed: the storage of a sweep, or an empty place. Restore "
            f"{EVENTS_FILE} from a copy, choose another --storage or another name, or remove "
            f"{TRIALS_FOLDER}/ to start anew."
        )


@contextmanager
def _sweep_errors() -> Iterator[None]:
    try:
        yield
    except StorageError as error:
        raise SweepStorageError(str(error)) from error
