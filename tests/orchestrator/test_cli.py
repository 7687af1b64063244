"""The command: exit codes, complaints on stderr, and nothing heavy before it is needed."""

import importlib.metadata
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from orchestrator.cli import main
from orchestrator.journal.log import EventLog
from orchestrator.spec.sweep import SweepSpec, parse_sweep
from registry.tracking.connection import connect
from tests.support.events import event
from tests.support.sweeps import SWEEP_VALUES as SWEEP


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch):
    """Commands run in an empty folder, without a tracking server."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return tmp_path


def write_sweep(**changes):
    Path("sweep.yaml").write_text(yaml.safe_dump(SWEEP | changes))


def complaint(capsys):
    captured = capsys.readouterr()
    assert captured.err.startswith("lorchestra: ")
    assert "Traceback" not in captured.err
    return captured.err


# -------------------------------------------------------------------------------- the command


def test_the_command_alone_prints_its_help(capsys):
    assert main([]) == 0
    said = capsys.readouterr().out
    assert all(word in said for word in ("run", "adapters", "Exit codes: 0 done", "Example: "))


def test_the_version_is_that_of_the_package(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out == f"lorchestra {importlib.metadata.version('lorchestra')}\n"


@pytest.mark.parametrize(
    ("words", "meant"),
    [(["statsu", "runs/x"], "status"), (["adapters", "lsit"], "list"), (["rnu"], "run")],
)
def test_a_mistyped_command_is_told_what_was_meant_first(capsys, words, meant):
    with pytest.raises(SystemExit, match="2"):
        main(words)
    complaint = capsys.readouterr().err.splitlines()[-1]
    assert f": did you mean {meant}? " in complaint
    with pytest.raises(SystemExit, match="2"):
        main(["nothing-like-it"])
    assert "did you mean" not in capsys.readouterr().err


# ---------------------------------------------------------------------------------- input


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"optim": {"steps": 20, "learning_rat": 0.1}}, "optim.learning_rat"),
        ({"budget": {"trials": 0}}, "budget.trials"),
        ({"space": {"lora.rnk": {"choice": [1]}}}, "space.lora.rnk"),
        ({"data": {"train": "missing.jsonl"}}, "data.train"),
        ({"optim": {"steps": 15}}, "optim.steps"),
    ],
    ids=["unknown-key", "value", "knob", "file", "steps"],
)
def test_a_sweep_that_cannot_work_is_refused_by_its_field(capsys, workplace, changes, field):
    write_sweep(**changes)
    assert main(["run", "sweep.yaml"]) == 2
    assert complaint(capsys).startswith(f"lorchestra: {field}:")
    assert not Path("runs").exists()


def test_mlflow_that_cannot_be_meant_is_refused_before_anything_starts(
    capsys, monkeypatch, tiny_base
):
    rows = [json.dumps({"prompt": f"{n} ->", "completion": " b"}) for n in range(60)]
    Path("rows.jsonl").write_text("\n".join(rows))
    write_sweep(data={"train": "rows.jsonl"}, base={"model": str(tiny_base)})
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "ftp://user:secret@example.org")
    assert main(["run", "sweep.yaml"]) == 1
    said = complaint(capsys)
    assert "MLFLOW_TRACKING_URI: got 'ftp://" in said
    assert "secret" not in said
    assert not Path("runs/tiny/events.jsonl").exists()


def test_a_misspelled_section_is_named_before_the_one_that_is_missing_for_it(capsys, workplace):
    values = {"optmi" if name == "optim" else name: value for name, value in SWEEP.items()}
    Path("sweep.yaml").write_text(yaml.safe_dump(values))
    assert main(["run", "sweep.yaml"]) == 2
    assert "optmi: did you mean optim? Unknown key" in (said := complaint(capsys))
    assert "did you mean optim?" in said


def test_a_cache_that_cannot_be_written_is_told_before_anything_starts(
    capsys, workplace, monkeypatch
):
    Path("file").write_text("")
    monkeypatch.setenv("LORCHESTRA_CACHE", str(Path("file").absolute() / "cache"))
    write_sweep()
    assert main(["run", "sweep.yaml"]) == 1
    said = complaint(capsys)
    assert said.startswith("lorchestra: LORCHESTRA_CACHE: ")
    assert "cannot be written (Not a directory); allowed: a writable folder" in said
    assert not Path("runs/tiny").exists()


def test_a_storage_that_is_a_file_is_told_in_one_sentence(capsys, workplace):
    Path("file").write_text("")
    write_sweep()
    assert main(["run", "sweep.yaml", "--storage", "file"]) == 1
    assert "events.jsonl: cannot be read (Not a directory); allowed: a f" in complaint(capsys)


@pytest.mark.parametrize("log", [None, b"", b'{"event":"phase","at":1.0,"na'], ids=str)
@pytest.mark.parametrize("command", ["run", "resume", "status", "prune", "cancel"])
def test_trials_without_their_sweeps_log_are_refused(capsys, workplace, command, log):
    rows = [json.dumps({"prompt": f"{n} ->", "completion": " b"}) for n in range(60)]
    Path("rows.jsonl").write_text("\n".join(rows))
    write_sweep(data={"train": "rows.jsonl"})
    state = Path("runs/tiny/trials/t0000/state/step-00000010")
    state.mkdir(parents=True)
    (state / "state.json").write_text("{}")
    if log is not None:
        Path("runs/tiny/events.jsonl").write_bytes(log)
    assert main([command, "sweep.yaml" if command == "run" else "runs/tiny"]) == 1
    said = complaint(capsys)
    assert "runs/tiny: holds 1 trials (t0000, …) but no sweep in events.jsonl" in said
    assert "Restore events.jsonl from a copy, choose another --storage" in said
    assert state.is_dir()
    assert not Path("runs/tiny/data").exists()


def test_a_signal_that_is_ignored_stays_ignored(monkeypatch):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert main(["run", "nowhere.yaml"]) == 2
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_missing_sweep_file_is_named(capsys):
    assert main(["run", "nowhere.yaml"]) == 2
    assert "nowhere.yaml" in complaint(capsys)


def test_a_row_that_cannot_be_used_is_refused_before_anything_starts(capsys):
    Path("rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n{\n')
    write_sweep(data={"train": "rows.jsonl"})
    assert main(["run", "sweep.yaml"]) == 2
    assert "rows.jsonl line 2 is not JSON" in complaint(capsys)
    assert not Path("runs/tiny/events.jsonl").exists()


@pytest.mark.parametrize(
    "arguments", [["jump"], ["adapters"], ["run"], ["adapters", "pull", "x"]], ids=str
)
def test_an_incomplete_command_says_how_it_is_used(capsys, arguments):
    with pytest.raises(SystemExit) as leaving:
        main(arguments)
    assert leaving.value.code == 2
    assert "usage: lorchestra" in capsys.readouterr().err


# --------------------------------------------------------------------------------- status


def test_status_of_a_folder_without_a_sweep_is_refused(capsys):
    assert main(["status", "runs/none"]) == 2
    assert "'runs/none', which holds no sweep" in complaint(capsys)
    assert not Path("runs").exists()


def test_status_shows_a_sweep_as_far_as_it_went(capsys):
    spec = parse_sweep(SWEEP, Path())
    trial = {"trial": 0, "knobs": {"lora.rank": 2}, "spec": first_trial(spec)}
    with EventLog(Path("runs/tiny/events.jsonl")) as log:
        log.append(event("sweep_started", sweep_id="s1", spec=spec.to_dict(), digest=spec.digest))
        log.append(event("trial_started", **trial))
        log.append(event("report", trial=0, step=10, metrics={"eval_loss": 1.25}))
    before = Path("runs/tiny/events.jsonl").read_bytes()
    assert main(["status", "runs/tiny"]) == 0
    shown = capsys.readouterr().out
    assert "interrupted at" in shown
    assert "go on with: lorchestra resume runs/tiny" in shown
    assert "1.2500" in shown
    assert Path("runs/tiny/events.jsonl").read_bytes() == before


def test_status_of_a_damaged_log_names_the_line(capsys):
    Path("runs/tiny").mkdir(parents=True)
    good = json.dumps({"event": "sweep_resumed", "at": 1.0})
    Path("runs/tiny/events.jsonl").write_text(f"{good}\nbroken\n{good}\n")
    assert main(["status", "runs/tiny"]) == 1
    assert "line 2: not an event" in complaint(capsys)


def first_trial(spec: SweepSpec):
    from orchestrator.spec.sweep import build_trial

    return build_trial(spec, {"lora.rank": 2}).to_dict()


# ------------------------------------------------------------------------------- adapters


@pytest.mark.parametrize(
    "arguments",
    [["list"], ["show", "tiny/1"], ["pull", "tiny", "--to", "here"]],
    ids=["list", "show", "pull"],
)
def test_reading_where_nothing_was_written_makes_nothing(capsys, workplace, arguments):
    assert main(["adapters", *arguments]) == 1
    assert "'runs', which has no mlflow.db" in complaint(capsys)
    assert list(workplace.iterdir()) == []


@pytest.fixture(scope="module")
def empty_registry(tmp_path_factory):
    folder = tmp_path_factory.mktemp("registry")
    connect(f"sqlite:///{folder / 'mlflow.db'}")
    return str(folder)


@pytest.mark.parametrize("verb", ["show", "pull"])
@pytest.mark.parametrize(
    ("ref", "code", "text"),
    [
        ("tiny/one", 2, "'one' is no version number"),
        ("tiny@7", 2, "adapter alias: got '7'"),
        ("tiny/0", 2, "1 and above"),
        ("tiny/1", 1, "tiny"),
        ("tiny@champion", 1, "champion"),
    ],
    ids=["no-number", "alias", "zero", "no-version", "no-alias"],
)
def test_a_reference_to_nothing_is_refused(capsys, empty_registry, verb, ref, code, text):
    more = ["--to", "here"] if verb == "pull" else []
    assert main(["adapters", verb, ref, *more, "--runs", empty_registry]) == code
    assert text in complaint(capsys)
    assert not Path("here").exists()


def test_an_empty_registry_says_what_to_do(capsys, empty_registry):
    assert main(["adapters", "list", "--runs", empty_registry]) == 0
    assert "lorchestra run" in capsys.readouterr().out


def test_the_ui_of_a_server_is_where_the_server_is(capsys, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    assert main(["ui"]) == 1  # the server does not answer, so nothing can be linked
    said = capsys.readouterr()
    assert "the MLflow UI is at http://127.0.0.1:9" in said.out
    assert said.err.startswith("lorchestra: tracking server http://127.0.0.1:9: ")


# -------------------------------------------------------------------------------- process


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"]], ids=["all", "run"])
def test_help_imports_nothing_heavy(arguments):
    code = (
        "import sys\n"
        "from orchestrator.cli import main\n"
        "try:\n    main(sys.argv[1:])\n"
        "except SystemExit as leaving:\n    assert leaving.code == 0\n"
        "heavy = {'ray', 'mlflow', 'torch', 'transformers', 'optuna', 'pandas', 'datasets'}\n"
        "print('loaded:', sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True
    )
    assert "usage: lorchestra" in done.stdout
    assert done.stdout.splitlines()[-1] == "loaded: []"


def test_a_reader_that_leaves_early_sees_no_traceback(empty_registry):
    listing = subprocess.Popen(
        [sys.executable, "-m", "orchestrator.cli", "adapters", "list", "--runs", empty_registry],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    listing.stdout.close()
    said = listing.stderr.read()
    listing.wait(60)
    listing.stderr.close()
    assert "Traceback" not in said
