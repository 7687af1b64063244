"""Signals interrupt, also where a library swallows the interrupt; ignored ones stay ignored."""

import gc
import signal
import weakref

import pytest

from orchestrator.interrupts import ignore_signals, interrupt_on, raise_swallowed

NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@pytest.fixture(autouse=True)
def handlers():
    before = {number: signal.getsignal(number) for number in NUMBERS}
    yield
    interrupt_on()
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interrupt_that_was_swallowed_is_raised_when_asked_for():
    class Thing:
        pass

    def collected(reference):
        signal.raise_signal(signal.SIGTERM)

    interrupt_on(*NUMBERS)
    raise_swallowed()  # nothing has arrived
    thing = Thing()
    reference = weakref.ref(thing, collected)
    del thing
    gc.collect()
    assert reference() is None
    with pytest.raises(KeyboardInterrupt):
        raise_swallowed()


@pytest.mark.parametrize("number", NUMBERS)
def test_the_first_signal_is_named_and_later_ones_are_ignored(number):
    interrupt_on(*NUMBERS)
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(number)
    assert ignore_signals() == number
    signal.raise_signal(signal.SIGTERM)


def test_a_signal_that_nohup_ignores_stays_ignored():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    interrupt_on(*NUMBERS)
    signal.raise_signal(signal.SIGHUP)
    raise_swallowed()
