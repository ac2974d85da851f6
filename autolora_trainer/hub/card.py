"""The model card of a run."""

import html
import json
import math
import os
import re
import shlex
from contextlib import suppress
from dataclasses import dataclass
from importlib import resources

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from safetensors import SafetensorError, safe_open

from autolora_trainer.files import write_atomically
from autolora_trainer.hub.public import is_hub_id, on_one_line, public_command, public_name
from autolora_trainer.ranks.grid import rank_grid
from autolora_trainer.ranks.learned import LearnedRanks
from autolora_trainer.ranks.serving import lora_rank_for_servers
from autolora_trainer.report.heatmap import HEATMAP_FILES
from autolora_trainer.report.tables import format_cost, format_score, format_table, scores_by_split

PAPER_URL = "https://arxiv.org/abs/2403.09113"
CITED_PATTERN = (
    "A LoRA adapter{of_base}, trained on {data}, with ranks by the pattern {name}, a baseline of "
    f"[AutoLoRA]({PAPER_URL})."
)
# PEFT's task types: the Hub's pipeline tag, and the class that loads the base model
TASK_TYPES = {
    "SEQ_CLS": ("text-classification", "AutoModelForSequenceClassification"),
    "TOKEN_CLS": ("token-classification", "AutoModelForTokenClassification"),
    "CAUSAL_LM": ("text-generation", "AutoModelForCausalLM"),
    "SEQ_2_SEQ_LM": ("text2text-generation", "AutoModelForSeq2SeqLM"),
}
MARKDOWN_COLUMNS = 24


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
    task_type = _task_type(folder)
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
    command = public_command(_split_command(command))
    page = ModelCard.from_template(
        data,
        template_str=_template(),
        title=_escape(name),
        sentence=_sentence(card, method, base_model, shown_base, dataset_id, dataset_name),
        heatmap=ranks is not None and os.path.exists(os.path.join(folder, HEATMAP_FILES[0])),
        rank_tables=_rank_tables(ranks) if ranks else [],
        rank_sentence=_rank_sentence(ranks) if ranks else "",
        scores=_score_table(scores),
        training=_training(ranks, method, adapter_params, head_params, seed),
        cost=format_cost(cost, markdown=True) if cost.get("total") else "",
        snippet=_snippet(folder, auto_class, base_model, shown_base, repo_id, card.library),
        max_lora_rank=_max_lora_rank(ranks, task_type),
        served_model=base_model or "BASE_MODEL",
        command=command,
        fence="`" * max(3, 1 + max(map(len, re.findall("`+", command)), default=0)),
        cites=card.cites,
    )
    path = os.path.join(folder, "README.md")
    write_atomically(path, str(page).rstrip() + "\n")
    return path


def _template() -> str:
    # Jinja as `from_template` uses it leaves the line of a {% tag %} empty; the tags here take their line with them
    text = resources.files("autolora_trainer").joinpath("hub/templates/model_card.md").read_text(encoding="utf-8")
    return re.sub(r"^(\{%.*%\})\n", r"\1", text, flags=re.MULTILINE)


def _escape(text) -> str:
    """Text that Markdown, with its HTML and its tables, shows as it is."""
    return re.sub(r"([\\`*_{}\[\]()#|~$!])", r"\\\1", html.escape(on_one_line(text), quote=False))


def _code(text) -> str:
    """A module name as inline code; what could end the code or a table's cell is left out."""
    return f"`{re.sub('[`|]', '', on_one_line(text))}`"


def json_in(folder: str, name: str) -> dict:
    """The object in a JSON file; {} where there is none."""
    try:
        with open(os.path.join(folder, name), encoding="utf-8") as file:
            config = json.load(file)
    except (OSError, ValueError):
        return {}
    return config if isinstance(config, dict) else {}


def _task_type(folder) -> str:
    """PEFT's name of the task, from the adapter's file or the class of a whole model."""
    for name in ("adapter_config.json", "bottleneck_adapter.json"):
        task_type = json_in(folder, name).get("task_type")
        if task_type in TASK_TYPES:
            return task_type
    kinds = {"TokenClassification": "TOKEN_CLS", "LMHeadModel": "CAUSAL_LM", "CausalLM": "CAUSAL_LM"}
    architecture = str((json_in(folder, "config.json").get("architectures") or [""])[0])
    return next((kind for ending, kind in kinds.items() if architecture.endswith(ending)), "SEQ_CLS")


def _tags(card: Card, base_model) -> list[str]:
    tags = [*{"peft": ["peft"], "transformers": []}.get(card.library, ["adapter"]), *card.tags]
    kind = "finetune" if card.library == "transformers" else "adapter"
    return [*tags, f"base_model:{kind}:{base_model}"] if base_model else tags


