"""Lock that keeps a sweep in a bucket to one driver; after a crash, the lock expires.

The lock is an object, `lock.json`, that its owner renews. Another driver may take the lock if it
was not renewed for a minute, or at once if its owner was a process of this machine and is gone.
A driver that finds the lock of another machine waits for a renewal, which refuses it, or for the
end of that minute: a new cluster comes up sooner than the lock of a lost head expires.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import TypeAdapter

from orchestrator.errors import SweepInUseError, SweepStorageError
from orchestrator.interrupts import BackgroundThread
from orchestrator.wording import last_line
from trainables.errors import StorageError
from trainables.hosts.objects import create_object, delete_objects, read_object, write_object

logger = logging.getLogger(__name__)

LOCK_FILE = "lock.json"
_JOIN_S = 5.0

_HELD: set[str] = set()
"""Owners in this process: a lock with this process id and another owner is of a dead process."""


@dataclass(frozen=True, kw_only=True)
class _Holder:
    """Content of a lock.

    Attributes:
        owner: Identity of one opening of the log.
        machine: Host name, boot and process namespace in which `pid` is valid.
        at: Time of the last renewal, in seconds since the epoch.
    """

    owner: str
    host: str
    machine: str
    pid: int
    at: float


_HOLDER = TypeAdapter(_Holder)


class Lease:
    """The right to write a sweep in a bucket, from `take` to `close`; renewed by a thread.

    Args:
        location: Address of the sweep, `s3://bucket/prefix`.
        renew_s: Seconds between renewals.
        expire_s: Age of the last renewal after which another driver may take the lease. The
            clocks of machines that share a sweep must differ by less.
        settle_s: Time to wait before checking that no other driver took the lease at the same
            moment: not every server has conditional writes.
    """

    def __init__(
        self,
        location: str,
        *,
        renew_s: float = 10.0,
        expire_s: float = 60.0,
        settle_s: float = 1.0,
    ) -> None:
        self.owner = uuid.uuid4().hex
        self._location = location
        self._renew_s, self._expire_s, self._settle_s = renew_s, expire_s, settle_s
        self._closing = threading.Event()
        self._thread = BackgroundThread(self._run, "lease")

    def take(self) -> None:
        """Become the owner; waits until the lock of a silent owner expires.

        Raises:
            SweepInUseError: Another driver is the owner and has renewed the lock meanwhile.
            StorageError: The bucket cannot be used.
        """
        _HELD.add(self.owner)
        holder = self._read()
        if holder is None:
            create_object(f"{self._location}/{LOCK_FILE}", self._encode())
        else:
            self._await_expiry(holder)
            write_object(f"{self._location}/{LOCK_FILE}", self._encode())
        time.sleep(self._settle_s)
        holder = self._read()
        if holder is not None and holder.owner != self.owner:
            raise self._in_use(holder)
        self._thread.start()

    def _await_expiry(self, holder: _Holder) -> None:
        """Wait while a lock is live, unless its owner shows that it lives."""
        if self._is_live(holder):
            if holder.machine == _machine():  # whose process was just seen
                raise self._in_use(holder)
            logger.warning("%s Waiting for a sign of life.", self._in_use(holder))
        while self._is_live(holder):
            time.sleep(min(1.0, self._renew_s / 4))
            again = self._read()
            if again is None:
                return
            if again != holder:
                raise self._in_use(again)

    def check(self) -> None:
        """Check that the lease is still owned.

        Raises:
            SweepStorageError: Another driver has taken over.
            StorageError: The bucket cannot be used.
        """
        holder = self._read()
        if holder is None or holder.owner != self.owner:
            whose = "nobody" if holder is None else f"process {holder.pid} on {holder.host}"
            raise SweepStorageError(
                f"{self._location}: was taken over, now held by {whose}; allowed: one driver per "
                f"sweep, with a renewal every {self._expire_s:.0f} s. Leave the sweep to the "
                "other driver, or end that driver and run the same command again."
            )

    def renew(self) -> None:
        """Renew the lease.

        Raises:
            SweepStorageError: Another driver has taken over.
            StorageError: The bucket cannot be used.
        """
        self.check()
        write_object(f"{self._location}/{LOCK_FILE}", self._encode())

    def close(self) -> None:
        """Release the lease; in an unreachable bucket, the lease expires by age."""
        self._closing.set()
        if self._thread.is_alive():
            self._thread.await_end(_JOIN_S)
        if self.owner not in _HELD:
            return
        try:
            holder = self._read()
            if holder is not None and holder.owner == self.owner:
                delete_objects(self._location, [LOCK_FILE])
        except StorageError as error:
            logger.warning("the lock was left behind: %s", error)
        _HELD.discard(self.owner)

    def _run(self) -> None:
        while not self._closing.wait(self._renew_s):
            try:
                self.renew()
            except SweepStorageError as error:
                logger.error("%s", error)
                return  # the next append is refused
            except StorageError as error:
                logger.warning("the lock was not renewed: %s", error)

    def _read(self) -> _Holder | None:
        content = read_object(f"{self._location}/{LOCK_FILE}")
        try:
            return None if content is None else _HOLDER.validate_json(content)
        except ValueError as error:
            raise StorageError(
                f"{self._location}/{LOCK_FILE}: is no lock of a driver "
                f"({last_line(error)}); allowed: the object as lorchestra wrote it. Remove it "
                "if no driver runs the sweep."
            ) from error

    def _encode(self) -> bytes:
        holder = _Holder(
            owner=self.owner,
            host=socket.gethostname(),
            machine=_machine(),
            pid=os.getpid(),
            at=time.time(),
        )
        return json.dumps(asdict(holder)).encode()

    def _is_live(self, holder: _Holder) -> bool:
        if holder.machine == _machine() and not _is_alive(holder):
            return False
        return time.time() - holder.at < self._expire_s

    def _in_use(self, holder: _Holder) -> SweepInUseError:
        age = max(0.0, time.time() - holder.at)
        return SweepInUseError(
            f"{self._location}: in use by process {holder.pid} on {holder.host}, last seen "
            f"{age:.0f} s ago; allowed: one driver per storage location. Wait for its end, end it "
            f"(the lock of a lost driver expires after {self._expire_s:.0f} s), or choose another "
            "location."
        )


def is_held(location: str) -> bool:
    """Whether a driver holds the lease of a sweep in a bucket.

    Raises:
        SweepStorageError: The bucket cannot be read.
    """
    lease = Lease(location)
    try:
        holder = lease._read()
    except StorageError as error:
        raise SweepStorageError(str(error)) from error
    return holder is not None and lease._is_live(holder)


def _machine() -> str:
    """Name of the namespace of process ids: containers of one machine have separate ids."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{socket.gethostname()} {boot} {Path('/proc/self/ns/pid').readlink()}"


def _is_alive(holder: _Holder) -> bool:
    if holder.pid == os.getpid():
        return holder.owner in _HELD
    try:
        os.kill(holder.pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
