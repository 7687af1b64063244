"""The facts that training and the registry share, and what they cost to import."""

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from trainables.contract import Formula, digest_file, file_record, identity_digest


def test_the_contract_needs_neither_torch_nor_mlflow():
    code = (
        "import sys, trainables.contract\n"
        "heavy = {'torch', 'transformers', 'mlflow', 'ray', 'pandas'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


def test_identity_leaves_out_what_may_differ_for_the_same_adapter():
    manifest = {"seed": 7, "metrics": {"loss": 1.0}, "packages": {"torch": "2"}, "digest": "x"}
    digest = identity_digest(manifest)
    assert digest == identity_digest({"seed": 7})
    assert digest != identity_digest({"seed": 8})
    assert digest.startswith("sha256:")


def test_a_file_is_recorded_by_content_and_size(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"abc")
    assert file_record(path) == {"sha256": digest_file(path), "bytes": 3}
    assert digest_file(path).startswith("ba7816bf8f01cfea")


@pytest.mark.parametrize(
    ("scale", "ratio", "expected"),
    [
        ("identity", 0.5, 0.5),
        ("exp", 0.5, math.exp(0.5)),
        ("exp", 1e4, math.inf),
        ("bits", 1.0, 1 / math.log(2)),
    ],
)
def test_a_formula_scales_one_ratio_and_many(scale, ratio, expected):
    formula = Formula(of="a", per=None, scale=scale, mode="min")
    assert float(formula.scaled(ratio)) == pytest.approx(expected)
    many = formula.scaled([[ratio, ratio]])
    assert many.shape == (1, 2)
    assert np.all(many == formula.scaled(ratio))
