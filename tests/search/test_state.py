"""Does a search go on exactly where it stopped?"""

import json
import os
import signal

import pytest
import torch

from autolora_trainer.errors import Terminated
from autolora_trainer.training.callbacks import TerminationCallback
from tests.helpers.planted import planted_search
from tests.helpers.trainings import StopAt, searcher, trained_state


def test_a_search_stopped_before_alpha_moved_goes_on_after_a_resume(tmp_path):
    """SIGTERM in the first steps: a checkpoint, and no complaint of what it has not learned."""
    termination, method = TerminationCallback(), {"hypergradient": "first_order"}  # at step 1 lora_B is zero
    termination.asked = signal.SIGTERM
    stopped = searcher(tmp_path, save_strategy="steps", save_steps=100, callbacks=[termination], **method)
    stopped.train()
    assert stopped.learned_ranks is None and stopped.state.global_step == 1
    with pytest.raises(Terminated, match="stopped by SIGTERM after step 1 of 12, and saved it"):
        termination.check(stopped.state)
    resumed = searcher(tmp_path, **method)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    whole = searcher(tmp_path / "whole", **method)
    whole.train()
    assert resumed.learned_ranks == whole.learned_ranks


@pytest.mark.parametrize("stop_at", [3, 8, 9, 12])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_resumed_search_ends_in_the_same_bits(tmp_path, stop_at, accumulation):
    """Dropout, shuffling, accumulation, in the middle of an epoch and at its end, and before a selection step or
    not."""
    settings = dict(
        gradient_accumulation_steps=accumulation,
        max_steps=12,
        save_strategy="steps",
        save_steps=1,
        search_look_steps=7,
    )
    whole = searcher(tmp_path / "whole", **settings)
    whole.train()
    part = searcher(tmp_path / "part", callbacks=[StopAt(stop_at)], **settings)
    part.train()
    torch.rand(7)  # another process has drawn other numbers
    resumed = searcher(tmp_path / "part", **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "part" / f"checkpoint-{stop_at}"))
    for name, value in trained_state(whole).items():
        assert torch.equal(trained_state(resumed)[name], value), name
    assert resumed.learned_ranks == whole.learned_ranks
    assert (resumed.measured_passes, resumed.selection_passes) == (whole.measured_passes, whole.selection_passes)
    assert resumed.rank_selection.checkpoint() == whole.rank_selection.checkpoint()
    history = [(tmp_path / name / "selection_history.csv").read_text() for name in ("whole", "part")]
    assert history[0] == history[1]


def test_search_that_had_settled_stays_settled_after_a_resume(tmp_path):
    settings = dict(max_steps=200, search_look_steps=20, save_strategy="steps", save_steps=20)
    whole = planted_search(tmp_path, **settings)
    whole.train()
    last = whole.state.global_step
    assert last < 200 and whole.rank_selection.settled
    resumed = planted_search(tmp_path, **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{last}"))
    assert resumed.state.global_step == last
    assert torch.equal(resumed.gates.logits, whole.gates.logits)
    assert resumed.learned_ranks == whole.learned_ranks


def test_checkpoint_of_other_modules_is_refused(tmp_path):
    trainer = searcher(tmp_path, save_strategy="steps", save_steps=4)
    trainer.train()
    checkpoint = str(tmp_path / "checkpoint-4")
    path = os.path.join(checkpoint, "selection.json")
    state = json.loads(open(path).read())
    with open(path, "w") as file:
        json.dump({**state, "names": state["names"][:-1]}, file)
    with pytest.raises(ValueError, match="The checkpoint searched 3 modules, the model has 4 others"):
        searcher(tmp_path).train(resume_from_checkpoint=checkpoint)
