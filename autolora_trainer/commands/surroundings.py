"""What `autolora find` and `compress` share around their call: a quiet terminal with one bar, and the upload."""

import logging
import os
import sys

import datasets
import torch
from tqdm.auto import tqdm
from transformers.utils import logging as transformers_logging

from autolora_trainer.clean import usable_token
from autolora_trainer.compat import silence_known_warnings
from autolora_trainer.errors import is_first_process
from autolora_trainer.hub.push import check_repo_id, push_to_hub
from autolora_trainer.lora.bits import check_bitsandbytes, quantization
from autolora_trainer.training.processes import launched


class BesideTheBar(logging.Handler):
    """Log lines on stderr that leave a bar whole."""

    def emit(self, record):
        tqdm.write(self.format(record), file=sys.stderr)


def one_bar(handler: logging.Handler | None = None) -> None:
    """Show the package's log, by default on stderr, and neither warnings about nothing of the user's nor bars but that
    of the call."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    datasets.disable_progress_bars()
    silence_known_warnings()
    logger = logging.getLogger("autolora_trainer")
    if is_first_process() and (handler or not any(isinstance(own, BesideTheBar) for own in logger.handlers)):
        logger.addHandler(handler or BesideTheBar())
        logger.setLevel(logging.INFO)
        logger.propagate = False


def loading(options) -> dict:
    """What `from_pretrained` is given for a base model: its devices and its bits.

    Raises:
        ValueError: for 4 bits without bitsandbytes.
    """
    bits, place = 4 if options.load_in_4bit else None, options.device_map
    check_bitsandbytes(bits)
    if bits and place is None and launched() > 1 and torch.accelerator.is_available():
        place = {"": int(os.environ["LOCAL_RANK"])}  # which nobody moves afterwards
    how = quantization(bits, "bfloat16" if options.bf16 else "float32")
    return {"device_map": place} | ({} if how is None else {"quantization_config": how})


def repository(options) -> str | None:
    """Where the result is pushed to; None where it is not.

    Raises:
        ValueError: for what cannot be the name of a repository, and for a name without `--push_to_hub`.
    """
    options.hub_token = usable_token(options.hub_token, "hub_token")
    if not options.push_to_hub:
        if options.hub_model_id is not None:
            raise ValueError(f"--hub_model_id {options.hub_model_id} belongs to --push_to_hub. Add it, or drop both.")
        return None
    name = options.hub_model_id or os.path.basename(os.path.normpath(options.output_dir))
    check_repo_id(name)
    return name


def pushed(options, folder: str, name: str) -> str:
    """Upload a written adapter; what there is to say of it."""
    url = push_to_hub(folder, name, options.hub_token, options.hub_private_repo or None)
    return f"pushed to {url}"