def _score_table(scores) -> str:
    body = [[_escape(metric), _escape(split), format_score(value)] for metric, split, value in scores]
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
    base, data = _link(shown_base or "", base_model), _link(dataset_name, dataset_id and f"datasets/{dataset_id}")
    of_base = f" for {base}" if base else ""
    return card.sentence.format(base=base or "A model", of_base=of_base, data=data, name=_escape(method))


def _link(text: str, place: str | None) -> str:
    return f"[{_escape(text)}](https://huggingface.co/{place})" if place else _escape(text)


def _rank_sentence(ranks: LearnedRanks) -> str:
    dropped = sum(rank == 0 for rank in ranks.ranks.values())
    parts = [f"Total rank {ranks.total_rank} in {len(ranks.modules)} modules"]
    if ranks.rank_rule:
        parts.append(f"chosen by the rule {_code(ranks.rank_rule)} from {ranks.initial_rank} components each")
    if dropped:
        parts.append(f"{dropped} of them at rank 0 and so left out of the adapter")
    return ", ".join(parts) + ". Blocks across, projections down."


def _rank_tables(ranks: LearnedRanks) -> list[str]:
    rows, columns, grid = rank_grid(ranks.ranks)
    tables = []
    for start in range(0, len(columns), MARKDOWN_COLUMNS):
        part = slice(start, start + MARKDOWN_COLUMNS)
        body = [
            [_code(label), *("" if rank is None else str(rank) for rank in row[part])]
            for label, row in zip(rows, grid)
            if set(row[part]) != {None}
        ]
        tables.append(format_table(["block", *map(_escape, columns[part])], body, markdown=True))
    return tables


def _training(ranks, method, adapter_params, head_params, seed) -> str:
    facts = [f"method: {_code(method)}", f"seed: {seed}", f"adapter parameters: {adapter_params:,}"]
    facts.append(f"other parameters trained (head): {head_params:,}")
    if ranks and ranks.constraint:
        facts.append(f"constraint on the selection variables: {_code(ranks.constraint)}")
    if ranks and ranks.threshold is not None:
        facts.append(f"threshold: {ranks.threshold:.4g}")
    return "\n".join(f"- {fact}" for fact in facts)


def _max_lora_rank(ranks, task_type) -> int | None:
    if ranks is not None and task_type == "CAUSAL_LM":
        with suppress(ValueError):  # a rank that vLLM cannot serve
            return lora_rank_for_servers(ranks.ranks)
    return None


def _split_command(command: str) -> list[str]:
    with suppress(ValueError):
        return shlex.split(command)
    return command.split()


def _snippet(folder, auto_class, base_model, shown_base, repo_id, library) -> str:
    """The lines of Python that load what the folder holds."""
    place = f'"{repo_id}"' if repo_id else '"."  # this folder, or its repository on the Hub'
    lines = [f"from transformers import {auto_class}, AutoTokenizer", ""]
    if library == "transformers":
        lines += [f"name = {place}", f"model = {auto_class}.from_pretrained(name)"]
        return "\n".join([*lines, "tokenizer = AutoTokenizer.from_pretrained(name)"])
    source, load = "peft import PeftModel", "PeftModel.from_pretrained"
    if library == "autolora_trainer":
        source, load = "autolora_trainer.methods.adapter import load_bottleneck_adapter", "load_bottleneck_adapter"
        place = '"."  # this folder, or a download of its repository'
    hint = re.sub(r"[^\w.\- ]", "", shown_base or "")
    base = f'"{base_model}"' if base_model else '"BASE_MODEL"  # the folder of the base model'
    if hint and not base_model:
        base += f", {hint}"
    labels = _number_of_labels(folder) if "Classification" in auto_class else None
    has_tokenizer = os.path.exists(os.path.join(folder, "tokenizer_config.json"))
    lines = [f"from {source}", *lines, f"adapter = {place}", f"base = {base}"]
    lines.append(f"model = {auto_class}.from_pretrained(base{f', num_labels={labels}' if labels else ''})")
    lines.append(f"model = {load}(model, adapter)")
    lines.append(f"tokenizer = AutoTokenizer.from_pretrained({'adapter' if has_tokenizer else 'base'})")
    return "\n".join(lines)


def _number_of_labels(folder) -> int | None:
    """The rows of the classifier that was saved with the adapter, without which the base model builds another head."""
    for name in ("adapter_model.safetensors", "bottleneck_adapter.safetensors"):
        with suppress(OSError, SafetensorError), safe_open(os.path.join(folder, name), framework="pt") as file:
            for key in file.keys():
                if key.endswith(("classifier.out_proj.weight", "classifier.weight", "score.weight")):
                    return file.get_slice(key).get_shape()[0]
    return None
