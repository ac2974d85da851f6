"""Full fine-tuning: every parameter of the base model trains ("Full FT" in Tables 1-3).

What is left is an ordinary transformers checkpoint. The rate of 1e-4 that §5.1 gives for adapters is a high one here;
1e-5 to 5e-5 is usual for models of RoBERTa's size (`--learning_rate`).
"""

import os

from autolora_trainer.hub.card import Card
from autolora_trainer.methods.base import Built, Job, Method, Plan, SavedForm

WEIGHTS = ("model.safetensors", "model.safetensors.index.json")  # the second: of weights in several files


def is_saved_in(folder: str) -> bool:
    """Whether a full checkpoint lies in `folder`."""
    return os.path.isfile(os.path.join(folder, "config.json")) and any(
        os.path.isfile(os.path.join(folder, name)) for name in WEIGHTS
    )


class Full(Method):
    name = "full"
    form = SavedForm(is_saved_in, load=None, what="model", trained="base")
    base_stays_frozen = False

    def prepare(self, job: Job) -> Plan:
        return lambda: Built(job.source.base_model().requires_grad_(True))

    def card(self, folder: str) -> Card:
        return Card(self.name, "{base}, fully fine-tuned on {data}.", library="transformers")
