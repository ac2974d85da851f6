"""What goes wrong: a killed process, numbers that are none, a machine without Java."""

import shutil


def interrupt(monkeypatch, trainer_class, after):
    """Die at the so-many-th training step, as a killed process does."""
    original, calls = trainer_class.training_step, [0]

    def dying(self, *args, **kwargs):
        if type(self) is trainer_class:
            calls[0] += 1
            if calls[0] > after:
                raise KeyboardInterrupt
        return original(self, *args, **kwargs)

    monkeypatch.setattr(trainer_class, "training_step", dying)


def spoil(trainer, what, steps, value=float("nan")):
    """Make the loss, a gradient or the hypergradient of some optimizer steps (from 1) `value`."""
    original = trainer.compute_loss if what == "loss" else trainer.training_step

    def compute_loss(model, inputs, return_outputs=False, **kwargs):
        loss, outputs = original(model, inputs, return_outputs=True, **kwargs)
        loss = loss * value if trainer.state.global_step + 1 in steps else loss
        return (loss, outputs) if return_outputs else loss

    def training_step(model, inputs, num_items_in_batch=None):
        loss = original(model, inputs, num_items_in_batch)
        if trainer.state.global_step + 1 in steps:
            first = next(p for p in model.parameters() if p.grad is not None)
            first.grad.view(-1)[0] = value
        return loss

    def step_selection(result):
        if trainer.state.global_step + 1 in steps:
            result.direct[0, 0] = value
        return select(result)

    if what == "loss":
        trainer.compute_loss = compute_loss
    elif what == "gradient":
        trainer.training_step = training_step
    else:
        select, trainer._step_selection = trainer._step_selection, step_selection


def hide_java(monkeypatch):
    """From now on there is no `java`, and the metrics that need it are left out."""
    which = shutil.which
    monkeypatch.setattr(shutil, "which", lambda name, *a, **k: None if name == "java" else which(name, *a, **k))
