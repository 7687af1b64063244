"""Start points of a sweep: the user's, the prior for the base, past winners."""

from typing import Any

import pytest

from orchestrator.errors import SweepSpecError
from orchestrator.search.startpoints import choose_start_points, usual_rate, warm_points
from orchestrator.spec.sections import SearchSpec
from orchestrator.spec.sweep import BudgetSpec, SweepSpec
from trainables.spec import BaseSpec, DataSpec, EvalSpec, OptimSpec

SPACE = {
    "lora.rank": {"choice": [4, 8, 16]},
    "lora.targets": {"choice": ["attention", ["q_proj", "v_proj"]]},
    "lora.dropout": {"uniform": [0.0, 0.1], "when": {"lora.rank": [8, 16]}},
    "optim.learning_rate": {"log_uniform": [1e-5, 1e-3]},
}
VERSION = {
    "base": {"model": "owner/name"},
    "lora": {"rank": 8, "alpha": 16.0, "targets": ["v_proj", "q_proj"], "dropout": 0.05},
    "optim": {"learning_rate": 5e-4, "schedule": "linear"},
    "seed": 3,
}


def build_sweep(space: dict[str, Any] | None = None, **search: Any) -> SweepSpec:
    return SweepSpec(
        name="tiny",
        base=BaseSpec(model="owner/name"),
        data=DataSpec(train="owner/rows"),
        optim=OptimSpec(steps=40),
        eval=EvalSpec(every=10),
        budget=BudgetSpec(trials=9),
        search=SearchSpec(**search),
        space=SPACE if space is None else space,
    )


def test_wishes_come_first_then_the_prior_then_past_versions() -> None:
    start = {"lora.rank": 16, "lora.targets": ["v_proj", "q_proj"]}
    spec = build_sweep(start=(start,), warm_start="names")
    asked = []

    def read(name: str) -> list[dict[str, Any]]:
        asked.append(name)
        return [VERSION]

    points = choose_start_points(spec, read, lambda base: 576)
    assert asked == ["names"]
    assert points[0] == {"lora.rank": 16, "lora.targets": ["q_proj", "v_proj"]}
    assert points[1]["optim.learning_rate"] == pytest.approx(usual_rate(576))
    assert points[2] == {
        "lora.rank": 8,
        "lora.targets": ["q_proj", "v_proj"],
        "lora.dropout": 0.05,
        "optim.learning_rate": 5e-4,
    }


def test_equal_points_are_one() -> None:
    spec = build_sweep(start=({"lora.rank": 4}, {"lora.rank": 4}), prior=False)
    assert choose_start_points(spec) == [{"lora.rank": 4}]


@pytest.mark.parametrize(
    ("start", "words"),
    [
        ({"lora.rank": 5}, ["search.start[1].lora.rank", "5", "4, 8, 16"]),
        ({"lora.rnk": 4}, ["search.start[1]", "lora.rnk", "lora.rank"]),
        ({"optim.learning_rate": 1.0}, ["search.start[1].optim.learning_rate", "0.001"]),
    ],
    ids=["value", "name", "bound"],
)
def test_wish_outside_of_the_space_is_refused(start: dict[str, Any], words: list[str]) -> None:
    spec = build_sweep(prior=False)
    with pytest.raises(SweepSpecError) as refusal:
        choose_start_points(build_sweep(prior=False, start=({"lora.rank": 4}, start)))
    assert spec.search.start == ()
    for word in words:
        assert word in str(refusal.value)


def test_wider_bases_want_lower_rates() -> None:
    assert usual_rate(2000) == pytest.approx(5e-4)
    assert usual_rate(576) == pytest.approx(8.5e-4, rel=0.02)
    assert usual_rate(8192) < usual_rate(4096) < usual_rate(576)


def test_prior_is_the_middle_of_ranges_at_the_usual_rate_within_its_bounds() -> None:
    space = SPACE | {
        "lora.dropout": {"uniform": [0.0, 0.1]},
        "optim.weight_decay": {"uniform": [0.0, 0.2]},
        "optim.learning_rate": {"log_uniform": [1e-6, 1e-4]},
    }
    (point,) = choose_start_points(build_sweep(space), read_width=lambda base: 576)
    assert point == {
        "lora.rank": 8,
        "lora.dropout": 0.05,
        "optim.weight_decay": 0.1,
        "optim.learning_rate": 1e-4,
    }


@pytest.mark.parametrize(
    ("space", "width", "search"),
    [
        (SPACE, None, {}),
        (SPACE | {"optim.learning_rate": {"choice": [1e-4, 1e-3]}}, 576, {}),
        ({"lora.rank": {"choice": [4, 8]}}, 576, {}),
        (SPACE, 576, {"prior": False}),
    ],
    ids=["unknown-base", "choices", "not-searched", "switched-off"],
)
def test_no_prior_where_nothing_is_known_or_to_be_known(
    space: dict[str, Any], width: int | None, search: dict[str, Any]
) -> None:
    spec = build_sweep(space, **search)
    assert choose_start_points(spec, read_width=lambda base: width) == []


def test_past_version_is_used_as_far_as_it_is_in_the_space() -> None:
    space = build_sweep().search_space
    outside = {"lora": {"rank": 64, "targets": "mlp", "dropout": 0.05}, "optim": {}}
    small = {"lora": {"rank": 4, "dropout": 0.05}, "optim": {"learning_rate": 1.0}}
    # Dropout is not searched at rank 4.
    assert warm_points(space, [outside, small]) == [{"lora.dropout": 0.05}, {"lora.rank": 4}]
    assert warm_points(space, [{}, {"lora": {"rank": 64}}]) == []
    assert len(warm_points(space, [VERSION, VERSION])) == 1


def test_past_alpha_is_read_per_rank_where_that_is_searched() -> None:
    space = build_sweep({"lora.alpha_per_rank": {"choice": [1, 2, 4]}}).search_space
    assert warm_points(space, [VERSION]) == [{"lora.alpha_per_rank": 2.0}]
