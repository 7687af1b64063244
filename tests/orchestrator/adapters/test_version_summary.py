"""A version in short: the verdict first, then about ten facts."""

import io
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from rich.console import Console

from orchestrator.adapters.version_summary import describe_verdict, render_version_summary
from registry import AdapterVersion, AliasMove

VERSION = AdapterVersion(
    name="tiny",
    version=1,
    run_id="abc123",
    digest="sha256:00",
    metrics={"test_loss": 1.23456789, "eval_loss": 2.0, "tokens_per_s": 5.0},
    tags={
        "base.model": "owner/[base]", "quantization": "nf4", "lora.rank": "4", "lora.alpha": "8",
        "lora.targets": "q_proj,v_proj", "optim.learning_rate": "0.001", "steps": "40",
        "seed": "7", "lorchestra.trial": "5", "lorchestra.sweep": "ab12", "package.torch": "2",
    },
    created_at=datetime(2026, 3, 4, 5, 6, tzinfo=UTC),
)  # fmt: skip


def move(number, target, alias="champion", why="better by 0.1", **changes):
    values = {
        "number": number, "alias": alias, "source": None, "target": target, "who": "eva",
        "at": datetime(2026, 3, 5, 12, tzinfo=UTC), "why": why,
    }  # fmt: skip
    return AliasMove(**(values | changes))


@pytest.mark.parametrize(
    ("aliases", "retired", "moves", "verdict"),
    [
        (("champion",), "", [move(1, 1)],
         "tiny/1 is the champion; it became champion on 2026-03-05 (eva): better by 0.1"),
        (("champion",), "", [move(1, 1), move(2, 2), move(3, 1, is_rollback=True, why="")],
         "tiny/1 is the champion; it became champion by a rollback on 2026-03-05 (eva), "
         "without a reason given"),
        ((), "", [move(1, 1), move(2, 2, why="better still")],
         "tiny/1 is not the champion any more; tiny/2 replaced it on 2026-03-05 (eva): "
         "better still"),
        (("challenger",), "", [move(1, 2), move(2, 1, "challenger", "not better")],
         "tiny/1 is not the champion; the gate refused it on 2026-03-05 (eva): not better"),
        ((), "broken (eva, 2026)", [move(1, 1), move(2, None)],
         "tiny/1 is not the champion, because it is retired: broken (eva, 2026)"),
        ((), "", [move(1, 1, is_done=False)],
         "tiny/1 is not the champion, because it was not put to the gate: "
         "lorchestra adapters promote tiny/1"),
    ],
    ids=["champion", "rolled-back", "replaced", "refused", "retired", "never-challenged"],
)  # fmt: skip
def test_the_verdict_says_whether_it_is_champion_and_why(aliases, retired, moves, verdict):
    version = replace(VERSION, aliases=aliases, retired=retired)
    assert describe_verdict(version, moves) == verdict


def test_a_version_shows_the_verdict_then_about_ten_facts_and_the_command_for_the_rest():
    console = Console(file=io.StringIO(), width=100)
    console.print(render_version_summary(VERSION, [], 3))
    lines = console.file.getvalue().splitlines()
    assert lines[0].startswith("tiny/1 is not the champion")
    facts = [line for line in lines[1:-1] if line.strip()]
    assert 8 <= len(facts) <= 12
    text = "\n".join(facts)
    for part in ("owner/[base] nf4", "1.2346 on test rows, 2.0000 on validation rows",
                 "rank 4, alpha 8, targets q_proj,v_proj", "learning rate 0.001"):  # fmt: skip
        assert part in text
    assert "package.torch" not in text
    assert lines[-1] == "All records and 3 evaluations: lorchestra adapters show tiny/1 --all"
