"""What a saved LoRA adapter is, whoever trained it: by adapter_config.json and the header of its weights alone.

No model is loaded, no weight is read, nothing is unpickled.
"""

import math
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import permutations

from autolora_trainer.clean import usable_token
from autolora_trainer.files import open_regular, read_json
from autolora_trainer.names import MODULE, factors, wrapped
from autolora_trainer.ranks.adapter_config import (
    CONFIG_FILE,
    FREE,
    MAX_CONFIG_BYTES,
    check_config,
    patterns_of,
    read_config,
)
from autolora_trainer.ranks.matching import check_patterns, first_matches
from autolora_trainer.values import MAX_RANK

WEIGHTS_FILE = "adapter_model.safetensors"
MAX_HEADER_BYTES = 30_000_000
MOST_WRAPPERS = 4  # of one module, that are told apart
ANY_RANK = 64  # that a config may ask for beside smaller ones in the file
BITS = {"BOOL": 8, "F4": 4, "F64": 64, "F32": 32, "F16": 16, "BF16": 16, "F8_E4M3": 8, "F8_E5M2": 8}
Shapes = dict[str, tuple[str, tuple[int, ...]]]


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
        """The adapter of a folder or of a repository of the Hub, of which a few kilobytes are fetched. It may be a
        stranger's: what it says is checked before it is used.

        Raises:
            ValueError: one line, if there is none, it is no LoRA adapter, or its weights are a pickle.
        """
        source = os.fspath(source)
        if os.path.isdir(source):
            config, tensors = _in_folder(source)
        else:
            config, tensors = _on_hub(source, revision, token)
        if config["peft_type"].upper() != "LORA":
            kind = config["peft_type"][:40]
            raise ValueError(f"{source} is an adapter of type {kind!r}, and only LoRA has ranks. Give a LoRA adapter.")
        found = cls(config, tensors)
        try:
            found.scales  # which no later look waits for
        except ValueError as error:
            raise ValueError(f"{source} cannot be used: {error}. Save the adapter again with PEFT.") from None
        if not found.ranks:
            raise ValueError(f"{source} has no tensor of a LoRA adapter in {WEIGHTS_FILE}. Save it again with PEFT.")
        for name, rank in found.ranks.items():
            if not MODULE.fullmatch(name):
                raise ValueError(
                    f"{source} has a tensor of {name[:80]!r}, which is no name of a module. Save it again."
                )
            if rank > MAX_RANK:
                raise ValueError(
                    f"{source} has rank {rank:,} at {name!r}; at most {MAX_RANK} are taken. Save it again."
                )
        return found

    @cached_property
    def _rows(self) -> dict[str, int]:
        """{module in the file: rows of its lora_A}."""
        named = factors(self.tensors, self.config.get("modules_to_save")).items()
        shapes = {match[1]: self.tensors[name][1] for name, match in named if match[3] == "A"}
        return {module: shape[0] for module, shape in shapes.items() if shape}

    @cached_property
    def _parameters(self) -> dict[str, tuple[str, int]]:
        """{module in the file: (parameter, experts)}: all parameters of a module have as many experts, which tells
        those of unlike ranks apart."""
        given = self.config.get("target_parameters") or ()
        groups = wrapped(self._rows, [given] if isinstance(given, str) else given) if given else []
        names = [name for _, own in groups for name in own]
        asked = _by_pattern(self.config.get("rank_pattern"), names, self.config.get("r"))
        found = {}
        for modules, own in groups:
            rows = [self._rows[module] for module in modules]
            for ordered in permutations(own) if len(own) <= MOST_WRAPPERS else [own]:
                ranks = [asked[name] or 1 for name in ordered]
                if len({(count // rank, count % rank) for count, rank in zip(rows, ranks)}) == 1:
                    break
            else:
                ranks, ordered = [asked[name] or 1 for name in own], own
            experts = (max(1, count // rank) for count, rank in zip(rows, ranks))
            found |= dict(zip(modules, zip(ordered, experts)))
        return found

    @cached_property
    def names(self) -> dict[str, str]:
        """{module in the file: module or parameter of the model}."""
        return {module: self._parameters.get(module, (module, 1))[0] for module in self._rows}

    @cached_property
    def experts(self) -> dict[str, int]:
        """{parameter: the experts that it stacks}; they share tensors, and the configuration alone tells the rank."""
        return dict(self._parameters.values())

    @cached_property
    def ranks(self) -> dict[str, int]:
        """{module or parameter: rank}, by the shapes of the weights."""
        return {name: self._rows[module] // self.experts.get(name, 1) for module, name in self.names.items()}

    @cached_property
    def scales(self) -> dict[str, float]:
        """{module: what its update is multiplied with}: lora_alpha / r, of rsLoRA lora_alpha / √r."""
        alphas = _by_pattern(self.config.get("alpha_pattern"), self.ranks, self.config.get("lora_alpha", 8))
        root = math.sqrt if self.config.get("use_rslora") else float
        return {name: alphas[name] / root(max(rank, 1)) for name, rank in self.ranks.items()}

    @property
    def parameters(self) -> int:
        """Of the factors of all updates."""
        found = factors(self.tensors, self.config.get("modules_to_save"))
        return sum(math.prod(self.tensors[name][1]) for name in found)

    @property
    def other_parameters(self) -> int:
        """Of what is saved beside them: heads and other `modules_to_save`, embeddings, DoRA's magnitudes."""
        return sum(math.prod(shape) for _, shape in self.tensors.values()) - self.parameters

    @property
    def labels(self) -> int | None:
        """How many outputs the saved head of a classifier has; None where there is no head that is known."""
        for name, (_, shape) in self.tensors.items():
            if shape and re.search(r"\.(score|classifier|classifier\.out_proj)\.weight$", name):
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


def _by_pattern(pattern: Mapping | None, names, default) -> dict:
    """{module: the value that PEFT takes for it}: of the first key that its name ends with, or the default."""
    pattern, names = pattern or {}, list(names)
    found = first_matches(list(pattern), names) if pattern and names else {}
    return {name: pattern[found[name]] if name in found else default for name in names}


def read_header(path: str) -> Shapes:
    """{name: (dtype, shape)} of a safetensors file; no weight is read.

    Raises:
        ValueError: if it is none, or its header is too large.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with open_regular(path) as file:
            size = int.from_bytes(file.read(8), "little")
        if size > MAX_HEADER_BYTES:
            raise ValueError(f"its header has {size:,} bytes, and at most {MAX_HEADER_BYTES:,} are read")
        with safe_open(path, framework="np") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}
            return {name: (own.get_dtype(), tuple(own.get_shape())) for name, own in slices.items()}
    except (SafetensorError, ValueError) as error:
        raise ValueError(f"{path} is no safetensors file ({error}). Save the adapter again.") from None


def check_loadable(folder: str, modules: Iterable[str]) -> None:
    """Raise `ValueError` for an adapter, of whatever type of PEFT's, that would be no end loading, or take more memory
    than its weights are worth.

    Args:
        modules: names of those of the model that it is to be loaded on.
    """
    path, weights = (os.path.join(folder, name) for name in (CONFIG_FILE, WEIGHTS_FILE))
    config, shapes = read_config(path), read_header(weights)
    check_patterns(patterns_of(config), modules)
    largest = max((max(shape) for _, shape in shapes.values() if shape and math.prod(shape)), default=0)
    for name, value in config.items():
        if type(value) is int and value > max(MAX_RANK, largest) and not FREE.search(name):
            raise ValueError(f"{name} {value:,} is more than any tensor in {WEIGHTS_FILE} has")
    rank = max(AdapterFile(config, shapes).ranks.values(), default=0)
    asked = [config[name] for name in ("r", "init_r") if type(config.get(name)) is int]
    asked += [own for own in (config.get("rank_pattern") or {}).values() if type(own) is int]
    if rank and max(asked, default=0) > max(ANY_RANK, 4 * rank):
        raise ValueError(f"it asks for rank {max(asked):,}, and the largest in {WEIGHTS_FILE} is {rank}")


def _in_folder(folder: str) -> tuple[dict, Shapes]:
    path, weights = (os.path.join(folder, name) for name in (CONFIG_FILE, WEIGHTS_FILE))
    if not os.path.exists(path):
        raise ValueError(f"{folder} holds no {CONFIG_FILE}. Give the folder of a saved adapter.")
    if not os.path.exists(weights):
        pickled = os.path.exists(os.path.join(folder, "adapter_model.bin"))
        why = "its weights are a pickle, which can run code" if pickled else "it holds no weights"
        raise ValueError(f"{folder} has no {WEIGHTS_FILE}: {why}. Save it with save_pretrained of a current PEFT.")
    return read_config(path), read_header(weights)


def _on_hub(repo_id: str, revision: str | None, token: str | None) -> tuple[dict, Shapes]:
    from huggingface_hub import HfApi

    from autolora_trainer import hub_client

    token = usable_token(token)
    try:
        path = hub_client.download(repo_id, CONFIG_FILE, MAX_CONFIG_BYTES, revision, token)
        with hub_client.bounded_waits(most_bytes=MAX_HEADER_BYTES):
            api = HfApi(token=token)
            metadata = api.parse_safetensors_file_metadata(repo_id, WEIGHTS_FILE, revision=revision)
    except Exception as error:  # HTTP, JSON, OS and value errors of the client
        what = f"{repo_id!r} is neither a folder here nor a repository with {CONFIG_FILE} and {WEIGHTS_FILE}"
        raise ValueError(f"{what}: {hub_client.reason(error, token)}.") from error
    config = check_config(read_json(path, MAX_CONFIG_BYTES), f"{CONFIG_FILE} of {repo_id}")
    return config, {name: (own.dtype, tuple(own.shape)) for name, own in metadata.tensors.items()}
