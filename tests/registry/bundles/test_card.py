"""The card of an adapter."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from markdown_it import MarkdownIt

from registry.bundles.card import CardFacts, build_card
from registry.errors import RegistryError
from registry.evaluations.evaluation import Evaluation
from tests.support.bundles import new_document

NewDocument = Callable[..., dict[str, Any]]

HOSTILE = "<img src=x>|`ticks`|**bold**\n# head"


@pytest.fixture
def manifest(new_bundle: Callable[..., Path]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((new_bundle() / "manifest.json").read_text())
    return found


@pytest.fixture
def facts(manifest: dict[str, Any]) -> CardFacts:
    losses = [0.2, 0.4, 0.3, 0.1, 0.5, 0.3]
    evaluations = [
        Evaluation.from_document(new_document(losses)),
        Evaluation.from_document(new_document([one + 0.1 for one in losses], form="merged")),
    ]
    return CardFacts(
        name="support-answers",
        version=7,
        manifest=manifest,
        sweep={
            "name": "support", "id": "s123", "trials": 40, "rank": 1, "metric": "test_loss",
            "mean": 0.2871234, "half_width": 0.0123, "runs": 3,
        },
        evaluations=evaluations,
        base_scores={"test": {"loss": 2.5, "accuracy": 0.05}},
        licenses={"base": "Apache-2.0", "adapter": "MIT"},
    )  # fmt: skip


def tokens_of(card):
    return MarkdownIt("commonmark").enable("table").parse(card)


def tables_of(card):
    """Every table as rows of cell texts."""
    tables, tokens = [], tokens_of(card)
    for place, token in enumerate(tokens):
        if token.type == "table_open":
            tables.append([])
        elif token.type == "tr_open":
            tables[-1].append([])
        elif token.type in ("th_open", "td_open"):
            inline = tokens[place + 1]
            parts = [one.content for one in inline.children or []]
            tables[-1][-1].append("".join(parts).strip())
    return tables


def test_the_card_says_what_it_is_and_how_it_was_found(facts):
    card = build_card(facts)
    assert card.startswith("# support-answers, version 7\n")
    for part in (
        "`owner/name` at `c0ffee`", "nf4 with double quantization", "rank 4, alpha 8,",
        "on `q_proj`, `v_proj`", "(form `trained`)", "`support` `s123`, which tried 40",
        "number 1", "mean `test_loss` of 0.2871 ± 0.0123 over 3 runs", "80 steps on 1,234 tokens",
        "learning rate 0.001, seed 7",
    ):  # fmt: skip
        assert part in card


def test_scores_stand_beside_those_of_the_base_with_intervals(facts):
    scores, costs, data = tables_of(build_card(facts))
    assert scores[0][:3] == ["form", "rows", "loss"]
    assert "perplexity" not in scores[0]
    assert [row[0] for row in scores[1:]] == ["trained", "merged", "base alone"]
    loss = scores[1][2]
    assert loss.startswith("0.15 [0.")
    assert loss.endswith("]")
    assert scores[3][2] == "2.5"
    assert scores[3][scores[0].index("bits_per_byte")] == "–"
    assert "**trained**" in build_card(facts)
    assert "**merged**" in build_card(replace(facts, form="merged"))
    assert "On 6 rows of test" in build_card(facts)
    assert [row[0] for row in costs[1:]] == ["trained", "merged"]
    assert costs[1][1:] == ["0.50 GiB", "123.5 kB", "1.2 kB", "40"]
    assert data[1][0] == "train"
    assert data[3] == ["test", "cc", "6"]


def test_without_evaluations_the_card_has_what_training_measured(facts):
    named = {"test": {"test_loss": 2.5}}  # as training names them
    card = build_card(replace(facts, evaluations=(), base_scores=named))
    assert ["test", "loss", "1.25", "2.5"] in tables_of(card)[0]
    assert "without intervals" in card


def test_what_is_not_known_is_left_out_or_said(manifest):
    bare = CardFacts(name="x", manifest={**manifest, "metrics": {}})
    card = build_card(bare)
    assert card.startswith("# x\n")
    assert "## Scores" not in card
    assert "Found by" not in card
    assert "adapters.load('x/VERSION')" in card
    assert card.count("not stated") == 3


def test_licences_are_those_stated(facts):
    card = build_card(facts)
    assert "- base: Apache-2.0\n- data: not stated\n- adapter: MIT" in card
    with pytest.raises(RegistryError, match=r"card.licenses: got modell; allowed: base"):
        build_card(replace(facts, licenses={"modell": "MIT"}))


def test_an_unknown_form_is_refused(facts):
    with pytest.raises(RegistryError, match=r"card.form: got 'onnx'; allowed: trained"):
        build_card(replace(facts, form="onnx"))


@pytest.mark.parametrize(
    ("form", "quantization", "lora", "part"),
    [
        ("trained", "nf4", {}, "vllm serve owner/name --revision c0ffee --quantization "
         "bitsandbytes --enable-lora --max-lora-rank 8 --lora-modules support-answers=adapter"),
        ("unquantized", "nf4", {"rank": 40}, "c0ffee --enable-lora --max-lora-rank 64 --lora"),
        ("trained", "none", {}, "c0ffee --enable-lora"),
        ("merged", "nf4", {}, "vllm serve merged\n"),
        ("requantized", "nf4", {}, "vllm serve merged --quantization bitsandbytes"),
        ("trained", "nf4", {"dora": True}, "vLLM serves no DoRA adapters"),
        ("trained", "nf4", {"rank": 1024}, "vLLM serves ranks up to 512"),
    ],
    ids=["trained", "unquantized", "unquantized base", "merged", "requantized", "dora", "rank"],
)  # fmt: skip
def test_the_way_to_serve_it_fits_the_form(facts, form, quantization, lora, part):
    manifest = dict(facts.manifest)
    manifest["base"] = {**manifest["base"], "quantization": quantization}
    manifest["lora"] = {**manifest["lora"], **lora}
    card = build_card(replace(facts, form=form, manifest=manifest))
    assert part in card
    assert ("merge_and_unload" in card) == (form in ("merged", "requantized"))


def test_a_base_that_is_no_hub_model_is_named_as_such(facts):
    base = {**facts.manifest["base"], "source": "gguf", "model": "package:smol/file.gguf",
            "revision": None}  # fmt: skip
    card = build_card(replace(facts, manifest={**facts.manifest, "base": base}))
    assert "vllm serve BASE --quantization" in card
    assert "BASE is a folder with `package:smol/file.gguf`" in card


def test_code_in_the_card_is_python(facts):
    blocks = [each for each in tokens_of(build_card(facts)) if each.type == "fence"]
    assert [each.info for each in blocks] == ["python", "sh"]
    compile(blocks[0].content, "card", "exec")


def test_rows_that_splits_share_are_told(facts):
    overlap = {"rows": "validation", "other": "train", "same": 18, "near": 2, "total": 20}
    data = {**facts.manifest["data"], "overlaps": [overlap]}
    card = build_card(replace(facts, manifest={**facts.manifest, "data": data}))
    assert (
        "18 of 20 validation rows are also training rows, and 2 more are nearly the same as one."
    ) in card
    assert "also training rows" not in build_card(facts)


def test_how_prompts_were_made_is_told(facts):
    def card(**layout):
        data = {**facts.manifest["data"], "layout": layout}
        return build_card(replace(facts, manifest={**facts.manifest, "data": data}))

    assert r"by `'{q}\nA: '`." in card(format="prompt-completion", template="{q}\nA: ")
    assert "in Alpaca's words" in card(format="alpaca", template=None)
    assert "Prompts were made" not in card(format="prompt-completion", template=None)


def test_foreign_text_stays_text(facts):
    manifest = dict(facts.manifest)
    manifest["base"] = {**manifest["base"], "model": HOSTILE, "revision": HOSTILE,
                        "source": "local"}  # fmt: skip
    manifest["lora"] = {**manifest["lora"], "targets": [HOSTILE, "q_proj"]}
    manifest["data"] = {**manifest["data"], "train": HOSTILE, "prompt_style": HOSTILE}
    manifest["data"]["overlaps"] = [
        {"rows": HOSTILE, "other": HOSTILE, "same": HOSTILE, "near": HOSTILE, "total": HOSTILE}
    ]
    strange = replace(
        facts,
        name="a|b <b>",
        manifest=manifest,
        sweep={"name": HOSTILE, "id": HOSTILE, "metric": HOSTILE, "mean": 1.0, "half_width": 0.1},
        licenses=dict.fromkeys(("base", "data", "adapter"), HOSTILE),
        verdict=HOSTILE,
    )
    card = build_card(strange)
    tokens = tokens_of(card)
    kinds = {child.type for token in tokens for child in token.children or []}
    assert kinds <= {"text", "text_special", "code_inline", "softbreak", "strong_open",
                     "strong_close"}  # fmt: skip
    assert "html_block" not in {token.type for token in tokens}
    heads = [token.tag for token in tokens if token.type == "heading_open"]
    assert heads == ["h1"] + ["h2"] * 6
    assert all(len({len(row) for row in rows}) == 1 for rows in tables_of(card))


def test_a_usual_card_fits_into_mlflows_description(facts):
    assert len(build_card(facts)) < 5000


def test_a_card_of_chats_says_how_to_ask_and_where_to_stop(facts):
    data = {
        **facts.manifest["data"],
        "prompt_style": "chat",
        "end_tokens": {"<|im_end|>": 7, "<|call|>": 3},
        "template_args": {"enable_thinking": False, "strftime_now": "2026-01-31"},
        "prefill_cut": "<think>\n",
        "learned": {"train": {"tools": 4}},
    }
    card = build_card(replace(facts, manifest={**facts.manifest, "data": data}))
    for part in (
        'model.predict([{"messages": [{"role": "user", "content": "…"}], "tools": [{…}]}])',
        "Answers end with `<|im_end|>`, `<|call|>`", '`"stop_token_ids": [3, 7]`',
        "is given `enable_thinking=false`",
        "today's date, training had `2026-01-31`",
        'without the `"<think>\\n"` that the template',
    ):  # fmt: skip
        assert part in card
