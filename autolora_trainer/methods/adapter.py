"""The method `adapter`: bottleneck adapters (Houlsby et al. 2019) beside a frozen base model; see `bottleneck.py`.

What it leaves is not PEFT's, and loads like this: model = load_bottleneck_adapter(base_model, folder)
"""

import os
from dataclasses import dataclass

import torch
from transformers.trainer import TRAINING_ARGS_NAME

from autolora_trainer.files import replacing
from autolora_trainer.hub.card import Card
from autolora_trainer.methods.base import Built, Job, Method, Plan, SavedForm
from autolora_trainer.methods.bottleneck import (
    DEFAULT_SIZE,
    add_bottlenecks,
    find_outputs,
    is_saved_in,
    load_bottleneck_adapter,
    load_weights,
    save_bottleneck_adapter,
)
from autolora_trainer.training.processes import refuse_sharding
from autolora_trainer.training.trainer import FinalTrainer
from autolora_trainer.values import setting


@dataclass
class AdapterArguments:
    adapter_size: int | None = setting(
        None, f"Width of the bottleneck of --method adapter. Default: {DEFAULT_SIZE} (Houlsby et al.)."
    )
    adapter_layer_norm: bool | None = setting(
        None, "adapter: train the layer norms too. Default: true, as Houlsby et al. do."
    )


class BottleneckTrainer(FinalTrainer):
    """The standard Trainer, whose checkpoints and result are the small files and not the whole model."""

    def _save(self, output_dir=None, state_dict=None):
        if not self.args.should_save:
            return
        folder = output_dir or self.args.output_dir
        os.makedirs(folder, exist_ok=True)
        save_bottleneck_adapter(self.model, folder)
        if self.processing_class is not None:
            self.processing_class.save_pretrained(folder)
        with replacing(os.path.join(folder, TRAINING_ARGS_NAME)) as temporary:
            torch.save(self.args, temporary)

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        load_weights(self.model, resume_from_checkpoint)

    def _load_best_model(self):
        load_weights(self.model, self.state.best_model_checkpoint)


class Adapter(Method):
    name = "adapter"
    arguments = AdapterArguments
    form = SavedForm(is_saved_in, load_bottleneck_adapter)
    base_stays_frozen = False

    def prepare(self, job: Job) -> Plan:
        find_outputs(job.source.loaded())
        refuse_sharding(job.request.training, f"--method {self.name} saves whole tensors")
        settings = job.request.settings
        size = DEFAULT_SIZE if settings.adapter_size is None else settings.adapter_size
        layer_norm = settings.adapter_layer_norm is not False
        task_type = job.request.task.task_type
        return lambda: Built(
            add_bottlenecks(job.source.base_model(), size, layer_norm, task_type=task_type), trainer=BottleneckTrainer
        )

    def card(self, folder: str) -> Card:
        sentence = "Bottleneck adapters (Houlsby et al. 2019){of_base}, trained on {data}."
        return Card(self.name, sentence, library="autolora_trainer")
