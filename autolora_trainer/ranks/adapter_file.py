"""What a saved LoRA adapter is, whoever trained it: by adapter_config.json and the header of its weights alone.

No model is loaded, no weight is read, nothing is unpickled.
"""

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from autolora_trainer.files import check_regular, read_json
from autolora_trainer.names import TENSOR

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
MAX_CONFIG_BYTES, MAX_HEADER_BYTES = 5_000_000, 30_000_000
BITS = {"BOOL": 8, "F4": 4, "F64": 64, "F32": 32, "F16": 16, "BF16": 16, "F8_E4M3": 8, "F8_E5M2": 8}


@dataclass(frozen=True)
class AdapterFile:
    """A LoRA adapter as it lies in a folder or on the Hub.

    Attributes:
        config: adapter_config.json.
        tensors: {name in the file: (dtype, as `BF16`, and shape)}.
    """

    config: Mapping
    tensors: Mapping[str, tuple[str, tuple[int, ...]]]

    @classmethod
    def from_pretrained(
        cls, source: str | os.PathLike, revision: str | None = None, token: str | None = None
    ) -> "AdapterFile":
        """The adapter of a folder or of a repository of the Hub, of which a few kilobytes are fetched.

        Raises:
            ValueError: one line, if there is none, it is no LoRA adapter, or its weights are a pickle.
        """
        source = os.fspath(source)
        if os.path.isdir(source):
            config, tensors = _in_folder(source)
        else:
            config, tensors = _on_hub(source, revision, token)
        if not isinstance(config, dict) or str(config.get("peft_type", "")).upper() != "LORA":
            kind = config.get("peft_type") if isinstance(config, dict) else None
            raise ValueError(f"{source} is an adapter of type {kind!r}, and only LoRA has ranks. Give a LoRA adapter.")
        found = cls(config, tensors)
        if not found.ranks:
            raise ValueError(f"{source} has no tensor of a LoRA adapter in {WEIGHTS_FILE}. Save it again with PEFT.")
        return found

    @property
    def ranks(self) -> dict[str, int]:
        """{module: rank}, by the shapes of the weights; an adapter's experts, which share a tensor, by its config."""
        found = {}
        for name, (_, shape) in self.tensors.items():
            match = TENSOR.fullmatch(name)
            if match and match[3] == "A" and shape:
                found[match[1]] = self._rank_of_experts(match[1]) or shape[0]
        return found

    def _rank_of_experts(self, name: str) -> int | None:
        owners = {path.rpartition(".")[0] for path in self.config.get("target_parameters") or ()}
        bare = name.removesuffix(".base_layer")
        is_expert = any(bare == owner or bare.endswith(f".{owner}") for owner in owners if owner)
        return _by_pattern(self.config.get("rank_pattern"), bare, self.config.get("r")) if is_expert else None

    @property
    def scales(self) -> dict[str, float]:
        """{module: what its update is multiplied with}: lora_alpha / r, of rsLoRA lora_alpha / √r."""
        alphas, alpha = self.config.get("alpha_pattern"), self.config.get("lora_alpha", 8)
        root = math.sqrt if self.config.get("use_rslora") else float
        return {name: _by_pattern(alphas, name, alpha) / root(max(rank, 1)) for name, rank in self.ranks.items()}

    @property
    def parameters(self) -> int:
        """Of the factors of all updates."""
        return sum(math.prod(shape) for name, (_, shape) in self.tensors.items() if TENSOR.fullmatch(name))

    @property
    def other_parameters(self) -> int:
        """Of what is saved beside them: heads and other `modules_to_save`, embeddings, DoRA's magnitudes."""
        return sum(math.prod(shape) for _, shape in self.tensors.values()) - self.parameters

    @property
    def labels(self) -> int | None:
        """How many outputs the saved head of a classifier has; None where there is no head that is known."""
        for name, (_, shape) in self.tensors.items():
            if re.search(r"\.(score|classifier|classifier\.out_proj)\.weight$", name):
                return shape[0]
        return None

    @property
    def megabytes(self) -> float:
        """Of all tensors, 10^6 bytes each."""
        return sum(math.prod(shape) * BITS.get(dtype, _digits(dtype)) / 8e6 for dtype, shape in self.tensors.values())

    @property
    def dtypes(self) -> tuple[str, ...]:
        return tuple(sorted({dtype for dtype, _ in self.tensors.values()}))


def _digits(dtype: str) -> int:
    """Bits of a dtype that carries them in its name, as I8 and U16."""
    return int(re.sub(r"\D", "", dtype.partition("_")[0]) or 32)


def _by_pattern(pattern: Mapping | None, name: str, default):
    """The value that PEFT takes for a module: of the first key that its name ends with, or the default."""
    for key, value in (pattern or {}).items():
        if re.match(rf"(.*\.)?({key})$", name):
            return value
    return default


def _in_folder(folder: str):
    path, weights = (os.path.join(folder, name) for name in (CONFIG_FILE, WEIGHTS_FILE))
    if not os.path.exists(path):
        raise ValueError(f"{folder} holds no {CONFIG_FILE}. Give the folder of a saved adapter.")
    if not os.path.exists(weights):
        pickled = os.path.exists(os.path.join(folder, "adapter_model.bin"))
        why = "its weights are a pickle, which can run code" if pickled else "it holds no weights"
        raise ValueError(f"{folder} has no {WEIGHTS_FILE}: {why}. Save it with save_pretrained of a current PEFT.")
    from safetensors import SafetensorError, safe_open

    check_regular(folder)
    try:
        with safe_open(weights, framework="np") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}
            tensors = {name: (own.get_dtype(), tuple(own.get_shape())) for name, own in slices.items()}
    except SafetensorError as error:
        raise ValueError(f"{weights} is no safetensors file ({error}). Save the adapter again.") from None
    return read_json(path), tensors


def _on_hub(repo_id: str, revision: str | None, token: str | None):
    from huggingface_hub import HfApi

    from autolora_trainer import hub_client

    try:
        path = hub_client.download(repo_id, CONFIG_FILE, MAX_CONFIG_BYTES, revision, token)
        with hub_client.bounded_waits(MAX_HEADER_BYTES):
            api = HfApi(token=token)
            metadata = api.parse_safetensors_file_metadata(repo_id, WEIGHTS_FILE, revision=revision)
    except Exception as error:  # HTTP, JSON, OS and value errors of the client
        what = f"{repo_id!r} is neither a folder here nor a repository with {CONFIG_FILE} and {WEIGHTS_FILE}"
        raise ValueError(f"{what}: {hub_client.reason(error, token)}.") from error
    return read_json(path), {name: (own.dtype, tuple(own.shape)) for name, own in metadata.tensors.items()}
