"""Does the held-out evidence tell signal from noise?"""

import torch

from tests.helpers.rows import rows
from tests.helpers.trainings import searcher


def test_held_out_evidence_tells_signal_from_noise(tmp_path):
    """Held-out loss falls on a task; noise is wanted smaller: the same rows with random labels."""
    data = rows(256)
    shuffled = torch.randint(0, 2, (256,), generator=torch.Generator().manual_seed(5)).tolist()
    evidence = {}
    for name, chosen in {
        "signal": data,
        "noise": data.remove_columns("labels").add_column("labels", shuffled),
    }.items():
        trainer = searcher(
            tmp_path, dropout=0.0, data=chosen, max_steps=60, hypergradient="first_order", hypergradient_interval=1
        )
        trainer.train()
        evidence[name] = trainer.held_out_evidence()
        assert (trainer.probe.energy > 0).all() and trainer.probe.count == 60
    (_, falls), (gain, trend) = evidence["signal"], evidence["noise"]
    assert falls > 3 and gain < 0 and trend < 2
