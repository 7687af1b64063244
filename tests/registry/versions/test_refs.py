"""References are read strictly and written back as they were."""

import pytest

from registry.errors import RefError
from registry.versions.refs import AdapterRef


@pytest.mark.parametrize(
    ("text", "alias", "version"),
    [("support", None, None), ("support@champion", "champion", None), ("support/7", None, 7)],
)
def test_reference_is_read_and_written(text: str, alias: str | None, version: int | None) -> None:
    ref = AdapterRef.parse(text)
    assert ref == AdapterRef(name="support", alias=alias, version=version)
    assert str(ref) == text
    assert AdapterRef.parse(ref) is ref


def test_step_of_a_version_is_read_and_written() -> None:
    ref = AdapterRef.parse("support/7@step-400")
    assert ref == AdapterRef(name="support", version=7, step=400)
    assert str(ref) == "support/7@step-400"


@pytest.mark.parametrize(
    "text",
    [
        "", "@champion", "/7", "a/b", "a/0", "a/-1", "a/7/8", "a/", "a@", "a:b", " a", "a ", "a'b",
        "a@latest", "a@Latest", "a@v7", "a@7", "a@b@c", "a@b c", "a@b/7", "models:/a/7", "a\n",
        "a/٣", "a/7@", "a/7@400", "a/7@step-", "a/7@step-0", "a/7@step-x", "a/7@champion",
        "a@champion@step-400", "a@step-400@champion", "a/" + "9" * 5000,
    ],
)  # fmt: skip
def test_what_mlflow_cannot_hold_is_refused(text: str) -> None:
    with pytest.raises(RefError, match="allowed"):
        AdapterRef.parse(text)


def test_alias_and_version_together_are_refused() -> None:
    with pytest.raises(RefError, match="one of the two"):
        AdapterRef(name="a", alias="champion", version=7)


def test_step_without_version_is_refused() -> None:
    for more in ({}, {"alias": "champion"}):
        with pytest.raises(RefError, match="named by its number"):
            AdapterRef(name="a", step=400, **more)
