"""The model card of a run."""

import math
import os
import re
from dataclasses import dataclass

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from autolora_trainer.files import write_atomically
from autolora_trainer.hub.passages import (
    TASK_TYPES,
    code,
    escape,
    fence_of,
    link,
    max_lora_rank_of,
    rank_sentence,
    rank_tables,
    snippet_of,
    split_command,
    task_type_of,
    template,
)
from autolora_trainer.hub.public import is_hub_id, on_one_line, public_command, public_name
from autolora_trainer.ranks.learned import LearnedRanks
from autolora_trainer.report.heatmap import HEATMAP_FILES
from autolora_trainer.report.tables import format_cost, format_score, format_table, scores_by_split

PAPER_URL = "https://arxiv.org/abs/2403.09113"
CITED_PATTERN = (
    "A LoRA adapter{of_base}, trained on {data}, with ranks by the pattern {name}, a baseline of "
    f"[AutoLoRA]({PAPER_URL})."
)


@dataclass(frozen=True)
class Card:
    """What a model card says of the method behind a result."""

    name: str
    sentence: str  # what the result is, with `{base}`, `{of_base}`, `{data}` and `{name}` for the names
    tags: tuple[str, ...] = ()  # besides those of the library and the base model
    library: str = "peft"  # loads it
    cites: bool = False  # the paper

    @classmethod
    def of_adapter(cls, name: str, is_lora: bool) -> "Card":
        """Of an adapter of PEFT's of which there is no more to say than its method."""
        kind, tags = ("A LoRA", ("lora",)) if is_lora else ("An", ())
        return cls(name, kind + " adapter{of_base}, trained on {data}, by the method {name}.", tags)


def write_model_card(
    folder: str | os.PathLike,
    ranks: LearnedRanks | None,
    *,
    base_model: str | None,
    task_name: str,
    dataset_id: str | None,
    dataset_name: str,
    metrics: dict[str, float],
    card: Card,
    cost: dict,
    command: str,
    adapter_params: int,
    head_params: int,
    seed: int,
    repo_id: str | None = None,
) -> str:
    """Write `README.md`, the model card, into the folder of a finished run. It asks the Hub nothing.

    Whatever the names hold (Markdown, HTML, YAML, a front matter's `---`), they are shown as they are and change
    nothing else. Task type, number of labels and whether there is a heatmap are read from the files in `folder`.

    Args:
        folder: the run's output directory, with the adapter in it.
        ranks: `None` for a method without ranks per module.
        base_model, dataset_id: Hub ids; `None` for what is not on the Hub.
        task_name, dataset_name: a short name, such as mrpc, and what to call the data.
        metrics: as `Trainer.evaluate` returns them, {"eval_accuracy": 0.74, …}; times, losses and counts are skipped.
        cost: see `format_cost`.
        command: what was typed; `public_command` is applied to it (again).
        repo_id: where the adapter will be on the Hub, if that is known.
    Returns:
        The card's path.
    """
    folder = os.fspath(folder)
    task_name, dataset_name, method = map(public_name, (task_name, dataset_name, card.name))
    base_model, dataset_id, repo_id = (i if is_hub_id(i) else None for i in (base_model, dataset_id, repo_id))
    shown_base = base_model or public_name((ranks and ranks.base_model) or "") or None
    task_type = task_type_of(folder)
    pipeline_tag, auto_class = TASK_TYPES.get(task_type, TASK_TYPES["SEQ_CLS"])
    scores = scores_by_split({on_one_line(key): value for key, value in metrics.items()})

    name = "-".join(filter(None, ((shown_base or "").rsplit("/", 1)[-1], task_name, method)))
    data = ModelCardData(
        library_name=card.library,
        base_model=base_model,
        datasets=[dataset_id] if dataset_id else None,
        pipeline_tag=pipeline_tag,
        tags=_tags(card, base_model),
        model_name=name,
        eval_results=_eval_results(scores, pipeline_tag, task_name, dataset_id, dataset_name) or None,
    )
    if not data.eval_results:
        data.pop("model_name")  # it names the model-index; alone it is no field of the Hub's
    command = public_command(split_command(command))
    page = ModelCard.from_template(
        data,
        template_str=template("model_card.md"),
        title=escape(name),
        sentence=_sentence(card, method, base_model, shown_base, dataset_id, dataset_name),
        heatmap=ranks is not None and os.path.exists(os.path.join(folder, HEATMAP_FILES[0])),
        rank_tables=rank_tables(ranks) if ranks else [],
        rank_sentence=rank_sentence(ranks) if ranks else "",
        scores=_score_table(scores),
        training=_training(ranks, method, adapter_params, head_params, seed),
        cost=format_cost(cost, markdown=True) if cost.get("total") else "",
        snippet=snippet_of(folder, auto_class, base_model, shown_base, repo_id, card.library),
        max_lora_rank=max_lora_rank_of(ranks, task_type),
        served_model=base_model or "BASE_MODEL",
        command=command,
        fence=fence_of(command),
        cites=card.cites,
    )
    path = os.path.join(folder, "README.md")
    write_atomically(path, str(page).rstrip() + "\n")
    return path


def _tags(card: Card, base_model) -> list[str]:
    tags = [*{"peft": ["peft"], "transformers": []}.get(card.library, ["adapter"]), *card.tags]
    kind = "finetune" if card.library == "transformers" else "adapter"
    return [*tags, f"base_model:{kind}:{base_model}"] if base_model else tags


def _score_table(scores) -> str:
    body = [[escape(metric), escape(split), format_score(value)] for metric, split, value in scores]
    return format_table(["metric", "split", "value"], body, markdown=True, left=2) if scores else ""


def _eval_results(scores, pipeline_tag, task_name, dataset_id, dataset_name) -> list[EvalResult]:
    return [
        EvalResult(
            task_type=pipeline_tag,
            task_name=task_name,
            dataset_type=dataset_id or re.sub(r"[^a-z0-9_-]+", "-", task_name.lower()).strip("-") or "data",
            dataset_name=dataset_name,
            dataset_config=task_name if dataset_id and dataset_id.rsplit("/", 1)[-1] == "glue" else None,
            dataset_split=split,
            metric_type=re.sub(r"[^A-Za-z0-9_.-]+", "-", metric),
            metric_name=metric.replace("_", " "),
            metric_value=round(value, 6),
        )
        for metric, split, value in scores
        if math.isfinite(value)
    ]


def _sentence(card: Card, method, base_model, shown_base, dataset_id, dataset_name) -> str:
    base, data = link(shown_base or "", base_model), link(dataset_name, dataset_id and f"datasets/{dataset_id}")
    of_base = f" for {base}" if base else ""
    return card.sentence.format(base=base or "A model", of_base=of_base, data=data, name=escape(method))


def _training(ranks, method, adapter_params, head_params, seed) -> str:
    facts = [f"method: {code(method)}", f"seed: {seed}", f"adapter parameters: {adapter_params:,}"]
    facts.append(f"other parameters trained (head): {head_params:,}")
    if ranks and ranks.constraint:
        facts.append(f"constraint on the selection variables: {code(ranks.constraint)}")
    if ranks and ranks.threshold is not None:
        facts.append(f"threshold: {ranks.threshold:.4g}")
    return "\n".join(f"- {fact}" for fact in facts)
