"""A sweep's storage in a folder and in a bucket: the same log, the same bundles, one driver."""

import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.errors import SweepInUseError, SweepStorageError
from orchestrator.journal.lease import Lease
from orchestrator.journal.log import read_events
from orchestrator.journal.replica import SEGMENT_EVENTS
from orchestrator.journal.sweep_storage import SweepStorage, read_history
from tests.support.bundles import write_bundle
from tests.support.damage import DAMAGES
from tests.support.events import event
from trainables.contract import ADAPTER_FILES
from trainables.hosts.objects import delete_objects, list_objects, upload_file, write_object
from trainables.hosts.storage import put_folder

WRITER = """
import sys
from orchestrator.journal.lease import Lease
from orchestrator.journal.sweep_storage import SweepStorage
from orchestrator.journal.events import PhaseEnded
log = SweepStorage(sys.argv[1]).open_log(Lease(sys.argv[1], settle_s=0))
for number in range(10**9):
    log.append(PhaseEnded(name=str(number), seconds=1))
    print(number, flush=True)
"""


class Sweep(SweepStorage):
    """A storage whose leases do not wait."""

    def open_log(self):
        return super().open_log(Lease(self.location, settle_s=0.0))


@pytest.fixture
def sweep(location):
    return Sweep(location)


def add(log, *names):
    return [log.append(event("phase", name=str(name), seconds=1.0)) for name in names]


def fill_segment(location, number, line):
    write_object(f"{location}/events/{number:08d}.jsonl", line * SEGMENT_EVENTS)


def phases(location):
    return read_history(location).phases


def test_a_log_is_read_back_from_its_file_and_from_its_location(sweep):
    with sweep.open_log() as log:
        events = add(log, "one", "two")
        assert phases(sweep.location) == {"one": 1.0, "two": 1.0}
    assert list(read_events(sweep.folder / "events.jsonl")) == events


def test_a_log_goes_on_where_it_ended(sweep):
    for name in ("one", "two"):
        with sweep.open_log() as log:
            add(log, name)
    assert list(phases(sweep.location)) == ["one", "two"]


def test_a_second_driver_is_kept_out(sweep):
    said = f"^{sweep.location}: in use by process"
    with sweep.open_log(), pytest.raises(SweepInUseError, match=said):
        sweep.open_log()
    sweep.open_log().close()


def test_a_missing_log_has_no_history(sweep):
    assert read_history(sweep.location).sweep_id is None


def test_a_log_from_a_fresh_mirror_equals_the_one_that_was_lost(s3_location):
    sweep = Sweep(s3_location)
    with sweep.open_log() as log:
        add(log, "first")
    fill_segment(s3_location, 0, log.path.read_bytes())
    with sweep.open_log() as log:
        add(log, "second", "third")
    events = list(read_events(log.path))
    assert len(events) == SEGMENT_EVENTS + 2
    before = log.path.read_bytes()
    shutil.rmtree(sweep.folder)
    with sweep.open_log() as log:
        assert log.path.read_bytes() == before
        events += add(log, "fourth")
        assert list(read_events(log.path)) == events
    assert list_objects(s3_location) == ["events/00000000.jsonl", "events/00000001.jsonl"]
    assert phases(s3_location) == {
        "first": SEGMENT_EVENTS, "second": 1.0, "third": 1.0, "fourth": 1.0
    }  # fmt: skip


def test_a_mirror_that_says_more_than_the_bucket_is_put_right(s3_location):
    sweep = Sweep(s3_location)
    with sweep.open_log() as log:
        add(log, "one")
    whole = log.path.read_bytes()
    log.path.write_bytes(whole + whole + b'{"torn')
    with sweep.open_log() as log:
        assert log.path.read_bytes() == whole


def test_a_mirror_of_a_sweep_that_was_removed_is_cleared(s3_location):
    sweep = Sweep(s3_location)
    with sweep.open_log() as log:
        add(log, "one")
    (sweep.folder / "delivered.json").write_text('{"events": 1}')
    delete_objects(s3_location, list_objects(s3_location))
    with sweep.open_log() as log:
        assert log.path.read_bytes() == b""
    assert not (sweep.folder / "delivered.json").exists()


def test_a_killed_driver_loses_nothing_it_acknowledged(s3_location):
    command = [sys.executable, "-c", WRITER, s3_location]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
        for _ in range(20):
            writer.stdout.readline()
        writer.kill()
        acknowledged = 20 + sum(line.endswith("\n") for line in writer.stdout)
    sweep = Sweep(s3_location)
    shutil.rmtree(sweep.folder)
    with sweep.open_log() as log:  # at once: the process that held it is gone
        names = [each.event.name for each in read_events(log.path)]
    assert names == [str(number) for number in range(len(names))]
    assert len(names) >= acknowledged


