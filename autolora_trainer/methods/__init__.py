"""One small file per method.

A method is a function `build(run) -> Built`: from a `pipeline.Run` to the model that the final training trains. What
follows (training, evaluation, files) is the same for all of them.
"""

from autolora_trainer.methods import autolora, lora, uniform

METHODS = {"autolora": autolora.build, "lora": lora.build, "uniform": uniform.build}
