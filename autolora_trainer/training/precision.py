"""What a forward pass has to have fixed to be repeated, or to be compared with another: random numbers, fp32."""

from contextlib import contextmanager

import torch


class RandomState:
    """The state of the generators that dropout draws from, to be restored before a pass is repeated."""

    def __init__(self, device: torch.device):
        self.device = device
        self.cpu = torch.get_rng_state()
        self.accelerator = None if device.type == "cpu" else getattr(torch, device.type).get_rng_state(device)

    def restore(self) -> None:
        torch.set_rng_state(self.cpu)
        if self.accelerator is not None:
            getattr(torch, self.device.type).set_rng_state(self.accelerator, self.device)


def is_full_precision(model: torch.nn.Module) -> bool:
    """Whether `model` runs in fp32 as it is: no autocast around its `forward`, no TF32 in its products."""
    return not hasattr(model, "_original_forward") and torch.backends.cuda.matmul.fp32_precision != "tf32"


@contextmanager
def full_precision(model: torch.nn.Module):
    """Inside, `model` runs without the autocast that accelerate wrapped around its `forward`, and without TF32, which
    `--tf32` and `--torch_compile` turn on.

    The difference of two bf16 passes is mostly rounding; two fp32 passes measure the implicit term of Eq. 5.
    """
    wrapped, original = model.forward, getattr(model, "_original_forward", None)  # set by Accelerator.prepare_model
    products = torch.backends.cuda.matmul.fp32_precision
    if products == "tf32":
        torch.backends.cuda.matmul.fp32_precision = "ieee"
    if original is not None:
        model.forward = original
    try:
        yield
    finally:
        if original is not None:
            model.forward = wrapped
        if products == "tf32":
            torch.backends.cuda.matmul.fp32_precision = products
