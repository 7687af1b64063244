"""The sweeps and the notebook in docs/examples: they pass all checks, and one of them trains."""

import ast
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from orchestrator import SweepSpec
from orchestrator.preflight.data_report import inspect_inputs
from orchestrator.spec.inputs import load_functions
from tests.support.chats import MARKS, byte_tokenizer
from tests.support.tiny import build_tiny_llama

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
SWEEPS = sorted(EXAMPLES.glob("*.yaml"))
NOTEBOOK = EXAMPLES / "notebook.ipynb"

TEMPLATE = (
    "{% if tools %}<|system|>{{ tools | tojson }}<|end|>{% endif %}"
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}"
    "{% for c in m['tool_calls'] or [] %}<call>{{ c['function']['name'] + ' ' }}"
    "{{ c['function']['arguments'] | tojson }}</call>{% endfor %}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@pytest.fixture(scope="module")
def calling_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny base whose template renders tools and calls."""
    folder = tmp_path_factory.mktemp("calling")
    tokenizer = byte_tokenizer(TEMPLATE, "<|end|>", (*MARKS, "<call>", "</call>"))
    model = build_tiny_llama()
    model.resize_token_embeddings(len(tokenizer))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_there_is_an_example_for_each_kind_of_task() -> None:
    names = {path.stem for path in SWEEPS}
    assert names >= {"instructions", "classification", "tool-calls", "domain-text"}
    for path in SWEEPS:
        lines = path.read_text().splitlines()
        assert lines[0].startswith("# "), path.name
        assert sum("#" in line for line in lines) >= 4, f"{path.name} explains little"


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_an_example_passes_the_checks_of_a_sweep(
    path: Path, calling_base: Path, tmp_path: Path
) -> None:
    spec = SweepSpec.from_yaml(path)
    spec = replace(spec, base=replace(spec.base, model=str(calling_base)))
    load_functions(spec.eval.metric, spec.exits.stop, spec.objective)
    report = inspect_inputs(spec.with_saved_rows(tmp_path))
    found = re.match(r"Rows: (\d+) training, (\d+) validation, (\d+) test", report.lines[1])
    assert found is not None, report.lines
    assert min(map(int, found.groups())) >= 8
    assert not [line for line in report.lines if "data.train: skipped" in line]


def run_notebook(path: Path, **parameters: object) -> list[object]:
    """Execute the code cells; gives the value of each cell's last expression, as Jupyter shows it.

    `parameters` replace the values of the cell tagged `parameters`, as papermill does.
    """
    names: dict[str, object] = {}
    shown: list[object] = []
    for number, cell in enumerate(json.loads(path.read_text())["cells"]):
        if cell["cell_type"] != "code":
            continue
        tree = ast.parse("".join(cell["source"]), f"cell {number}")
        last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, f"cell {number}", "exec"), names)
        if last is not None:
            shown.append(
                eval(compile(ast.Expression(last.value), f"cell {number}", "eval"), names)
            )
        if "parameters" in cell["metadata"].get("tags", ()):
            assert set(parameters) <= set(names)
            names |= parameters
    return [names, *shown]


@pytest.mark.ray
@pytest.mark.timeout(900)
def test_the_notebook_runs(
    local_ray: None, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(EXAMPLES, tmp_path / "examples")
    sweep = folder / "own-functions.yaml"
    values = yaml.safe_load(sweep.read_text())
    values["finals"] |= {"top": 1, "seeds": 0}
    sweep.write_text(yaml.safe_dump(values))
    monkeypatch.chdir(folder)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)

    names, opened, outcomes, *_, champion = run_notebook(
        folder / "notebook.ipynb", BASE=str(tiny_base), STEPS=8, TRIALS=2
    )

    report = names["report"]
    assert "<table" in opened._repr_html_()
    assert outcomes["trials"].sum() == 2
    assert champion[0] == report.best.ref == "roman-numerals/1"
    # The metric of the example is the objective, on validation rows and in the finals' forms.
    best = report.best
    assert report.leaderboard["eval_similarity"].max() == best.metrics["eval_similarity"]
    assert 0 <= best.test_metrics["test_similarity"] <= 1
    assert report.forms[best.trial]["trained"]["similarity"] == pytest.approx(
        best.test_metrics["test_similarity"], abs=0.02
    )
    assert report.spent["metric_s"] > 0
    kept = Path(report.spec.eval.metric.rpartition(":")[0])
    assert kept.parent == folder / "runs" / "roman-numerals" / "data"
