"""Does the report say what the ranks are: every rank in its place, in text and in pictures?"""

import csv
import re

import pytest

from autolora_trainer import report
from autolora_trainer.ranks import LearnedRanks, ModuleRank


def learned(ranks, **more):
    return LearnedRanks({name: ModuleRank(rank) for name, rank in ranks.items()}, **more)


def roberta(layers=12):
    """Rank i of query i, and 20 + i of value i, so that a misplaced cell shows."""
    name = "roberta.encoder.layer.{}.attention.self.{}"
    return learned({name.format(i, p): i + 20 * (p == "value") for i in range(layers) for p in ("query", "value")})


def test_grid_has_blocks_across_and_projections_down():
    rows, columns, grid = report.rank_grid(roberta())
    assert rows == ["query", "value"]
    assert columns == [str(i) for i in range(12)]
    assert grid == [list(range(12)), list(range(20, 32))]


def test_blocks_are_sorted_by_number_whatever_the_order_of_the_names():
    modules = dict(reversed(roberta().modules.items()))
    rows, columns, grid = report.rank_grid(LearnedRanks(modules))
    assert columns == [str(i) for i in range(12)]
    assert grid[rows.index("query")][1] == 1 and grid[rows.index("query")][11] == 11


def test_fused_parts_have_rows_of_their_own():
    ranks = learned({f"transformer.h.{i}.attn.c_attn#{p}": i for i in (0, 3) for p in "qv"})
    assert report.rank_grid(ranks) == (["c_attn#q", "c_attn#v"], ["0", "3"], [[0, 3], [0, 3]])


def test_labels_are_the_shortest_that_tell_projections_apart():
    parts = ["attention.self.query", "attention.output.dense", "intermediate.dense", "output.dense"]
    rows, _, grid = report.rank_grid(learned({f"bert.encoder.layer.7.{p}": i for i, p in enumerate(parts)}))
    assert rows == ["query", "attention.output.dense", "intermediate.dense", "output.dense"]
    assert grid == [[0], [1], [2], [3]]


def test_encoder_and_decoder_with_the_same_block_numbers_stay_apart():
    names = [
        "encoder.block.0.layer.0.SelfAttention.q",
        "decoder.block.0.layer.0.SelfAttention.q",
        "decoder.block.0.layer.1.EncDecAttention.q",
    ]
    rows, columns, grid = report.rank_grid(learned({name: i for i, name in enumerate(names)}))
    assert rows == ["encoder SelfAttention.q", "decoder SelfAttention.q", "decoder EncDecAttention.q"]
    assert columns == ["0"] and grid == [[0], [1], [2]]


def test_modules_without_a_block_share_a_last_column():
    ranks = learned({"model.layers.0.q_proj": 1, "lm_head": 4, "model.layers.1.q_proj": 2})
    assert report.rank_grid(ranks) == (["q_proj", "lm_head"], ["0", "1", "-"], [[1, 2, None], [None, None, 4]])


@pytest.mark.parametrize(
    "names", [["0", "1"], ["seq.0", "seq.2"], ["a.0.q", "a.q"], ["q", "a.0.q", "b.0.q"], ["a.0.b.1.q"]]
)
def test_no_module_is_lost_whatever_the_names(names):
    rows, _, grid = report.rank_grid(learned({name: i + 1 for i, name in enumerate(names)}))
    assert len(set(rows)) == len(rows)
    assert sorted(rank for row in grid for rank in row if rank is not None) == list(range(1, len(names) + 1))


def test_table_of_few_blocks():
    assert report.format_rank_table(learned({f"h.{i}.attn.{p}": i for i in range(3) for p in "qv"})) == (
        "block  0  1  2\n" "q      0  1  2\n" "v      0  1  2\n" "total rank 6 in 6 modules, 2 of them at rank 0"
    )