def test_a_driver_that_lost_its_lease_appends_nothing(s3_location):
    sweep = Sweep(s3_location)
    with sweep.open_log() as log:
        add(log, "one")
        delete_objects(s3_location, ["lock.json"])
        other = Lease(s3_location, settle_s=0.0)
        other.take()
        with pytest.raises(SweepStorageError, match="was taken over"):
            add(log, "two")
        other.close()
    assert list(phases(s3_location)) == ["one"]
    assert [each.event.name for each in read_events(log.path)] == ["one"]


def test_an_append_that_the_bucket_refuses_is_not_in_the_file_either(s3_location, monkeypatch):
    with Sweep(s3_location).open_log() as log:
        add(log, "one")
        with monkeypatch.context() as patch:
            patch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
            with pytest.raises(SweepStorageError, match="SignatureDoesNotMatch"):
                add(log, "two")
        add(log, "three")
    assert list(phases(s3_location)) == ["one", "three"]
    assert [each.event.name for each in read_events(log.path)] == ["one", "three"]


def test_a_missing_segment_is_told(s3_location):
    with Sweep(s3_location).open_log() as log:
        add(log, "one")
    fill_segment(s3_location, 1, log.path.read_bytes())
    delete_objects(f"{s3_location}/events", ["00000000.jsonl"])
    with pytest.raises(SweepStorageError, match=r"events/00000000.jsonl: is missing among 1"):
        read_history(s3_location)
    with pytest.raises(SweepStorageError, match="is missing"):
        Sweep(s3_location).open_log()
    assert list_objects(s3_location) == ["events/00000001.jsonl"]  # the lock was given back


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("AWS_SECRET_ACCESS_KEY", "wrong", "Check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"),
        ("AWS_ENDPOINT_URL", "http://127.0.0.1:1", "Check AWS_ENDPOINT_URL and the network"),
    ],
    ids=["secret", "endpoint"],
)
def test_a_bucket_that_does_not_answer_is_told_before_anything(
    s3_location, monkeypatch, name, value, said
):
    monkeypatch.setenv(name, value)
    with pytest.raises(SweepStorageError, match=f"^{s3_location}: cannot be used .*{said}"):
        Sweep(s3_location).open_log()
    with pytest.raises(SweepStorageError, match=said):
        read_history(s3_location)


def test_a_missing_bucket_is_named(s3_location):
    with pytest.raises(SweepStorageError, match=r"s3://nobody/x.*NoSuchBucket.*Create the bucket"):
        Sweep("s3://nobody/x").open_log()


@pytest.mark.parametrize("wrong", ["gs://bucket/x", "s3://", "http://here"])
def test_other_addresses_are_refused(wrong):
    with pytest.raises(SweepStorageError, match=f"storage: got '{wrong}'; allowed: a local"):
        SweepStorage(wrong)


def test_a_bundle_is_fetched_from_where_its_trial_left_it(sweep, tmp_path):
    assert not sweep.has_bundle(3)
    with pytest.raises(SweepStorageError, match="t0003/bundle: no such bundle"):
        sweep.fetch_bundle(3)
    for text in ("{}", '{"again": 1}'):
        (tmp_path / "bundle").mkdir(exist_ok=True)
        (tmp_path / "bundle" / "manifest.json").write_text(text)
        put_folder(tmp_path / "bundle", sweep.bundle_location(3))
        assert sweep.has_bundle(3)
        fetched = sweep.fetch_bundle(3)
        assert fetched == sweep.folder / "trials" / "t0003" / "bundle"
        assert [file.read_text() for file in fetched.iterdir()] == [text]


def test_a_torn_bundle_is_none(s3_location, tmp_path):
    (tmp_path / "manifest.json").write_text("{}")
    sweep = Sweep(s3_location)
    upload_file(tmp_path / "manifest.json", f"{sweep.bundle_location(0)}/manifest.json")
    assert not sweep.has_bundle(0)


def test_what_is_pushed_can_be_pulled_into_a_fresh_mirror(sweep):
    (sweep.folder / "report").mkdir(parents=True)
    (sweep.folder / "report" / "report.html").write_text("<p>")
    (sweep.folder / "delivered.json").write_text("{}")
    for name in ("report", "delivered.json", "never-there"):
        sweep.push(name)
    if sweep.is_remote:
        shutil.rmtree(sweep.folder)
    for name in ("report", "delivered.json", "never-there"):
        sweep.pull(name)
    assert (sweep.folder / "report" / "report.html").read_text() == "<p>"
    assert (sweep.folder / "delivered.json").read_text() == "{}"


