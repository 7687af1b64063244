"""What commands share: the folder of a sweep, and the console."""

from argparse import Namespace

import pytest

from orchestrator.commands.options import open_console, read_sweep
from orchestrator.errors import SweepSpecError


def test_a_folder_without_a_sweep_is_refused_under_the_name_of_the_command(tmp_path):
    with pytest.raises(SweepSpecError, match=r"^stop: got '.*', which holds no sweep; allowed: "):
        read_sweep(Namespace(storage=str(tmp_path)), "stop")


def test_plain_output_is_no_terminal(monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert open_console(Namespace(plain=False)).is_terminal
    assert not open_console(Namespace(plain=True)).is_terminal
