"""The page and the schema of the fields are fresh, and the schema agrees with the reader."""

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from orchestrator.errors import SweepSpecError
from orchestrator.spec.fields import (
    PAGE,
    SCHEMA,
    all_fields,
    allowed_values,
    build_page,
    render_schema,
)
from orchestrator.spec.sweep import SweepSpec, parse_sweep
from orchestrator.sweepfile.loader import SweepLoader
from tests.support.sweeps import SWEEP_VALUES as SWEEP

ROOT = Path(__file__).parents[3]
REMEDY = "run python -m orchestrator.spec.fields"


@pytest.fixture(scope="module")
def schema() -> Any:
    found = json.loads((ROOT / SCHEMA).read_text())
    jsonschema.Draft7Validator.check_schema(found)
    return jsonschema.Draft7Validator(found)


def test_page_and_schema_are_fresh() -> None:
    assert (ROOT / PAGE).read_text() == build_page(), REMEDY
    assert (ROOT / SCHEMA).read_text() == render_schema(), REMEDY


def test_every_field_has_a_meaning() -> None:
    fields = list(all_fields())
    assert len(fields) > 100
    assert [one.name for one in fields if not one.meaning] == []


def test_allowed_values_are_those_of_the_messages() -> None:
    allowed = allowed_values()
    assert allowed["lora.rank"] == "1 to 1024"
    assert allowed["lora.dropout"] == "0 <= p < 1"
    assert allowed["optim.warmup_steps"] == "0 to optim.steps"
    assert allowed["objective.constraints"].startswith("METRIC <= NUMBER")


# ------------------------------------------------------------------------------------ the schema


def written_sweeps() -> list[str]:
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    blocks = [
        block
        for page in pages
        for block in re.findall(r"^```yaml\n(.*?)^```", page.read_text(), re.M | re.S)
    ]
    files = [path.read_text() for path in sorted((ROOT / "sweeps").glob("*.yaml"))]
    assert blocks
    assert files
    return blocks + files


def test_it_accepts_every_sweep_file_that_is_shown(schema: Any) -> None:
    for text in written_sweeps():
        schema.validate(yaml.load(text, Loader=SweepLoader))


SPACES: tuple[dict[str, Any], ...] = (
    {"lora.alpha": {"tied": "2 * lora.rank"}},
    {"lora.alpha_per_rank": 2},
    {"lora.targets": {"choice": ["mlp", ["q_proj", "v_proj"]]}},
    {"optim.learning_rate": {"log_uniform": [1e-5, 1e-3]}},
    {"lora.dropout": {"uniform": [0, 0.1], "when": {"lora.rank": [2, 4]}}},
    {"optim.micro_batch_size": {"choice": [None, 2]}},
    {"seed": {"int": [0, 9]}},
    {"base.quantization": "fp4"},
)


@pytest.mark.parametrize("space", SPACES, ids=lambda one: next(iter(one)))
def test_it_accepts_what_is_read_and_all_that_is_written_of_it(
    schema: Any, space: dict[str, Any]
) -> None:
    values = SWEEP | {"space": SWEEP["space"] | space}
    schema.validate(values)
    schema.validate(parse_sweep(values, Path()).to_dict())


MISTAKES: dict[str, dict[str, Any]] = {
    "section": {"optmi": {"steps": 20}},
    "key": {"optim": {"steps": 20, "lr": 1e-3}},
    "missing": {"optim": {}},
    "type": {"optim": {"steps": "many"}},
    "choice": {"search": {"algorithm": "tep"}},
    "low": {"lora": {"rank": 0}},
    "high": {"lora": {"rank": 2000}},
    "fraction": {"lora": {"dropout": 1.0}},
    "level": {"finals": {"confidence": 1.0}},
    "exclusive": {"optim": {"steps": 20, "learning_rate": 0}},
    "knob": {"space": {"lora.rnk": {"choice": [2, 4]}}},
    "searched-steps": {"space": {"optim.steps": {"choice": [10, 20]}}},
    "distribution": {"space": {"lora.rank": {"chioce": [2, 4]}}},
    "value-of-knob": {"space": {"lora.rank": {"choice": ["a"]}}},
    "range-of-text": {"space": {"lora.init": {"uniform": [0, 1]}}},
    "bounds": {"space": {"lora.dropout": {"uniform": [0, 0.1, 0.2]}}},
    "list": {"space": {"lora.rank": [2, 4]}},
    "rule": {"forbid": [{"lora.rnk": 2}]},
    "metric": {"objective": {"also": {"speed": "max"}}},
    "text": {"register": {"name": 3}},
}


@pytest.mark.parametrize("changes", MISTAKES.values(), ids=MISTAKES)
def test_it_refuses_what_the_reader_refuses(schema: Any, changes: dict[str, Any]) -> None:
    values = SWEEP | changes
    assert not schema.is_valid(values)
    with pytest.raises(SweepSpecError):
        parse_sweep(values, Path())


def test_the_line_for_editors_leads_to_the_schema() -> None:
    first = (ROOT / "sweeps" / "quickstart.yaml").read_text().splitlines()[0]
    path = first.removeprefix("# yaml-language-server: $schema=")
    assert (ROOT / "sweeps" / path).resolve() == ROOT / SCHEMA
    assert SweepSpec.from_yaml(ROOT / "sweeps" / "quickstart.yaml").name == "wordnet-classes"