def test_what_others_send_is_collected_once(sweep):
    sweep.send("requests/a.json", b"1")
    sweep.collect("requests")
    (request,) = (sweep.folder / "requests").iterdir()
    assert (request.name, request.read_bytes()) == ("a.json", b"1")
    request.unlink()
    sweep.collect("requests")
    assert list((sweep.folder / "requests").iterdir()) == []


@pytest.mark.parametrize("file", ["manifest.json", *ADAPTER_FILES])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_bundle_that_changed_since_its_export_counts_as_missing(tmp_path, damage, file):
    sweep = SweepStorage(tmp_path)
    bundle = tmp_path / "trials" / "t0000" / "bundle"
    bundle.parent.mkdir(parents=True)
    assert not sweep.has_bundle(0)
    write_bundle(bundle, seed=1)
    assert sweep.has_bundle(0)
    DAMAGES[damage](bundle / file)
    assert not sweep.has_bundle(0)


def test_an_object_of_a_bundle_that_changed_its_size_counts_as_missing(s3_location, tmp_path):
    sweep = SweepStorage(s3_location)
    put_folder(write_bundle(tmp_path / "made", seed=1), sweep.bundle_location(0))
    assert sweep.has_bundle(0)
    write_object(f"{sweep.bundle_location(0)}/adapter_config.json", b"{")
    assert not sweep.has_bundle(0)


def test_an_object_of_a_bundle_with_other_bytes_is_found_by_downloading_it(s3_location, tmp_path):
    sweep = SweepStorage(s3_location)
    made = write_bundle(tmp_path / "made", seed=1)
    put_folder(made, sweep.bundle_location(0))
    assert sweep.has_bundle(0, downloads=True)
    weights = bytearray((made / "adapter_model.safetensors").read_bytes())
    weights[-1] ^= 1
    write_object(f"{sweep.bundle_location(0)}/adapter_model.safetensors", bytes(weights))
    assert sweep.has_bundle(0)
    assert not sweep.has_bundle(0, downloads=True)
    with pytest.raises(SweepStorageError, match="content is not that which was uploaded"):
        sweep.fetch_bundle(0)


def test_trials_without_the_log_of_their_sweep_are_refused(sweep, tmp_path):
    assert read_history(sweep.location).sweep_id is None
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "state.json").write_text("{}")
    put_folder(tmp_path / "files", f"{sweep.state_location(0)}/step-00000010")
    with pytest.raises(SweepStorageError, match=r"holds 1 trials \(t0000.*Restore events.jsonl"):
        read_history(sweep.location)
    with sweep.open_log() as log:
        log.append(event("sweep_started", sweep_id="s1", spec={}, digest=""))
    assert read_history(sweep.location).sweep_id == "s1"


def test_names_that_lead_out_of_the_mirror_are_refused(s3_location, tmp_path):
    (tmp_path / "files").mkdir()
    put_folder(tmp_path / "files", f"{s3_location}/trials/t0000/bundle")
    marker = b'{"files": {"../../out": 1}}'
    write_object(f"{s3_location}/trials/t0000/bundle/_whole.json", marker)
    with pytest.raises(SweepStorageError, match="allowed: names of files below"):
        Sweep(s3_location).fetch_bundle(0)


def test_locations_are_plain_text_for_hosts_and_proxies(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert SweepStorage("runs/x").location == SweepStorage(Path("runs/x")).location
    assert SweepStorage("runs/x").folder == tmp_path / "runs" / "x"
    assert SweepStorage("runs/x").state_location(7) == f"{tmp_path}/runs/x/trials/t0007/state"
    remote = pickle.loads(pickle.dumps(SweepStorage("s3://bucket/x/")))
    assert remote.location == "s3://bucket/x"
    assert remote.bundle_location(7) == "s3://bucket/x/trials/t0007/bundle"
    assert remote.folder != SweepStorage("s3://bucket/y").folder


def test_local_storage_needs_no_s3_client(tmp_path):
    code = (
        "import sys; from orchestrator.journal.sweep_storage import SweepStorage; "
        "SweepStorage(sys.argv[1]).open_log().close(); print('boto3' in sys.modules)"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_kept_adapters_are_fetched_where_they_are(location, tmp_path):
    sweep = SweepStorage(location)
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "manifest.json").write_text("{}")
    put_folder(tmp_path / "kept", f"{sweep.bundle_location(2)}-step-400")
    fetched = sweep.fetch_kept(2, [200, 400])
    assert list(fetched) == [400]
    assert (fetched[400] / "manifest.json").read_text() == "{}"
