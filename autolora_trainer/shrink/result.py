"""A compressed adapter: its sizes, its curve, and the ways out of memory."""

import copy
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

import torch
from peft import LoraConfig, PeftModel, get_peft_model, set_peft_model_state_dict

from autolora_trainer.compat import patterns_of_parameters
from autolora_trainer.drawing import drawn, figure_svg
from autolora_trainer.hub.adapter_card import write_adapter_card
from autolora_trainer.hub.push import check_repo_id, push_to_hub
from autolora_trainer.lora.fused import split_parts
from autolora_trainer.ranks.adapter import save_adapter
from autolora_trainer.ranks.adapter_file import AdapterFile
from autolora_trainer.ranks.curve import Curve
from autolora_trainer.ranks.grid import format_rank_table
from autolora_trainer.ranks.html import format_rank_html
from autolora_trainer.ranks.learned import LearnedRanks
from autolora_trainer.ranks.serving import lora_rank_for_servers
from autolora_trainer.report.curve import curve_figure
from autolora_trainer.report.findings import save_findings
from autolora_trainer.report.tables import format_table
from autolora_trainer.runs.record import seen, write_record

DTYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.float64: "F64"}


def as_file(config: LoraConfig, tensors: dict[str, torch.Tensor]) -> AdapterFile:
    """Tensors as if they had been read from a file."""
    return AdapterFile(
        config.to_dict(), {name: (DTYPES.get(t.dtype, "F32"), tuple(t.shape)) for name, t in tensors.items()}
    )


@dataclass
class CompressedAdapter:
    """A smaller adapter, not yet written.

    Attributes:
        config, tensors: as PEFT saves them, {name in the file: tensor}; every linear module has scale 1.
        ranks: `LearnedRanks` of all modules of the given adapter, with what their components contribute.
        given: of the given adapter, parameters, all_parameters (with heads and what else is saved) and megabytes.
        before: {module: rank} of the given adapter.
        curve: held-out loss against size; None where no rows judged it.
        largest: {components of a point of the curve: largest rank there}.
        command: argv that made it, for the card.
    """

    config: LoraConfig
    tensors: dict[str, torch.Tensor]
    ranks: LearnedRanks
    given: dict[str, float]
    before: dict[str, int] = field(default_factory=dict)
    curve: Curve | None = None
    largest: dict[int, int] = field(default_factory=dict)
    command: Sequence[str] = ()

    @property
    def file(self) -> AdapterFile:
        """Its sizes, scales and dtypes."""
        return as_file(self.config, self.tensors)

    def load(self, base_model: torch.nn.Module) -> PeftModel:
        """The adapter on its base model, as `PeftModel.from_pretrained` would load it; parts of fused projections stay
        apart in a training that follows."""
        with patterns_of_parameters():
            model = get_peft_model(base_model, copy.deepcopy(self.config))
        split_parts(model, self.ranks.ranks)
        set_peft_model_state_dict(model, dict(self.tensors))
        return model.eval()

    def save_pretrained(self, folder: str | os.PathLike, repo_id: str | None = None) -> None:
        """Write adapter_config.json, adapter_model.safetensors, ranks.json and its picture, the model card (for
        `repo_id`, if that is known), where there is a curve, curve.json and its picture, and last the record of what
        may be pushed; each file whole or not at all."""
        before = seen(folder)
        save_adapter(self.config, self.tensors, folder)
        save_findings(self.ranks, folder, self.file.parameters)
        judged = "held-out rows judged its size" if self.curve else "by its singular values alone, without data"
        sentence = f"A LoRA adapter for {{base}}, compressed from one of {self._given_size()}: {judged}."
        lines = [self._size(), self._table(markdown=True)]
        sizes = "\n\n".join(filter(None, lines))
        with drawn("README.md", "written"):
            write_adapter_card(folder, self.ranks, sentence, sizes, "compressed", self.command, repo_id)
        write_record(folder, before)

    def push_to_hub(self, repo_id: str, token: str | None = None, private: bool | None = None) -> str:
        """Upload it with its card; the address of the repository, which is made where there is none.

        Raises:
            ValueError: if `repo_id` is not the name of a repository.
            PushError: one line, with the reason, if the Hub does not take it.
        """
        check_repo_id(repo_id, "repo_id")
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, repo_id)
            return push_to_hub(folder, repo_id, token, private, commit_message="Upload the compressed adapter")

    def plot(self):
        """The curve as a matplotlib figure, with the size that was chosen."""
        if self.curve is None:
            raise ValueError("No held-out rows judged this size, so there is no curve. Give eval_dataset.")
        return curve_figure(self.curve, self.file.parameters)

    def _repr_mimebundle_(self, include=None, exclude=None) -> dict[str, str]:
        """Sizes, curve, and the grid before and after, in a notebook, as text and as HTML."""
        after = self.ranks._repr_mimebundle_()["text/html"]
        tips = {name: f"{name}: rank {rank}, now {self.ranks.ranks[name]}" for name, rank in self.before.items()}
        before = format_rank_html(self.before, self.ranks.shades, tips)
        grids = f"<div><b>given</b>{before}</div><div><b>compressed</b>{after}</div>"
        html = f"<p>{escape(self._size())}</p><div style='display:flex;flex-wrap:wrap;gap:2em'>{grids}</div>"
        if self.curve is not None:
            html += figure_svg(self.plot())
        return {"text/plain": str(self), "text/html": html}

    def __str__(self) -> str:
        return "\n".join(filter(None, [self._table(), format_rank_table(self.ranks.ranks), self._size()]))

    def _size(self) -> str:
        own = self.file
        share = own.parameters / self.given["parameters"]
        return (
            f"{own.parameters:,} of {self._given_size()} ({share:.0%}), {own.megabytes:.2f} of "
            f"{self.given['megabytes']:.2f} MB; a server needs --max-lora-rank {lora_rank_for_servers(own.ranks)}"
        )

    def _given_size(self) -> str:
        return f"{self.given['parameters']:,} parameters"

    def _table(self, markdown: bool = False) -> str:
        """The curve, a line a size, the largest first; nothing where there is none."""
        per_parameter = self.given["megabytes"] / self.given["all_parameters"]
        beside, own, rows = self.given["all_parameters"] - self.given["parameters"], self.file.parameters, []
        for point in reversed(self.curve.points[1:] if self.curve else ()):
            parameters, largest = point.parameters, self.largest[point.components]
            chosen = "  chosen" if parameters == own else ""
            whole = "  given" if parameters == self.given["parameters"] else ""
            megabytes = per_parameter * (parameters + beside)
            rows.append([f"{point.loss:.4f}", f"{parameters:,}", f"{megabytes:.2f}", f"{largest}{whole}{chosen}"])
        heads = ["held-out loss", "parameters", "MB", "largest rank"]
        return format_table(heads, rows, markdown, left=0) if rows else ""
