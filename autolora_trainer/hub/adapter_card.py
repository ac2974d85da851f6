"""The model card of an adapter that a call has made: compressed, or ready to be trained."""

import os
from collections.abc import Sequence

from huggingface_hub import ModelCard, ModelCardData

from autolora_trainer.files import write_atomically
from autolora_trainer.hub.passages import (
    TASK_TYPES,
    escape,
    fence_of,
    json_in,
    link,
    max_lora_rank_of,
    rank_sentence,
    rank_tables,
    snippet_of,
    template,
)
from autolora_trainer.hub.public import is_hub_id, public_command, public_name
from autolora_trainer.ranks.adapter_config import CONFIG_FILE
from autolora_trainer.ranks.learned import LearnedRanks
from autolora_trainer.report.curve import CURVE_FILES


def write_adapter_card(
    folder: str | os.PathLike,
    ranks: LearnedRanks,
    sentence: str,
    sizes: str,
    kind: str,
    command: Sequence[str] = (),
    repo_id: str | None = None,
) -> str:
    """Write `README.md` into the folder of a saved adapter; task type, labels and curve are those of its files.

    Args:
        sentence: what it is, with `{base}` for the base model, in Markdown.
        sizes: what there is to say of its size, in Markdown.
        kind: the last word of its title, as `compressed`.
        command: argv that made it; `public_command` is applied to it.
        repo_id: where it will be on the Hub, if that is known.
    Returns:
        The card's path.
    """
    folder = os.fspath(folder)
    base = ranks.base_model if is_hub_id(ranks.base_model) else None
    shown = base or public_name(ranks.base_model or "") or None
    task_type = json_in(folder, CONFIG_FILE).get("task_type")
    pipeline_tag, auto_class = TASK_TYPES.get(task_type, (None, "AutoModel"))
    tags = ["peft", "lora", "autolora_trainer", *([f"base_model:adapter:{base}"] if base else [])]
    command = public_command(command) if command else ""
    page = ModelCard.from_template(
        ModelCardData(library_name="peft", base_model=base, pipeline_tag=pipeline_tag, tags=tags),
        template_str=template("adapter_card.md"),
        title=escape("-".join(filter(None, ((shown or "").rsplit("/", 1)[-1], kind)))),
        sentence=sentence.format(base=link(shown or "its base model", base)),
        curve=os.path.exists(os.path.join(folder, CURVE_FILES[0])),
        sizes=sizes,
        rank_tables=rank_tables(ranks),
        rank_sentence=rank_sentence(ranks),
        snippet=snippet_of(folder, auto_class, base, shown, repo_id, "peft"),
        max_lora_rank=max_lora_rank_of(ranks, task_type),
        served_model=base or "BASE_MODEL",
        command=command,
        fence=fence_of(command),
    )
    path = os.path.join(folder, "README.md")
    write_atomically(path, str(page).rstrip() + "\n")
    return path
