"""A sweep in a bucket has one driver: a live driver keeps the lease, a dead driver loses it."""

import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace

import pytest

from orchestrator.errors import SweepInUseError, SweepStorageError
from orchestrator.journal.lease import LOCK_FILE, Lease
from trainables.errors import StorageError
from trainables.hosts.objects import list_objects, read_object, write_object

TAKER = """
import sys, time
from orchestrator.journal.lease import Lease
Lease(sys.argv[1], settle_s=0).take()
print("taken", flush=True)
time.sleep(60)
"""


@pytest.fixture
def open_lease(s3_location):
    """Makes leases at one location; open leases are closed at the end."""
    opened = []

    def make(**kwargs):
        opened.append(Lease(s3_location, **{"settle_s": 0.0, **kwargs}))
        return opened[-1]

    yield make
    for lease in opened:
        lease.close()


def pretend(lease, **changes):
    """Write the lock of this lease as from another machine or an earlier time."""
    holder = replace(lease._read(), **changes)
    encoded = json.dumps(asdict(holder)).encode()
    write_object(f"{lease._location}/{LOCK_FILE}", encoded)


def test_the_second_driver_is_told_who_the_first_is(open_lease, s3_location):
    open_lease().take()
    said = rf"^{s3_location}: in use by process {os.getpid()} on .* allowed: one driver"
    with pytest.raises(SweepInUseError, match=said):
        open_lease().take()


def test_a_closed_lease_is_free_at_once(open_lease, s3_location):
    first = open_lease()
    first.take()
    first.close()
    assert list_objects(s3_location) == []
    open_lease().take()


def test_a_driver_waits_for_the_owner_on_another_machine_to_show_that_it_lives(open_lease):
    first, second = open_lease(), open_lease(renew_s=0.2)
    first.take()
    pretend(first, machine="another", at=time.time() - 50)
    renewal = threading.Timer(0.5, pretend, (first,), {"at": time.time()})
    renewal.start()
    with pytest.raises(SweepInUseError, match="last seen [01] s ago"):
        second.take()
    renewal.join()


def test_a_silent_lease_of_another_machine_is_taken_over_when_it_expires(open_lease, caplog):
    first, second = open_lease(renew_s=600), open_lease(renew_s=0.2, expire_s=61.0)
    first.take()
    pretend(first, machine="another", at=time.time() - 60)
    second.take()
    assert "last seen 60 s ago" in caplog.text
    second.check()
    with pytest.raises(SweepStorageError, match=r"was taken over, now held by process \d+ on"):
        first.check()


def test_a_lease_that_is_gone_is_lost(open_lease, s3_location):
    first = open_lease()
    first.take()
    pretend(first, machine="another", at=0.0)
    second = open_lease()
    second.take()
    second.close()
    with pytest.raises(SweepStorageError, match="now held by nobody"):
        first.renew()
    assert list_objects(s3_location) == []


def test_a_killed_process_of_this_machine_holds_nothing(open_lease, s3_location):
    with subprocess.Popen(
        [sys.executable, "-c", TAKER, s3_location], stdout=subprocess.PIPE, text=True
    ) as taker:
        assert taker.stdout.readline() == "taken\n"
        with pytest.raises(SweepInUseError, match=f"process {taker.pid} on "):
            open_lease().take()
        taker.kill()
    open_lease().take()


def test_the_same_process_id_of_an_earlier_container_holds_nothing(open_lease):
    first = open_lease()
    first.take()
    pretend(first, owner="of an earlier life")
    open_lease().take()


def test_a_lease_is_renewed_until_it_is_closed(open_lease, s3_location):
    lease = open_lease(renew_s=0.05)
    lease.take()
    before = read_object(f"{s3_location}/{LOCK_FILE}")
    deadline = time.monotonic() + 10
    while read_object(f"{s3_location}/{LOCK_FILE}") == before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert read_object(f"{s3_location}/{LOCK_FILE}") != before
    lease.close()
    assert read_object(f"{s3_location}/{LOCK_FILE}") is None


def test_of_two_that_take_it_at_once_the_later_writer_has_it(open_lease):
    first, second = open_lease(), open_lease(settle_s=0.3)
    refused = []

    def take():
        try:
            second.take()
        except SweepInUseError as error:
            refused.append(error)

    thread = threading.Thread(target=take)
    thread.start()
    time.sleep(0.1)
    write_object(f"{first._location}/{LOCK_FILE}", first._encode())
    thread.join()
    assert len(refused) == 1


@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b'{"owner": [1]}'], ids=str)
def test_a_lock_that_cannot_be_read_is_told_and_not_taken(open_lease, s3_location, content):
    write_object(f"{s3_location}/{LOCK_FILE}", content)
    with pytest.raises(StorageError, match=r"lock\.json: is no lock of a driver"):
        open_lease().take()
    assert read_object(f"{s3_location}/{LOCK_FILE}") == content
