"""The server that the manifests describe: its user script against a real one, its settings."""

import configparser
import re
import runpy
import urllib.error
import urllib.request
from base64 import b64encode

import pytest

from tests.support import manifests as k8s

PLATFORM = k8s.K8S / "base" / "platform"


def mlflow_container():
    (mlflow,) = [one for one in k8s.templates(k8s.manifests("gpu")) if one.name == "mlflow"]
    (container,) = mlflow.containers()
    return container


def test_the_server_has_users_and_no_jobs_and_tells_nobody():
    container = mlflow_container()
    assert "--app-name=basic-auth" in container["command"]
    environment = {one["name"]: one.get("value") for one in container["env"]}
    assert environment["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] == "false"
    assert environment["MLFLOW_DISABLE_TELEMETRY"] == "true"
    settings = configparser.ConfigParser()
    settings.read(PLATFORM / "basic_auth.ini")
    assert settings["mlflow"]["default_permission"] == "READ"
    assert "@" not in settings["mlflow"]["database_uri"]  # password and host come from variables


def test_every_name_of_the_service_is_allowed():
    environment = {one["name"]: one.get("value") for one in mlflow_container()["env"]}
    allowed = environment["MLFLOW_SERVER_ALLOWED_HOSTS"].split(",")
    items = k8s.manifests("gpu")
    (port,) = k8s.of_kind(items, "Service")["mlflow"]["spec"]["ports"]
    for name in ("mlflow", "mlflow.lorchestra.svc"):
        assert f"{name}:{port['port']}" in allowed
    for overlay in (*k8s.SWEEPS, *k8s.RAYS):
        for spec in k8s.ray_specs(k8s.manifests(overlay)).values():
            (head,) = spec["headGroupSpec"]["template"]["spec"]["containers"]
            uri = {one["name"]: one.get("value") for one in head["env"]}["MLFLOW_TRACKING_URI"]
            assert uri.removeprefix("http://") in allowed


def test_sources_of_versions_are_artifacts_of_the_server():
    environment = {one["name"]: one.get("value") for one in mlflow_container()["env"]}
    rule = environment["MLFLOW_CREATE_MODEL_VERSION_SOURCE_VALIDATION_REGEX"]
    assert re.search(rule, "mlflow-artifacts:/1/models/m-1/artifacts")
    for foreign in ("s3://other-bucket/x", "https://example.com/x", "/etc", "x runs:/"):
        assert not re.search(rule, foreign)


def status_as(address, name, password):
    """Status of a request that every user may make."""
    word = b64encode(f"{name}:{password}".encode()).decode()
    asked = urllib.request.Request(
        f"{address}/version", headers={"Authorization": f"Basic {word}"}
    )
    try:
        with urllib.request.urlopen(asked, timeout=30) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


@pytest.mark.server
def test_the_script_makes_a_user_and_changes_its_password(shared_server, monkeypatch, capsys):
    monkeypatch.setenv("MLFLOW_SERVER", shared_server.address)
    monkeypatch.setenv("MLFLOW_AUTH_ADMIN_PASSWORD", shared_server.admin.password)
    monkeypatch.setenv("LORCHESTRA_USERNAME", "sweeps")
    main = runpy.run_path(str(PLATFORM / "add_user.py"))["main"]
    for password, said in (("a-first-password", "created"), ("a-second-password", "Secret")):
        monkeypatch.setenv("LORCHESTRA_PASSWORD", password)
        assert main() == 0
        assert said in capsys.readouterr().out
        assert status_as(shared_server.address, "sweeps", password) == 200
    assert status_as(shared_server.address, "sweeps", "a-wrong-password") == 401


@pytest.mark.server
def test_the_script_says_that_the_password_of_the_admin_is_another(
    shared_server, monkeypatch, capsys
):
    monkeypatch.setenv("MLFLOW_SERVER", shared_server.address)
    monkeypatch.setenv("MLFLOW_AUTH_ADMIN_PASSWORD", "not-the-password")
    monkeypatch.setenv("LORCHESTRA_USERNAME", "nobody")
    monkeypatch.setenv("LORCHESTRA_PASSWORD", "a-first-password")
    assert runpy.run_path(str(PLATFORM / "add_user.py"))["main"]() == 1
    assert "answered 401" in capsys.readouterr().err
