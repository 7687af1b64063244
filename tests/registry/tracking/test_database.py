"""A SQLite file of MLflow: broken, older, newer, new for two at once, moved and copied."""

import os
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from registry.errors import TrackingError
from registry.tracking.access import check_access
from registry.tracking.connection import artifact_location_for, connect, tracking_uri_for
from registry.tracking.database import fit_for_use
from registry.tracking.experiments import ADAPTERS_EXPERIMENT, find_experiment

NAME = "lorchestra"


@pytest.fixture(scope="session")
def recorded(tmp_path_factory):
    """A runs folder with one run that has an artifact, and one model version; copied by tests."""
    folder = tmp_path_factory.mktemp("recorded") / "runs"
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    client = connect(uri)
    experiment = find_experiment(client, NAME, artifact_location_for(uri))
    find_experiment(client, ADAPTERS_EXPERIMENT, artifact_location_for(uri))
    run = client.create_run(experiment)
    client.log_text(run.info.run_id, "kept", "note.txt")
    client.create_registered_model("adapter")
    client.create_model_version("adapter", f"{run.info.artifact_uri}/model", run.info.run_id)
    return folder, run.info.run_id


@pytest.fixture
def runs(recorded, tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return Path(shutil.copytree(recorded[0], tmp_path / "elsewhere" / "runs"))


def change(runs, statement, *values):
    with closing(sqlite3.connect(runs / "mlflow.db")) as connection, connection:
        connection.execute(statement, values)


def uri_of(runs):
    return f"sqlite:///{runs / 'mlflow.db'}"


# --------------------------------------------------------------------------- told in time


def test_a_database_of_an_older_mlflow_names_the_command_that_mends_it(runs):
    change(runs, "UPDATE alembic_version SET version_num = '0584bdc529eb'")
    expected = rf"an older MLflow wrote it.*0584bdc529eb.*run: mlflow db upgrade {uri_of(runs)}$"
    with pytest.raises(TrackingError, match=expected):
        check_access(uri_of(runs), NAME, "adapter")


def test_a_database_of_a_newer_mlflow_asks_for_that_mlflow(runs):
    change(runs, "UPDATE alembic_version SET version_num = 'ffffffffffff'")
    with pytest.raises(TrackingError, match=r"a newer MLflow wrote it.*pip install -U mlflow"):
        check_access(uri_of(runs), NAME)


@pytest.mark.parametrize("content", [b"no database" * 500, None], ids=["other", "torn"])
def test_a_broken_database_is_told(runs, content):
    database = runs / "mlflow.db"
    database.write_bytes(content or database.read_bytes()[:6000])
    with pytest.raises(TrackingError, match=r"mlflow\.db: it cannot be read \(.*Restore it"):
        check_access(uri_of(runs), NAME)


def test_a_database_of_something_else_is_left_alone(runs):
    database = runs / "mlflow.db"
    database.unlink()
    change(runs, "CREATE TABLE songs (name TEXT)")
    before = database.read_bytes()
    with pytest.raises(TrackingError, match="its tables are not those of MLflow"):
        check_access(uri_of(runs), NAME)
    assert database.read_bytes() == before


@pytest.mark.parametrize("name", [NAME, ADAPTERS_EXPERIMENT])
def test_a_deleted_experiment_is_told_with_a_command_that_restores_it(runs, name):
    uri = uri_of(runs)
    change(runs, "UPDATE experiments SET lifecycle_stage = 'deleted' WHERE name = ?", name)
    with pytest.raises(TrackingError, match=f"experiment '{name}': it was deleted") as caught:
        check_access(uri, NAME, "adapter")
    setting, command = str(caught.value).partition("Restore it: ")[2].split(" ", 1)
    assert setting == f"MLFLOW_TRACKING_URI={uri}"
    assert command.startswith("mlflow experiments restore -x ")
    connect(uri).restore_experiment(command.rpartition(" ")[2])
    check_access(uri, NAME, "adapter")


def test_a_deleted_experiment_of_adapters_matters_to_who_registers_only(runs):
    change(runs, "UPDATE experiments SET lifecycle_stage = 'deleted' WHERE name = ?",
           ADAPTERS_EXPERIMENT)  # fmt: skip
    check_access(uri_of(runs), NAME)


# ------------------------------------------------------------------------- two first starts


def test_two_first_starts_in_one_folder_both_run(tmp_path):
    code = (
        "import sys\n"
        "from registry.tracking.connection import connect\n"
        "client = connect(sys.argv[1])\n"
        "from registry.tracking.experiments import find_experiment\n"
        "print(find_experiment(client, 'lorchestra', None))\n"
    )
    # Temporary folders of their own, as two containers have: a lock there would not be shared.
    starts = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        starts.append(
            subprocess.Popen(
                [sys.executable, "-c", code, f"sqlite:///{tmp_path}/runs/mlflow.db"],
                env=os.environ
                | {"TMPDIR": str(tmp_path / name), "PYTHONPATH": os.pathsep.join(sys.path)},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    ended = [start.communicate(timeout=180) for start in starts]
    assert [start.returncode for start in starts] == [0, 0], ended
    assert ended[0][0] == ended[1][0] != ""


def test_a_first_start_that_is_killed_leaves_no_half_made_database(tmp_path):
    """Killed before one of MLflow's statements, early to late; the next start makes all anew."""
    code = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from sqlalchemy import event\n"
        "from sqlalchemy.engine import Engine\n"
        "from registry.tracking import database\n"
        "left = [int(sys.argv[2])]\n"
        "@event.listens_for(Engine, 'before_cursor_execute')\n"
        "def count(*arguments):\n"
        "    left[0] -= 1\n"
        "    if left[0] == 0: os.kill(os.getpid(), 9)\n"
        "with database.fit_for_use(Path(sys.argv[1])): print(-left[0], flush=True)\n"
    )

    def start(database, statement):
        return subprocess.run(
            [sys.executable, "-c", code, str(database), str(statement)],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
            stdout=subprocess.PIPE,
            check=False,
        )

    statements = int(start(tmp_path / "whole.db", 0).stdout)
    (tmp_path / "whole.db").unlink()
    database = tmp_path / "mlflow.db"
    for statement in (1, statements // 3, statements // 2, statements - 1):
        killed = start(database, statement)
        assert (killed.returncode, killed.stdout, database.exists()) == (-9, b"", False)
    client = connect(f"sqlite:///{database}")
    assert client.search_experiments()[0].name == "Default"
    assert [path.name for path in tmp_path.iterdir()] == ["mlflow.db"]


def test_a_half_made_database_is_told_with_its_remedy(runs):
    for table in ("alembic_version", "runs"):
        change(runs, f"DROP TABLE {table}")
    with pytest.raises(TrackingError, match=r"creation was interrupted.* Delete it and run"):
        check_access(uri_of(runs), NAME)


def test_a_transaction_of_a_killed_process_is_rolled_back(runs):
    kill_within = (
        "import os, sqlite3, sys\n"
        "base = sqlite3.connect(sys.argv[1])\n"
        "base.execute('PRAGMA cache_size = 1')\n"
        "base.execute('UPDATE runs SET name = hex(randomblob(200000))')\n"
        "os.kill(os.getpid(), 9)\n"
    )
    subprocess.run([sys.executable, "-c", kill_within, str(runs / "mlflow.db")], check=False)
    assert (runs / "mlflow.db-journal").exists()
    check_access(uri_of(runs), NAME, "adapter")


# ---------------------------------------------------------------------------- moved, copied


def test_a_copied_folder_reads_and_writes_beside_its_database(recorded, runs):
    old, run_id = recorded
    before = (old / "mlflow.db").read_bytes()
    client = connect(uri_of(runs))
    run = client.get_run(run_id)
    assert run.info.artifact_uri == f"{(runs / 'mlartifacts').as_uri()}/{run_id}/artifacts"
    source = client.get_model_version("adapter", "1").source
    assert source == f"{run.info.artifact_uri}/model"
    experiment = client.get_experiment_by_name(NAME)
    made = client.create_run(experiment.experiment_id)
    client.log_text(made.info.run_id, "new", "note.txt")
    assert (runs / "mlartifacts" / made.info.run_id / "artifacts" / "note.txt").is_file()
    assert not (old / "mlartifacts" / made.info.run_id).exists()
    assert (old / "mlflow.db").read_bytes() == before


def test_a_moved_folder_works_before_it_has_artifacts(runs):
    shutil.rmtree(runs / "mlartifacts")
    change(runs, "UPDATE experiments SET artifact_location = 'file:///gone/a%20b/mlartifacts'")
    change(runs, "UPDATE runs SET artifact_uri = 'file:///gone/a%20b/mlartifacts/r/artifacts'")
    with fit_for_use(runs / "mlflow.db"):
        pass
    uri, artifacts = tracking_uri_for(runs)
    experiment = connect(uri).get_experiment_by_name(NAME)
    assert experiment.artifact_location == artifacts
    (run,) = connect(uri).search_runs([experiment.experiment_id])
    assert run.info.artifact_uri == f"{artifacts}/r/artifacts"


@pytest.mark.parametrize(
    "address", ["s3://bucket/mlartifacts", "mlflow-artifacts:/1", "file:///shared/models/1"]
)
def test_addresses_that_were_chosen_stay(runs, address):
    change(runs, "UPDATE experiments SET artifact_location = ?", address)
    experiment = connect(uri_of(runs)).get_experiment_by_name(NAME)
    assert experiment.artifact_location == address


def test_a_database_alone_keeps_the_addresses_of_artifacts_that_exist(recorded, runs):
    shutil.rmtree(runs / "mlartifacts")
    experiment = connect(uri_of(runs)).get_experiment_by_name(NAME)
    assert experiment.artifact_location == (recorded[0] / "mlartifacts").as_uri()


def test_a_relative_address_is_of_the_folder_in_which_it_is_given(runs, recorded, monkeypatch):
    names = []
    for folder in (runs, recorded[0]):
        monkeypatch.chdir(folder)
        client = connect("sqlite:///mlflow.db")
        if folder == runs:
            client.create_registered_model("only-here")
        names.append({model.name for model in client.search_registered_models()})
    assert names == [{"adapter", "only-here"}, {"adapter"}]
