"""One small file per method.

A method is a function `build(run) -> Built`: from a `pipeline.Run` to the model that the final training trains. What
follows (training, evaluation, files) is the same for all of them.
"""

from autolora_trainer.methods import adalora, autolora, lora, random, uniform

METHODS = {
    "autolora": autolora.build,
    "lora": lora.build,
    "adalora": adalora.build,
    "uniform": uniform.build,
    "random": random.build,
}
# What a method refuses before anything is written: `check(run)` raises ValueError.
CHECKS = {"adalora": adalora.check}
