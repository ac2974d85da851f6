"""Short trainings and searches on a tiny model."""

import torch
from peft import LoraConfig
from transformers import TrainerCallback, TrainingArguments

from autolora_trainer import AutoLoraTrainer, AutoLoraTrainingArguments
from tests.helpers.models import tiny_roberta
from tests.helpers.rows import rows


def short_training(folder, kind=None, **changes):
    """Arguments of a short, quiet training on the CPU, with weight decay and without checkpoints.

    Args:
        kind: `TrainingArguments` (the default), or a class of it.
    """
    settings = dict(
        output_dir=str(folder),
        learning_rate=1e-2,
        weight_decay=0.1,
        per_device_train_batch_size=8,
        use_cpu=True,
        save_strategy="no",
        disable_tqdm=True,
        report_to=[],
    )
    return (kind or TrainingArguments)(**{**settings, **changes})


LORA = LoraConfig(task_type="SEQ_CLS", target_modules=["query", "value"], lora_alpha=16, lora_dropout=0.1)


def arguments(folder, **changes):
    settings = dict(
        output_dir=str(folder),
        max_steps=12,
        per_device_train_batch_size=8,
        learning_rate=1e-2,
        initial_rank=4,
        val_fraction=0.5,  # of few rows
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        logging_steps=4,
        hypergradient_interval=2,
        hypergradient="finite_difference",
        lr_scheduler_type="constant",
    )
    return AutoLoraTrainingArguments(**{**settings, **changes})


def searcher(folder, dropout=0.1, data=None, callbacks=None, **changes):
    torch.manual_seed(0)
    model = tiny_roberta(hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout)
    config = LoraConfig(task_type="SEQ_CLS", target_modules=["query", "value"], lora_alpha=16, lora_dropout=dropout)
    return AutoLoraTrainer(
        model, arguments(folder, **changes), train_dataset=data or rows(), peft_config=config, callbacks=callbacks
    )


def trained_state(trainer):
    weights = {n: p.detach().clone() for n, p in trainer.model.named_parameters() if p.requires_grad}
    return {**weights, "logits": trainer.gates.logits.detach().clone()}


class StopAt(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step == self.step
        return control


class Watch(TrainerCallback):
    """Gradients that the optimizer is about to use."""

    def __init__(self):
        self.gradients = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
