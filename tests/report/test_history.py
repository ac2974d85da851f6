"""Does a history become a picture, and is a file that is none named?"""

import csv

import pytest

from autolora_trainer.report.history import save_selection_history
from tests.helpers.ranks import roberta


def write_history(path, names, steps=4, k=3):
    with open(path, "w", newline="") as file:
        rows = [
            [step, name, *[(1 + step * j) / (k + step * k) for j in range(k)]]
            for step in range(steps)
            for name in names
        ]
        csv.writer(file).writerows([["step", "module", *[f"alpha_{j + 1}" for j in range(k)]], *rows])


@pytest.mark.parametrize("layers", [1, 5, 30])
def test_history_becomes_a_picture(tmp_path, layers):
    write_history(tmp_path / "h.csv", list(roberta(layers).modules))
    save_selection_history(tmp_path / "h.csv", tmp_path / "h.png")
    assert (tmp_path / "h.png").read_bytes()[:4] == b"\x89PNG"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["h.csv", "h.png"]


@pytest.mark.parametrize(
    "content, message",
    [
        ("", "not a selection history"),
        ("step,module,alpha_1\n", "holds no rows"),
        ("step,module,alpha_1\n0,q,0.5\n1,q\n", "line 3: expected step,module and 1 numbers, got '1,q'"),
        ("step,module,alpha_1\n0,q,x\n", "line 2"),
    ],
)
def test_a_file_that_is_no_history_is_named(tmp_path, content, message):
    (tmp_path / "h.csv").write_text(content)
    with pytest.raises(ValueError, match=message):
        save_selection_history(tmp_path / "h.csv", tmp_path / "h.png")
