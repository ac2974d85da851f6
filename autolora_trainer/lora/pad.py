"""An adapter of unequal ranks filled up with zeros to one rank, for tools and servers that know one rank alone."""

import copy

import torch
from peft import LoraConfig
from torch.nn.functional import pad

from autolora_trainer.names import factors


def padded(
    config: LoraConfig,
    tensors: dict[str, torch.Tensor],
    scales: dict[str, float],
    experts: dict[str, int] | None = None,
) -> tuple[LoraConfig, dict[str, torch.Tensor]]:
    """The same updates at one rank and one scale, without patterns.

    Where A and B are zero, so are their gradients: any training leaves the filling as it is.

    Args:
        config, tensors: as PEFT saves an adapter.
        scales: {module in the file: what its update is multiplied with}.
        experts: {module in the file: how many it stacks}, of those that stack any.
    Returns:
        (config, tensors); the scale of all is that of the first module, and what differs is in B.
    Raises:
        ValueError: for DoRA, whose magnitudes belong to the update, and for what is no linear layer.
    """
    if config.use_dora:
        raise ValueError("The adapter is DoRA, which is not filled up with zeros. Leave --pad out.")
    found, config, scale = dict(tensors), copy.deepcopy(config), next(iter(scales.values()))
    named = factors(tensors, config.modules_to_save)
    count = {match[1]: (experts or {}).get(match[1], 1) for match in named.values()}
    largest = max(tensors[name].shape[0] // count[match[1]] for name, match in named.items() if match[3] == "A")
    for name, match in named.items():
        tensor, own = tensors[name], count[match[1]]
        if match[2] or tensor.dim() != 2:
            raise ValueError(f"{name!r} is of no linear layer, and is not filled up with zeros. Leave --pad out.")
        if match[3] == "A":  # row e r + j
            of_each = tensor.unflatten(0, (own, -1))
            found[name] = pad(of_each, (0, 0, 0, largest - of_each.shape[1])).flatten(0, 1).contiguous()
        else:  # column j E + e
            wide = pad(tensor * (scales[match[1]] / scale), (0, largest * own - tensor.shape[1]))
            found[name] = wide.contiguous()
    alpha = scale * largest
    config.r, config.lora_alpha = largest, round(alpha) if abs(alpha - round(alpha)) < 1e-9 else alpha
    config.rank_pattern, config.alpha_pattern, config.use_rslora = {}, {}, False
    return config, found
