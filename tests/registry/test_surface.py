"""The package's public names, and what they cost to import."""

import subprocess
import sys

import registry


def test_every_public_name_is_there() -> None:
    assert len(registry.__all__) > 10
    for name in registry.__all__:
        assert getattr(registry, name) is not None
    assert not hasattr(registry, "no_such_name")


def test_errors_and_references_need_no_mlflow() -> None:
    code = (
        "import sys; from registry.errors import RefError; from registry import AdapterRef\n"
        "AdapterRef.parse('a/7'); assert 'mlflow' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
