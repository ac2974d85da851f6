"""`LearnedRanks`: what the search hands to the retrain, as `ranks.json` on disk, and as PEFT's `rank_pattern`."""

import dataclasses
import json
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from autolora_trainer.clean import usable_token
from autolora_trainer.drawing import style
from autolora_trainer.files import read_bounded, write_atomically
from autolora_trainer.names import check_names, module_of
from autolora_trainer.ranks.adapter_config import CONFIG_FILE
from autolora_trainer.ranks.adapter_file import AdapterFile
from autolora_trainer.ranks.curve import Curve
from autolora_trainer.ranks.document import ADVICE, FORMAT_VERSION, NUMBERS, is_number, read_document
from autolora_trainer.ranks.grid import by_module, format_rank_table
from autolora_trainer.ranks.heatmap import heatmap_figure
from autolora_trainer.ranks.html import format_rank_html
from autolora_trainer.ranks.pattern import lora_pattern, mean_rank

if TYPE_CHECKING:  # PEFT loads torch, which reading ranks does without
    from peft import LoraConfig

RANKS_FILE = "ranks.json"
MAX_FILE_BYTES = 20_000_000


@dataclass(frozen=True)
class ModuleRank:
    """The rank of one module and what is behind it; a pattern that no search made has neither.

    Attributes:
        selection: α of its components, (k,).
        contributions: what its components take off the held-out loss, by falling singular value; see `contributions`.
        experts: how many matrices have this rank, of a parameter that stacks them; None: it is a module.
    """

    rank: int
    selection: tuple[float, ...] = ()
    contributions: tuple[float, ...] = ()
    experts: int | None = None


