"""Is every rank in its place in the table, whatever the names of its module?"""

import pytest

from autolora_trainer.ranks.grid import format_rank_table, rank_grid
from autolora_trainer.ranks.learned import LearnedRanks
from autolora_trainer.ranks.serving import lora_rank_for_servers
from tests.helpers.ranks import of_ranks, roberta


def test_grid_has_blocks_across_and_projections_down():
    rows, columns, grid = rank_grid(roberta().ranks)
    assert rows == ["query", "value"]
    assert columns == [str(i) for i in range(12)]
    assert grid == [list(range(12)), list(range(20, 32))]


def test_blocks_are_sorted_by_number_whatever_the_order_of_the_names():
    modules = dict(reversed(roberta().modules.items()))
    rows, columns, grid = rank_grid(LearnedRanks(modules).ranks)
    assert columns == [str(i) for i in range(12)]
    assert grid[rows.index("query")][1] == 1 and grid[rows.index("query")][11] == 11


def test_fused_parts_have_rows_of_their_own():
    ranks = of_ranks({f"transformer.h.{i}.attn.c_attn#{p}": i for i in (0, 3) for p in "qv"})
    assert rank_grid(ranks.ranks) == (["c_attn#q", "c_attn#v"], ["0", "3"], [[0, 3], [0, 3]])


def test_labels_are_the_shortest_that_tell_projections_apart():
    parts = ["attention.self.query", "attention.output.dense", "intermediate.dense", "output.dense"]
    rows, _, grid = rank_grid(of_ranks({f"bert.encoder.layer.7.{p}": i for i, p in enumerate(parts)}).ranks)
    assert rows == ["query", "attention.output.dense", "intermediate.dense", "output.dense"]
    assert grid == [[0], [1], [2], [3]]


def test_encoder_and_decoder_with_the_same_block_numbers_stay_apart():
    names = [
        "encoder.block.0.layer.0.SelfAttention.q",
        "decoder.block.0.layer.0.SelfAttention.q",
        "decoder.block.0.layer.1.EncDecAttention.q",
    ]
    rows, columns, grid = rank_grid(of_ranks({name: i for i, name in enumerate(names)}).ranks)
    assert rows == ["encoder SelfAttention.q", "decoder SelfAttention.q", "decoder EncDecAttention.q"]
    assert columns == ["0"] and grid == [[0], [1], [2]]


def test_modules_without_a_block_share_a_last_column():
    ranks = of_ranks({"model.layers.0.q_proj": 1, "lm_head": 4, "model.layers.1.q_proj": 2})
    assert rank_grid(ranks.ranks) == (["q_proj", "lm_head"], ["0", "1", "-"], [[1, 2, None], [None, None, 4]])


@pytest.mark.parametrize(
    "names", [["0", "1"], ["seq.0", "seq.2"], ["a.0.q", "a.q"], ["q", "a.0.q", "b.0.q"], ["a.0.b.1.q"]]
)
def test_no_module_is_lost_whatever_the_names(names):
    rows, _, grid = rank_grid(of_ranks({name: i + 1 for i, name in enumerate(names)}).ranks)
    assert len(set(rows)) == len(rows)
    assert sorted(rank for row in grid for rank in row if rank is not None) == list(range(1, len(names) + 1))


def test_table_of_few_blocks():
    assert format_rank_table(of_ranks({f"h.{i}.attn.{p}": i for i in range(3) for p in "qv"}).ranks) == (
        "block  0  1  2\n" "q      0  1  2\n" "v      0  1  2\n" "total rank 6 in 6 modules, 2 of them at rank 0"
    )


@pytest.mark.parametrize("layers", [1, 24, 48, 96])
def test_table_of_many_blocks_wraps_and_keeps_every_rank(layers):
    text = format_rank_table(roberta(layers).ranks)
    assert max(map(len, text.splitlines())) <= 100
    rows = [line.split() for line in text.splitlines()]
    assert [int(cell) for row in rows if row[:1] == ["query"] for cell in row[1:]] == list(range(layers))
    assert [int(cell) for row in rows if row[:1] == ["block"] for cell in row[1:]] == list(range(layers))


@pytest.mark.parametrize(
    "rank, allowed", [(0, 8), (1, 8), (8, 8), (9, 16), (65, 128), (257, 320), (321, 512), (512, 512)]
)
def test_servers_get_a_rank_that_they_accept(rank, allowed):
    assert lora_rank_for_servers(of_ranks({"q": rank, "v": 0}).ranks) == allowed


def test_a_rank_beyond_all_servers_is_refused():
    with pytest.raises(ValueError, match="up to rank 512, got rank 513"):
        lora_rank_for_servers(of_ranks({"q": 513}).ranks)
