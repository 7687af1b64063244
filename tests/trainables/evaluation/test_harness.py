"""Tasks of lm-eval from local files, on an adapter in its serving forms."""

import json
import sys
from pathlib import Path

import pytest
import torch

from trainables.errors import DataError, SpecError
from trainables.evaluation.harness import run_harness
from trainables.evaluation.serving import load_served
from trainables.spec import DataSpec
from trainables.training.bundle import read_manifest

CHOICES = [" x", " y", " z", " w"]


@pytest.fixture(scope="module")
def questions(tiny_data: Path) -> list[dict]:
    """The rows that the adapter has learned, as multiple choice."""
    rows = [json.loads(line) for line in tiny_data.read_text().splitlines()]
    return [
        {"prompt": row["prompt"], "label": CHOICES.index(row["completion"])} for row in rows[:16]
    ]


@pytest.fixture(scope="module")
def folder(questions, tmp_path_factory) -> Path:
    """A folder with two task files and their rows."""
    folder = tmp_path_factory.mktemp("tasks")
    (folder / "rows.json").write_text("".join(json.dumps(row) + "\n" for row in questions))
    shared = f"""
dataset_path: json
dataset_kwargs:
  data_files: {{test: {folder / "rows.json"}}}
  cache_dir: {folder / "cache"}
test_split: test
doc_to_text: "{{{{prompt}}}}"
metadata: {{version: 3}}
"""
    (folder / "letters.yaml").write_text(
        f"""task: letters{shared}output_type: multiple_choice
target_delimiter: ""
doc_to_choice: {json.dumps(CHOICES)}
doc_to_target: label
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""
    )
    (folder / "written.yaml").write_text(
        f"""task: written{shared}output_type: generate_until
doc_to_target: '{{{{["x", "y", "z", "w"][label]}}}}'
generation_kwargs: {{until: ["\\n"], max_gen_toks: 2, do_sample: false}}
filter_list:
  - name: letter
    filter: [{{function: regex, regex_pattern: "([xyzw])"}}, {{function: take_first}}]
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
"""
    )
    (folder / "likely.yaml").write_text(
        f"""task: likely{shared}output_type: loglikelihood
target_delimiter: ""
doc_to_target: '{{{{[" x", " y", " z", " w"][label]}}}}'
metric_list: [{{metric: perplexity, aggregation: mean, higher_is_better: true}}]
"""
    )
    (folder / "lost.yaml").write_text(
        (folder / "letters.yaml")
        .read_text()
        .replace("task: letters", "task: lost")
        .replace("rows.json", "nowhere.json")
    )
    (folder / "unsafe.yaml").write_text(
        (folder / "letters.yaml").read_text().replace("task: letters", "task: unsafe")
        + "unsafe_code: true\n"
    )
    return folder


def scores_by_hand(bundle: Path, form: str, questions, is_chat: bool = False) -> torch.Tensor:
    """Log-probability of each choice (question, choice)."""
    served = load_served(bundle, form)

    def prompt_ids(prompt: str) -> list[int]:
        if is_chat:
            message = [{"role": "user", "content": prompt}]
            prompt = served.tokenizer.apply_chat_template(
                message, tokenize=False, add_generation_prompt=True
            )
        return served.tokenizer(prompt)["input_ids"]

    def score(start: list[int], choice: str) -> float:
        ids = torch.tensor([start + served.tokenizer(choice)["input_ids"]])
        with torch.no_grad():
            logits = served.model(input_ids=ids).logits[0, :-1].log_softmax(-1)
        return sum(float(logits[i, ids[0, i + 1]]) for i in range(len(start) - 1, len(logits)))

    starts = [prompt_ids(question["prompt"]) for question in questions]
    return torch.tensor([[score(start, choice) for choice in CHOICES] for start in starts])


def labels(questions) -> torch.Tensor:
    return torch.tensor([question["label"] for question in questions])


@pytest.mark.parametrize("form", ["trained", "merged"])
def test_a_local_task_measures_what_it_measures_by_hand(train, folder, questions, form):
    bundle = train().bundle
    found = run_harness(bundle, form, ["letters"], include_path=folder)
    acc = found["tasks"]["letters"]["metrics"]["acc"]
    guesses = scores_by_hand(bundle, form, questions).argmax(1)
    assert acc["value"] == pytest.approx(float((guesses == labels(questions)).float().mean()))
    assert acc["value"] > 0.5  # a quarter would be chance
    assert acc["higher_is_better"] is True
    p = acc["value"]
    assert acc["stderr"] == pytest.approx((p * (1 - p) / (len(questions) - 1)) ** 0.5)


def test_an_adapter_of_chat_rows_is_asked_in_chat(train, folder, questions, tiny_data, tmp_path):
    rows = [json.loads(line) for line in tiny_data.read_text().splitlines()]
    roles = (("user", "prompt"), ("assistant", "completion"))
    chats = [
        {"messages": [{"role": role, "content": row[key]} for role, key in roles]} for row in rows
    ]
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps(chat) + "\n" for chat in chats))
    bundle = train(data=DataSpec(train=str(tmp_path / "chats.jsonl"), test_fraction=0.3)).bundle
    assert read_manifest(bundle)["data"]["prompt_style"] == "chat"
    found = run_harness(bundle, "trained", ["likely"], include_path=folder)
    value = found["tasks"]["likely"]["metrics"]["perplexity"]["value"]
    right = labels(questions)[:, None]
    chat, plain = (
        float(scores_by_hand(bundle, "trained", questions, is_chat).gather(1, right).mean())
        for is_chat in (True, False)
    )
    assert value == pytest.approx(chat, abs=1e-3)
    assert abs(chat - plain) > 0.1


def test_the_result_says_what_was_measured(train, folder):
    bundle = train().bundle
    found = run_harness(
        bundle, "trained", ["letters", "written"], include_path=folder, limit=4, batch_size=3
    )
    assert json.loads(json.dumps(found)) == found
    assert found["format"] == "lorchestra.harness/1"
    assert found["adapter"] == read_manifest(bundle)["digest"]
    assert (found["form"], found["limit"]) == ("trained", 4)
    assert found["packages"].keys() >= {"lm_eval", "torch", "transformers"}
    assert {name: task["rows"] for name, task in found["tasks"].items()} == {
        "letters": 4, "written": 4
    }  # fmt: skip
    assert found["tasks"]["letters"]["version"] == 3
    assert found["tasks"]["letters"]["num_fewshot"] == 0
    generated = found["tasks"]["written"]["metrics"]["exact_match,letter"]
    assert 0.0 <= generated["value"] <= 1.0


@pytest.mark.slow  # lm-eval reads its 14 thousand task files
def test_an_unknown_task_is_refused_with_what_there_is(train, folder):
    said = (
        r"tasks: got 'lettres'; allowed: letters, likely, lost, unsafe, written of include_path, "
        r"one of the \d+ of lm-eval [0-9.]+ \(near: letters.*\)\. Correct the name"
    )
    with pytest.raises(SpecError, match=said):
        run_harness(train().bundle, "trained", ["letters", "lettres"], include_path=folder)


def test_rows_that_are_not_there_are_told(train, folder):
    with pytest.raises(DataError, match=r"tasks: the rows of lost cannot be read .*nowhere\.json"):
        run_harness(train().bundle, "trained", ["lost"], include_path=folder)


def test_a_task_that_runs_code_is_refused(train, folder):
    with pytest.raises(SpecError, match="tasks: got 'unsafe', which runs generated code"):
        run_harness(train().bundle, "trained", ["unsafe"], include_path=folder)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"limit": 0}, "limit: got 0; allowed: 1 or more"),
        ({"batch_size": 0}, "batch_size: got 0; allowed: 1 or more"),
        ({"tasks": []}, "tasks: got none; allowed: one or more names"),
        ({"include_path": Path("nowhere")}, "include_path: got 'nowhere'; allowed: a folder"),
    ],
    ids=["limit", "batch_size", "tasks", "include_path"],
)
def test_impossible_options_are_refused(tmp_path, options, said):
    with pytest.raises(SpecError, match=said):
        run_harness(tmp_path, "trained", **{"tasks": ["letters"], **options})


def test_without_the_extra_the_remedy_is_told(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)  # what Python makes of a missing package
    with pytest.raises(SpecError, match=r"Install it: pip install 'lorchestra\[lm-eval\]'"):
        run_harness(tmp_path, "trained", ["letters"])
