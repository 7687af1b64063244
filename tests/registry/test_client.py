"""One registry at one address: one connection, which other processes open for themselves."""

import pickle

import pytest

from registry import Registry, TrackingError
from registry.client import Registry as ConnectedRegistry


def test_nothing_is_asked_before_the_first_call() -> None:
    adapters = Registry("http://127.0.0.1:9")
    with pytest.raises(TrackingError, match=r"127\.0\.0\.1:9"):
        adapters.versions()


def test_calls_share_one_connection(adapters: Registry) -> None:
    adapters.versions("no-such-name")
    first = adapters.__dict__["_client"]
    adapters.history("no-such-name")
    assert adapters.__dict__["_client"] is first


def test_a_copy_in_another_process_connects_anew(adapters: Registry) -> None:
    adapters.versions("no-such-name")
    copy = pickle.loads(pickle.dumps(adapters))
    assert isinstance(copy, ConnectedRegistry)
    assert "_client" not in copy.__dict__
    assert copy.versions("no-such-name") == []


def test_an_address_is_shown_without_its_password() -> None:
    assert repr(Registry("http://ann:secret@mlflow:5000")) == "Registry('http://mlflow:5000')"