@pytest.mark.parametrize("layers", [1, 24, 48, 96])
def test_table_of_many_blocks_wraps_and_keeps_every_rank(layers):
    text = report.format_rank_table(roberta(layers))
    assert max(map(len, text.splitlines())) <= 100
    rows = [line.split() for line in text.splitlines()]
    assert [int(cell) for row in rows if row[:1] == ["query"] for cell in row[1:]] == list(range(layers))
    assert [int(cell) for row in rows if row[:1] == ["block"] for cell in row[1:]] == list(range(layers))


def test_heatmap_is_written_twice_with_every_rank_as_text(tmp_path):
    ranks = roberta()
    png, svg = report.save_rank_heatmap(ranks, tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["rank_heatmap.png", "rank_heatmap.svg"]
    assert open(png, "rb").read(8) == b"\x89PNG\r\n\x1a\n"
    texts = re.findall(r"<text[^>]*>([^<]*)</text>", open(svg, encoding="utf-8").read())
    for rank in ranks.ranks.values():
        assert str(rank) in texts
    assert {"query", "value", "block"} <= set(texts)


def test_heatmap_bytes_depend_on_the_ranks_alone(tmp_path):
    def both():
        return [open(path, "rb").read() for path in report.save_rank_heatmap(roberta(), tmp_path)]

    first = both()
    assert both() == first
    assert b"<dc:date>" not in first[1]


@pytest.mark.parametrize(
    "ranks", [learned({"lm_head": 0}), learned({}), learned({"h.0.$x^{2}$<b>&": 512}), roberta(60)]
)
def test_heatmap_of_unusual_ranks(tmp_path, ranks):
    png, svg = report.save_rank_heatmap(ranks, tmp_path, title="$\\frac{ <b>&'")
    assert "&lt;b&gt;" in open(svg, encoding="utf-8").read()


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
    report.save_selection_history(tmp_path / "h.csv", tmp_path / "h.png")
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
        report.save_selection_history(tmp_path / "h.csv", tmp_path / "h.png")


def test_comparison_aligns_and_names_a_shared_metric():
    rows = [
        dict(method="autolora", score=0.75, metric="accuracy", adapter_params=73728, wall_seconds=95.2),
        dict(method="majority", score=0.5, metric="accuracy", adapter_params=None, wall_seconds=None),
    ]
    assert report.format_comparison(rows).splitlines() == [
        "method    accuracy  adapter parameters        time",
        "--------  --------  ------------------  ----------",
        "autolora    0.7500              73,728  1 min 35 s",
        "majority    0.5000                   -           -",
    ]
    assert report.format_comparison(rows, markdown=True).splitlines()[1].count("|") == 5
    mixed = report.format_comparison([*rows, dict(method="lora", score=67.91, metric="BLEU")])
    assert "67.91 BLEU" in mixed and "0.7500 accuracy" in mixed


def test_cost_shows_the_phases_there_are():
    phase = {"wall_seconds": 4000, "passes": 1200, "examples": 19200, "peak_memory_mb": 812.3}
    lines = report.format_cost({"retrain": phase, "total": phase, "command": "x"}).splitlines()
    assert [line.split()[0] for line in lines[2:]] == ["retrain", "total"]
    assert "1 h 06 min" in lines[2] and "19,200" in lines[2] and "812 MB" in lines[2]


@pytest.mark.parametrize(
    "seconds, shown", [(0.04, "0.0 s"), (9.96, "10 s"), (59.7, "1 min 00 s"), (3599.8, "1 h 00 min")]
)
def test_times_round_without_sixty_seconds(seconds, shown):
    assert shown in report.format_cost({"total": {"wall_seconds": seconds}})


@pytest.mark.parametrize(
    "rank, allowed", [(0, 8), (1, 8), (8, 8), (9, 16), (65, 128), (257, 320), (321, 512), (512, 512)]
)
def test_servers_get_a_rank_that_they_accept(rank, allowed):
    assert report.lora_rank_for_servers(learned({"q": rank, "v": 0})) == allowed


def test_a_rank_beyond_all_servers_is_refused():
    with pytest.raises(ValueError, match="up to rank 512, got rank 513"):
        report.lora_rank_for_servers(learned({"q": 513}))
