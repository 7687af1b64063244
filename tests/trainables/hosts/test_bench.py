"""What a failure says: in words, with its place where there are none, and its traceback."""

import pytest

from trainables.base.loading import require_gpu
from trainables.errors import BaseModelError, SpecError
from trainables.hosts.bench import Failure, attempt


def fail(error):
    def work():
        raise error

    return attempt(work)


def test_an_error_without_text_names_its_place():
    failure = fail(AssertionError())
    assert isinstance(failure, Failure)
    assert failure.reason.startswith("AssertionError in work (hosts/test_bench.py, line ")


def test_an_error_of_a_library_is_told_with_its_class_and_its_traceback():
    failure = fail(KeyError("eos"))
    assert failure.reason == "KeyError: 'eos'"
    assert failure.trace.startswith("Traceback (most recent call last)")
    assert "in work" in failure.trace


def test_an_error_of_ours_is_told_as_it_is():
    failure = fail(SpecError("base.model: got\n nothing"))
    assert (failure.reason, failure.trace) == ("base.model: got nothing", "")


def test_out_of_memory_is_infeasible():
    assert fail(MemoryError()).fault == "infeasible"


def test_a_gpu_that_torch_does_not_see_is_refused(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(BaseModelError, match=r"Ray gave this process GPU 0, but torch .*CUDA"):
        require_gpu(["0"])
    require_gpu([])
