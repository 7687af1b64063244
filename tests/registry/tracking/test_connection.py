"""What MLflow's client is told before it is used, and what nobody is told of it."""

import os

import pytest
from botocore.exceptions import ClientError
from mlflow.exceptions import MlflowException

from registry.errors import TrackingError
from registry.tracking.connection import plain_errors, prepare, without_secrets


def test_switches_are_set_unless_the_user_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "7")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "")
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES")
    prepare()
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "7"
    assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "0"
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("http://eve:hunter-two@host:5000/x", "http://host:5000/x"),
        ("postgresql://eve:p@ss@db/mlflow is away", "postgresql://db/mlflow is away"),
        ("http://host/models:/n@champion", "http://host/models:/n@champion"),
        ("Basic word-of-eve failed", "Basic *** failed"),
        ("Bearer token-of-eve", "Bearer ***"),
    ],
)
def test_secrets_are_taken_out(text: str, plain: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "word-of-eve")
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "token-of-eve")
    assert without_secrets(text) == plain


def test_an_error_of_mlflow_names_the_server_and_a_remedy() -> None:
    with (
        pytest.raises(
            TrackingError, match=r"server http://host: no http://x\. Check that"
        ) as caught,
        plain_errors("http://eve:hunter-two@host"),
    ):
        raise MlflowException("no http://eve:hunter-two@x.")
    assert isinstance(caught.value.__cause__, MlflowException)


@pytest.mark.parametrize(
    "error",
    [OSError("507 Server Error: Insufficient Storage"), ClientError({"Error": {}}, "PutObject")],
)
def test_an_error_of_the_artifact_store_is_one_of_the_server(error: Exception) -> None:
    with pytest.raises(TrackingError, match="tracking server http://h"), plain_errors("http://h"):
        raise error


def test_a_mistake_of_our_own_is_no_error_of_the_server() -> None:
    with pytest.raises(KeyError), plain_errors("http://h"):
        raise KeyError("a bug")
