"""What of the finalists' forms is scored, in which order it is noted, and what a resume skips."""

from dataclasses import replace

import pytest

from orchestrator.errors import SweepStorageError
from orchestrator.finals.forms import (
    _trained_first,
    are_forms_evaluated,
    evaluation_fingerprint,
    read_evaluations,
)
from orchestrator.hosts.evaluators import FormResult
from orchestrator.journal.paths import evaluation_file
from orchestrator.journal.sweep_storage import SweepStorage
from tests.support.events import event


def note(scene, trial, form, fingerprint, error=""):
    metrics = {} if error else {"loss": 1.0}
    scene.record.add(
        event(
            "form_evaluated",
            trial=trial,
            form=form,
            metrics=metrics,
            error=error,
            fingerprint=fingerprint,
        )
    )


def fingerprint_of(scene):
    return evaluation_fingerprint(scene.spec)


def test_all_forms_of_all_finalists_are_wanted_once(build_scene):
    scene = build_scene()
    history = scene.record.history
    for trial in (1, 2):  # the two best
        for form in ("trained", "unquantized", "merged", "requantized"):
            assert not are_forms_evaluated(scene.spec, history)
            note(
                scene,
                trial,
                form,
                fingerprint_of(scene),
                error="too large" if form == "merged" else "",
            )
    assert are_forms_evaluated(scene.spec, history)
    assert set(history.trials[1].forms) == {"trained", "unquantized", "requantized"}


def test_another_way_of_measuring_is_another_measurement(build_scene):
    scene = build_scene()
    finals = replace(scene.spec.finals, top=1, forms=("merged",))
    scene.spec = replace(scene.spec, finals=finals, register=None)
    note(scene, 1, "merged", fingerprint_of(scene))
    assert are_forms_evaluated(scene.spec, scene.record.history)
    generating = replace(scene.spec.finals, max_new_tokens=4)
    assert not are_forms_evaluated(replace(scene.spec, finals=generating), scene.record.history)


def test_what_a_lost_worker_did_not_score_is_wanted_again(build_scene):
    scene = build_scene()
    finals = replace(scene.spec.finals, top=1, forms=("merged",))
    scene.spec = replace(scene.spec, finals=finals, register=None)
    note(scene, 1, "merged", "", error="its worker died")
    assert not are_forms_evaluated(scene.spec, scene.record.history)
    note(scene, 1, "merged", fingerprint_of(scene), error="no such layer")
    assert are_forms_evaluated(scene.spec, scene.record.history)


def test_what_goes_on_is_scored_again(build_scene):
    scene = build_scene()
    note(scene, 1, "merged", "this")
    scene.record.add(event("trial_resumed", trial=1, step=20))
    assert scene.record.history.trials[1].forms == {}


def test_forms_wait_for_the_one_they_are_compared_with():
    come = [("a", "merged"), ("b", "merged"), ("a", "trained"), ("a", "unquantized")]
    results = (FormResult(key, form, {}, "") for key, form in come)
    noted = [(one.key, one.form) for one in _trained_first(results, {"a"})]
    assert noted == [("b", "merged"), ("a", "trained"), ("a", "merged"), ("a", "unquantized")]


def test_scores_are_read_where_they_were_put(build_scene, location):
    scene = build_scene()
    storage = SweepStorage(location)
    storage.send(evaluation_file(1, "merged"), b'{"form": "merged"}')
    note(scene, 1, "merged", "this")
    note(scene, 1, "trained", "this", error="too large")
    (document,) = read_evaluations(scene.record.history.trials[1], storage)
    assert document["form"] == "merged"


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff"], ids=str)
def test_a_damaged_evaluation_is_told_in_one_sentence(build_scene, tmp_path, content):
    scene = build_scene()
    storage = SweepStorage(tmp_path)
    storage.send(evaluation_file(1, "merged"), content)
    note(scene, 1, "merged", "this")
    with pytest.raises(SweepStorageError, match=r"scores/merged\.json: the evaluation cannot"):
        list(read_evaluations(scene.record.history.trials[1], storage))
