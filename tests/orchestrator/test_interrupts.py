"""Signals interrupt, also where a library swallows the interrupt; ignored ones stay ignored."""

import gc
import signal
import subprocess
import sys
import threading
import time
import weakref

import pytest

from orchestrator.interrupts import (
    SAME_S,
    STOPPING,
    BackgroundThread,
    answered_by,
    ignore_signals,
    interrupt_on,
    raise_swallowed,
)

NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@pytest.fixture(autouse=True)
def handlers():
    before = {number: signal.getsignal(number) for number in NUMBERS}
    for number in NUMBERS:  # whoever runs the tests may ignore one, as nohup does
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
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


def test_a_display_answers_in_place_of_a_printed_line(capfd):
    answered = []
    interrupt_on(*NUMBERS, hint="Go on.")
    with answered_by(answered.append), pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    assert answered == [f"{STOPPING} Go on."]
    assert capfd.readouterr().out == ""


_STUBBORN = """
import signal, sys, time
from orchestrator.interrupts import interrupt_on
interrupt_on(signal.SIGINT)
try:
    print("ready", flush=True)
    time.sleep(60)
except KeyboardInterrupt:
    print("caught", flush=True)
    time.sleep(60)
"""


def test_the_first_signal_is_answered_at_once_and_a_second_one_ends_the_process():
    with subprocess.Popen(
        [sys.executable, "-c", _STUBBORN], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        assert [process.stdout.readline() for _ in range(3)] == ["\n", f"{STOPPING}\n", "caught\n"]
        process.send_signal(signal.SIGINT)  # a wrapper repeats the signal: the same wish
        time.sleep(SAME_S)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=10) == 128 + signal.SIGINT
        assert process.stdout.read() == "\nstopped\n"


def test_an_interrupt_while_a_thread_is_awaited_does_not_mark_it_as_ended():
    may_end = threading.Event()
    thread = BackgroundThread(lambda: may_end.wait(30), "busy")
    thread.start()
    interrupt_on(signal.SIGALRM)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        with pytest.raises(KeyboardInterrupt):
            thread.await_end(30)
        assert thread.is_alive()
        assert not thread.is_over
        assert not thread.await_end(0.1)
    finally:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        may_end.set()
    assert thread.await_end(30)
