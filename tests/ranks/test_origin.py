"""Does a fingerprint tell checkpoints apart?"""

from autolora_trainer.ranks.adapter import fingerprint
from tests.helpers.models import lora, tiny_roberta
from tests.helpers.ranks import names


def test_fingerprint_tells_checkpoints_apart_and_ignores_precision():
    model = tiny_roberta()
    mark = fingerprint(model, names(model))
    assert mark == fingerprint(lora(model, 4), names(tiny_roberta()))
    assert fingerprint(tiny_roberta(), names(model)) != mark