@dataclass(frozen=True)
class LearnedRanks:
    """Ranks per module.

    Attributes:
        modules: names as in the base model's `named_modules()`, of experts as in its `named_parameters()`, each with
            its rank (0: left out of the adapter).
        base_model: Hub id or folder name of the model they were learned on.
        base_model_fingerprint: see `fingerprint`.
        initial_rank, constraint, rank_rule, threshold: how they were learned.
        curve: held-out loss against size, where the size was found; `curve.decided` is False where the search has
            learned nothing that held-out rows can see.
    Example:
        >>> ranks = LearnedRanks({"encoder.q": ModuleRank(2), "encoder.v": ModuleRank(4)}, initial_rank=8)
        >>> ranks.to_lora_config(lora_alpha=16).rank_pattern
        {'^encoder\\\\.q': 2, '^encoder\\\\.v': 4}
    """

    modules: dict[str, ModuleRank] = field(default_factory=dict)
    base_model: str | None = None
    base_model_fingerprint: str | None = None
    initial_rank: int = 8
    constraint: str | None = None
    rank_rule: str | None = None
    threshold: float | None = None
    curve: Curve | None = None

    def __str__(self) -> str:
        return format_rank_table(self.ranks)

    @property
    def ranks(self) -> dict[str, int]:
        return {name: module.rank for name, module in self.modules.items()}

    @property
    def parameters(self) -> list[str]:
        """Names that are none of modules, but of parameters (experts)."""
        return [name for name, module in self.modules.items() if module.experts is not None]

    @property
    def shades(self) -> dict[str, float]:
        """How dark the cell of every module is, 0 to 1: what it takes off the held-out loss, over the largest; its
        rank over the largest where that was not measured."""
        gains = {name: max(0.0, sum(module.contributions)) for name, module in self.modules.items()}
        values = gains if any(gains.values()) else self.ranks
        largest = max(values.values(), default=0) or 1
        return {name: value / largest for name, value in values.items()}

    @property
    def title(self) -> str:
        """Of a picture."""
        model = (self.base_model or "").rstrip("/\\").replace("\\", "/").rsplit("/", 1)[-1]
        return f"LoRA ranks of {model}" if model else "LoRA ranks"

    def plot(self):
        """The grid as a matplotlib figure."""
        with style():
            return heatmap_figure(self.ranks, self.shades, self.title)

    def _repr_mimebundle_(self, include=None, exclude=None) -> dict[str, str]:
        """The grid in a notebook, as text and as HTML."""
        gain = sum(max(0.0, sum(module.contributions)) for module in self.modules.values())
        tips = {
            name: f"{name}: rank {module.rank}"
            + (f", {sum(module.contributions) / gain:.1%} of the held-out gain" if gain else "")
            for name, module in self.modules.items()
        }
        return {"text/plain": str(self), "text/html": format_rank_html(self.ranks, self.shades, tips)}

    def to_pandas(self):
        """A row a module: name, rank, contribution (nats a target, of all its components together)."""
        import pandas

        columns = {"module": list(self.modules), "rank": list(self.ranks.values())}
        columns["contribution"] = [sum(m.contributions) if m.contributions else None for m in self.modules.values()]
        return pandas.DataFrame(columns)

    @property
    def module_ranks(self) -> dict[str, int]:
        """See `by_module`."""
        return by_module(self.ranks)

    @property
    def total_rank(self) -> int:
        return sum(self.ranks.values())

    @property
    def mean_rank(self) -> float:
        """See `ranks.pattern.mean_rank`."""
        return mean_rank(self.ranks)

    def to_json(self) -> str:
        """The content of ranks.json.

        Raises:
            ValueError: for what could not be read again: names that are none of modules, a selection that is not of
                finite numbers.
        """
        check_names({module_of(name) for name in self.modules})
        modules = {}
        for name, module in self.modules.items():
            modules[name] = {"rank": module.rank}
            for what in NUMBERS:
                values = getattr(module, what)
                if not all(map(is_number, values)):
                    raise ValueError(f"The {what} of {name!r} must hold finite numbers, got {values}."[:300])
                modules[name][what] = [float(f"{value:.9g}") for value in values]
            if module.experts is not None:
                modules[name]["experts"] = module.experts
        head = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in ("modules", "curve")}
        head["base_model"] = self.base_model and "".join(filter(str.isprintable, self.base_model))[:500]
        curve = None if self.curve is None else self.curve.to_dict()
        document = {"format_version": FORMAT_VERSION, **head, "total_rank": self.total_rank, "curve": curve}
        document["modules"] = modules
        return json.dumps(document, indent=1, allow_nan=False) + "\n"

    def save(self, path: str | os.PathLike) -> None:
        """Write `ranks.json`, whole or not at all."""
        write_atomically(os.fspath(path), self.to_json())

    @classmethod
    def load(cls, path: str | os.PathLike) -> "LearnedRanks":
        """Read `ranks.json`. It is data from elsewhere: everything in it is checked before any of it is used.

        Raises:
            ValueError: one line that names the file and what is wrong with it.
            OSError: if it cannot be read.
        """
        if (size := os.path.getsize(path)) > MAX_FILE_BYTES:
            raise ValueError(f"{path} has {size:,} bytes; a ranks.json has at most {MAX_FILE_BYTES:,}.")
        try:
            text = read_bounded(path, MAX_FILE_BYTES)
        except ValueError as error:  # not UTF-8, or no regular file
            raise ValueError(f"{path} is not a ranks.json: {error}. {ADVICE}") from None
        fields = read_document(text, path)
        return cls(**{**fields, "modules": {name: ModuleRank(*own) for name, own in fields["modules"].items()}})

    @classmethod
    def from_pretrained(
        cls, source: str | os.PathLike, revision: str | None = None, token: str | None = None
    ) -> "LearnedRanks":
        """Ranks from a `ranks.json`, a folder or repository of the Hub that holds one, or any LoRA adapter.

        Raises:
            ValueError: if there is none, it cannot be reached, or it is not valid.
        """
        source = os.fspath(source)
        path = os.path.join(source, RANKS_FILE) if os.path.isdir(source) else source
        if os.path.exists(path):
            return cls.load(path)
        if os.path.isdir(source):
            if not os.path.exists(os.path.join(source, CONFIG_FILE)):
                what = f"{source} holds neither {RANKS_FILE} nor {CONFIG_FILE}"
                raise ValueError(f"{what}. Give the output directory of a finished run, or an adapter.")
            return cls.from_adapter(AdapterFile.from_pretrained(source))
        from huggingface_hub.errors import EntryNotFoundError

        from autolora_trainer import hub_client

        try:
            path = hub_client.download(source, RANKS_FILE, MAX_FILE_BYTES, revision, token)
        except EntryNotFoundError:  # a repository of another's
            return cls.from_adapter(AdapterFile.from_pretrained(source, revision, token))
        except Exception as error:  # HTTP, JSON, OS and value errors of the client
            what = f"{source!r} is neither a folder or file here nor a repository that gives a {RANKS_FILE}"
            raise ValueError(f"{what}: {hub_client.reason(error, token)}.") from error
        return cls.load(path)

    @classmethod
    def from_adapter(cls, adapter: AdapterFile) -> "LearnedRanks":
        """The ranks of an adapter, whoever trained it."""
        experts = adapter.experts
        modules = {name: ModuleRank(rank, experts=experts.get(name)) for name, rank in adapter.ranks.items()}
        base_model = adapter.config.get("base_model_name_or_path")
        return cls(modules, base_model, initial_rank=max(adapter.ranks.values()))

    def push_to_hub(self, repo_id: str, token: str | None = None, private: bool | None = None) -> str:
        """Share the pattern alone, as `ranks.json` in a repository, and return its address; see `from_pretrained`.

        Raises:
            ValueError: one line, with the reason, if the Hub does not take it.
        """
        from huggingface_hub import HfApi

        from autolora_trainer import hub_client

        token = usable_token(token)
        try:
            with hub_client.bounded_waits():
                api = HfApi(token=token)
                url = api.create_repo(repo_id, private=private, exist_ok=True)
                content = self.to_json().encode()
                api.upload_file(path_or_fileobj=content, path_in_repo=RANKS_FILE, repo_id=url.repo_id)
        except Exception as error:  # HTTP, JSON, OS and value errors of the client
            raise ValueError(f"Could not push the ranks to {repo_id}: {hub_client.reason(error, token)}.") from error
        return str(url)

    def to_lora_config(
        self, base: "LoraConfig | None" = None, scaling: str = "constant", **lora_arguments
    ) -> "LoraConfig":
        """An ordinary PEFT `LoraConfig` with these ranks as `rank_pattern`.

        Args:
            base: a `LoraConfig` whose other settings (task type, dropout, `modules_to_save` …) are kept; or give
                them as keyword arguments.
            scaling: PEFT multiplies an update by `lora_alpha / r`. `constant` gives every module the same scale,
                `lora_alpha` over the mean rank of the modules that have any, which is plain LoRA's where ranks are
                equal, through `alpha_pattern`. One learning rate then serves all sizes. As it is also the config's own
                `lora_alpha / r`, servers that read one scale for all modules compute the same.
                `paper` keeps `lora_alpha` fixed, as the paper's code does, so a module of rank 2 gets four times the
                scale of rank 8.
        Ranks of parts of a fused projection (`c_attn#q`) add up to the rank of the whole, and an adapter of this
        config trains all of it, keys too; `build_adapter` keeps the parts apart.
        Raises:
            ValueError: if every rank is zero (PEFT has no empty adapter), or `scaling` is unknown.
        """
        from peft import LoraConfig

        settings = {**_lora_settings(base), **lora_arguments}
        lora_alpha = settings.pop("lora_alpha", 16)
        pattern = lora_pattern(self.ranks, lora_alpha, bool(settings.get("use_rslora")), scaling, self.parameters)
        return LoraConfig(**settings, **pattern)

    def check_names(self, names, exactly: bool = False) -> None:
        """Raise `ValueError` unless every module here is among `names`, of a model's modules and parameters; of a part
        of a fused projection the module, or `exactly` the part."""
        names = set(names)
        missing = [name for name in self.modules if (name if exactly else module_of(name)) not in names]
        if missing and exactly:
            raise ValueError(
                f"ranks.json names {len(self.modules)} modules, and this run adapts other ones: not {missing[0]!r}. "
                f"Give the --lora_target_modules of its search, and the same checkpoint ({self.base_model})."
            )
        if missing:
            raise ValueError(
                f"ranks.json names {len(self.modules)} modules, and the model lacks {len(missing)} of them; the first "
                f"is {missing[0]!r}. Was it learned on another checkpoint ({self.base_model})?"
            )


def _lora_settings(base: "LoraConfig | None") -> dict:
    """The init fields of a LoraConfig, less those that the ranks decide."""
    decided = {"r", "target_modules", "target_parameters", "exclude_modules", "rank_pattern", "alpha_pattern"}
    fields = () if base is None else dataclasses.fields(base)
    return {f.name: getattr(base, f.name) for f in fields if f.init and f.name not in {*decided, "peft_type"}}
