"""The model card of a run, and the upload of its adapter to the Hub.

Nothing that leaves the machine names a folder of it: see `public_command`, and `PUSHED_FILES` for what is uploaded.
"""

import html
import json
import math
import os
import re
import shlex
from collections.abc import Sequence
from importlib import resources

from huggingface_hub import EvalResult, HfApi, ModelCard, ModelCardData
from huggingface_hub.errors import HFValidationError, OfflineModeIsEnabled
from huggingface_hub.utils import validate_repo_id

from autolora_trainer.errors import HUB_TOKEN, SECRET, without_secrets
from autolora_trainer.hub_client import bounded_waits, reason, root_cause
from autolora_trainer.ranks import LearnedRanks
from autolora_trainer.report import (
    HEATMAP_FILES,
    format_cost,
    format_score,
    format_table,
    lora_rank_for_servers,
    rank_grid,
)

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "spiece.model",
    "spm.model",
    "sentencepiece.bpe.model",
    "tokenizer.model",
    "chat_template.jinja",
)
# Whole names: the Hub's patterns let `*` match `/` too, and checkpoints hold files of the same names in folders below.
PUSHED_FILES = (
    "adapter_config.json",
    "adapter_model.safetensors",
    "bottleneck_adapter.json",
    "bottleneck_adapter.safetensors",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "model.safetensors.index.json",
    "model-?????-of-?????.safetensors",
    "ranks.json",
    "labels.json",
    *HEATMAP_FILES,
    "README.md",
    "all_results.json",
    "cost.json",
    *TOKENIZER_FILES,
)
PAPER_URL = "https://arxiv.org/abs/2403.09113"
LORA_METHODS = ("autolora", "lora", "adalora", "eva", "grid", "uniform", "random", "linear", "svd")
PATTERN_METHODS = ("uniform", "random", "linear", "svd")
# PEFT's task types: the Hub's pipeline tag, and the class that loads the base model
TASK_TYPES = {
    "SEQ_CLS": ("text-classification", "AutoModelForSequenceClassification"),
    "TOKEN_CLS": ("token-classification", "AutoModelForTokenClassification"),
    "CAUSAL_LM": ("text-generation", "AutoModelForCausalLM"),
    "SEQ_2_SEQ_LM": ("text2text-generation", "AutoModelForSeq2SeqLM"),
}
MARKDOWN_COLUMNS = 24
HUB_ID = re.compile(r"(?:[A-Za-z0-9][\w.\-]{0,95}/)?[A-Za-z0-9][\w.\-]{0,95}", re.ASCII)
# name=value and "name": "value" inside a longer value; the Hub's own tokens go wherever they stand (HUB_TOKEN)
INNER_SECRET = re.compile(
    r"""([\w-]*(?:token(?!i[sz])|secret|api_?key|passw|credential)[\w-]*["']?\s*[=:]\s*["']?)[^\s,"'}&]+""",
    re.IGNORECASE,
)
HUB_ARGUMENTS = {
    "model_name_or_path", "base_model_id", "tokenizer_name", "config_name", "hub_model_id", "hub_revision",
    "dataset_name",
}  # fmt: skip
# what Trainer's metrics say besides scores
TRAINERS_OWN = """
    loss runtime samples epoch samples_per_second steps_per_second model_preparation_time total_flos
""".split()
EXTENSION = re.compile(r"\.[A-Za-z]\w{0,7}$")


class PushError(RuntimeError):
    """An upload failed. The run itself is finished and complete on disk."""


# ---------------------------------------------------------------- the command, without this machine's names


def public_command(argv: Sequence[str]) -> str:
    """A command line as it may be published: it can be typed again, and names neither a folder nor a secret.

    A value that is a path (it holds a separator or exists on disk) keeps its last component: `$DATA/train.jsonl` for a
    file, `train` for a folder, and the bare name for a configuration file or a script. Hub ids (`owner/name`) of
    model and data set arguments stay. Values of arguments named like a token, secret, key or password become `***`,
    and addresses `$URL`. Applied to its own output, split again, it changes nothing.

    Args:
        argv: as in `sys.argv`: the script or program, then its arguments.
    Example:
        >>> public_command(["/home/me/run_glue.py", "--train_file", "/home/me/data/train.jsonl", "--hub_token=hf_abc"])
        'python run_glue.py --train_file $DATA/train.jsonl --hub_token=***'
    """
    words, flag = [], ""
    for position, word in enumerate(map(str, argv)):
        name, equals, value = word.partition("=")
        if re.fullmatch(r"--?[A-Za-z][\w-]*", name):
            flag = name.lstrip("-").replace("-", "_")
            words.append(name + equals + (_public_value(flag, value) if equals else ""))
        elif equals and not flag and re.fullmatch(r"[A-Za-z_]\w*", name):  # HF_HOME=/cache python run_glue.py
            words.append(name + equals + _public_value(name, value))
        elif position == 0:
            words.append(_public_program(word))
        else:
            words.append(_public_value(flag, word))
    return without_secrets(" ".join(words))


def _public_program(word: str) -> str:
    parts = [part for part in re.split(r"[/\\]", word) if part]
    last = parts[-1] if parts else word
    if last == "__main__.py" and len(parts) > 1:
        return f"python -m {shlex.quote(parts[-2])}"
    if last.endswith(".py"):
        return f"python {shlex.quote(last)}"
    return "python" if re.fullmatch(r"python[\d.]*(\.exe)?", last) else shlex.quote(last.removesuffix(".exe"))


def _public_value(flag: str, value: str) -> str:
    """One value, quoted for a shell."""
    counts = flag.lower().endswith("tokens") and re.fullmatch(r"[\d.]+|true|false", value, re.IGNORECASE)
    if value == "***" or (SECRET.search(flag) and not counts):
        return "***"
    value = HUB_TOKEN.sub("***", INNER_SECRET.sub(r"\1***", value))
    value = value.removeprefix("file://")
    if "://" in value or value == "$URL":
        return "$URL"
    if value.startswith(("{", "[")):
        return shlex.quote(_without_paths(value))
    windows = re.match(r"[A-Za-z]:[\\/]|\\\\", value) or (os.sep == "\\" and "\\" in value)
    separated = "/" in value or windows
    exists = os.path.exists(value)
    if not separated and not exists:
        return value if value == "***" else shlex.quote(value)
    if flag in HUB_ARGUMENTS and HUB_ID.fullmatch(value) and not exists:
        return shlex.quote(value)
    last = [part for part in re.split(r"[/\\]" if windows else "/", value) if part not in ("", ".", "..", "~")]
    name = last[-1] if last else "."
    is_file = os.path.isfile(value) if exists else bool(EXTENSION.search(name)) and not flag.endswith("dir")
    bare = (
        flag == "config" or name.endswith((".py", ".yaml", ".yml")) or (not separated and not EXTENSION.search(name))
    )
    if value.startswith("$DATA/") or (is_file and not bare):
        return "$DATA/" + shlex.quote(name)
    return shlex.quote(name)


def _without_paths(text: str) -> str:
    """Free text with every path in it cut to its last component."""
    text = re.sub(r"(?<![\w/<.:~])(?:~[\w.-]*|\.{1,2})?(?:/[^\s/\"'<>,]+){2,}/?", _last_component, text)
    return re.sub(r"(?<!\w)(?:[A-Za-z]:[\\/]|\\\\\w)[^\s\"'<>,]*", _last_component, text)


def _last_component(match: re.Match) -> str:
    return [part for part in re.split(r"[/\\]", match[0]) if part][-1]


# ---------------------------------------------------------------- the card


def write_model_card(
    folder: str | os.PathLike,
    ranks: LearnedRanks | None,
    *,
    base_model: str | None,
    task_name: str,
    dataset_id: str | None,
    dataset_name: str,
    metrics: dict[str, float],
    method: str,
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
        base_model: Hub id; `None` for a model that is not on the Hub.
        task_name: short name, such as mrpc.
        dataset_id: Hub id of the data set; `None` for local files.
        dataset_name: what to call the data.
        metrics: as `Trainer.evaluate` returns them, {"eval_accuracy": 0.74, …}; times, losses and counts are skipped.
        method: value of `--method`.
        cost: see `report.format_cost`.
        command: what was typed; `public_command` is applied to it (again).
        adapter_params, head_params: numbers of parameters trained.
        seed: of the run.
        repo_id: where the adapter will be on the Hub, if that is known.
    Returns:
        The card's path.
    """
    folder = os.fspath(folder)
    task_name, dataset_name, method = map(_public_name, (task_name, dataset_name, method))
    base_model, dataset_id, repo_id = (i if _is_hub_id(i) else None for i in (base_model, dataset_id, repo_id))
    shown_base = base_model or _public_name((ranks and ranks.base_model) or "") or None
    if method == "peft":
        method = _public_name(_read_json(folder, "adapter_config.json").get("peft_type", method)).lower()
    library = {"full": "transformers", "adapter": "autolora_trainer"}.get(method, "peft")
    task_type = _task_type(folder)
    pipeline_tag, auto_class = TASK_TYPES.get(task_type, TASK_TYPES["SEQ_CLS"])
    scores = _scores(metrics)

    data = ModelCardData(
        library_name=library,
        base_model=base_model,
        datasets=[dataset_id] if dataset_id else None,
        pipeline_tag=pipeline_tag,
        tags=_tags(method, base_model, library),
        model_name="-".join(filter(None, ((shown_base or "").rsplit("/", 1)[-1], task_name, method))),
        eval_results=_eval_results(scores, pipeline_tag, task_name, dataset_id, dataset_name) or None,
    )
    title = data.model_name
    if not data.eval_results:
        data.pop("model_name")  # it names the model-index; alone it is no field of the Hub's
    command = public_command(_split_command(command))
    card = ModelCard.from_template(
        data,
        template_str=_template(),
        title=_escape(title),
        sentence=_sentence(method, base_model, shown_base, dataset_id, dataset_name),
        heatmap=ranks is not None and os.path.exists(os.path.join(folder, HEATMAP_FILES[0])),
        rank_tables=_rank_tables(ranks) if ranks else [],
        rank_sentence=_rank_sentence(ranks) if ranks else "",
        scores=(
            format_table(["metric", "split", "value"], [_score_row(*s) for s in scores], markdown=True, left=2)
            if scores
            else ""
        ),
        training=_training(ranks, method, adapter_params, head_params, seed),
        cost=format_cost(cost, markdown=True) if cost.get("total") else "",
        snippet=_snippet(folder, auto_class, base_model, shown_base, repo_id, library),
        max_lora_rank=_max_lora_rank(ranks, task_type),
        served_model=base_model or "BASE_MODEL",
        command=command,
        fence="`" * max(3, 1 + max(map(len, re.findall("`+", command)), default=0)),
        cites=method in ("autolora", *PATTERN_METHODS),
    )
    path = os.path.join(folder, "README.md")
    with open(f"{path}.tmp", "w", encoding="utf-8", newline="\n") as file:
        file.write(str(card).rstrip() + "\n")
    os.replace(f"{path}.tmp", path)
    return path


def _template() -> str:
    # Jinja as `from_template` uses it leaves the line of a {% tag %} empty; the tags here take their line with them
    text = resources.files("autolora_trainer").joinpath("templates/model_card.md").read_text(encoding="utf-8")
    return re.sub(r"^(\{%.*%\})\n", r"\1", text, flags=re.MULTILINE)


def _one_line(text) -> str:
    return " ".join(re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ufeff]", " ", str(text)).split())


def _public_name(text) -> str:
    """A name on one line, without control characters, and without the folders if it is a path."""
    text = _one_line(text).removeprefix("file://")
    path = text.replace("\\", "/")
    if os.path.isabs(text) or re.match(r"[A-Za-z]:/|~|\.{1,2}/", path) or ("/" in path and os.path.exists(text)):
        return path.rstrip("/").rsplit("/", 1)[-1]
    return _without_paths(text)


def _escape(text) -> str:
    """Text that Markdown, with its HTML and its tables, shows as it is."""
    return re.sub(r"([\\`*_{}\[\]()#|~$!])", r"\\\1", html.escape(_one_line(text), quote=False))


def _code(text) -> str:
    """A module name as inline code; what could end the code or a table's cell is left out."""
    return f"`{re.sub('[`|]', '', _one_line(text))}`"


def _is_hub_id(text) -> bool:
    return isinstance(text, str) and bool(HUB_ID.fullmatch(text)) and ".." not in text and not os.path.isdir(text)


def _read_json(folder, name) -> dict:
    try:
        with open(os.path.join(folder, name), encoding="utf-8") as file:
            config = json.load(file)
    except (OSError, ValueError):
        return {}
    return config if isinstance(config, dict) else {}


def _task_type(folder) -> str:
    """PEFT's name of the task, from the adapter's file or the class of a whole model."""
    for name in ("adapter_config.json", "bottleneck_adapter.json"):
        task_type = _read_json(folder, name).get("task_type")
        if task_type in TASK_TYPES:
            return task_type
    kinds = {"TokenClassification": "TOKEN_CLS", "LMHeadModel": "CAUSAL_LM", "CausalLM": "CAUSAL_LM"}
    architecture = str((_read_json(folder, "config.json").get("architectures") or [""])[0])
    return next((kind for ending, kind in kinds.items() if architecture.endswith(ending)), "SEQ_CLS")


def _tags(method, base_model, library) -> list[str]:
    is_adapter = library != "transformers"
    tags = ["peft" if library == "peft" else "adapter"] if is_adapter else []
    if method in LORA_METHODS:
        tags.append("lora")
    if method == "autolora":
        tags.append("autolora")
    if base_model:
        tags.append(f"base_model:{'adapter' if is_adapter else 'finetune'}:{base_model}")
    return tags


def _scores(metrics: dict) -> list[tuple[str, str, float]]:
    """(metric, split, value) of every figure that says how good the model is."""
    scores = []
    matched = "_matched" if any(str(key).endswith("_mm") for key in metrics) else ""  # MNLI's two validation sets
    for key, value in metrics.items():
        key, split = _one_line(key), f"validation{matched}"
        for prefix, named in (("eval_", f"validation{matched}"), ("predict_", "test"), ("test_", "test")):
            if key.startswith(prefix):
                key, split = key.removeprefix(prefix), named
        if key.endswith("_mm"):  # as transformers' run_glue names them
            key, split = key.removesuffix("_mm"), f"{split.removesuffix('_matched')}_mismatched"
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if is_number and key not in TRAINERS_OWN and not key.startswith("train_"):
            scores.append((key, split, float(value)))
    return scores


def _score_row(metric, split, value) -> list[str]:
    return [_escape(metric), _escape(split), format_score(value)]


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


def _sentence(method, base_model, shown_base, dataset_id, dataset_name) -> str:
    base = f"[{_escape(base_model)}](https://huggingface.co/{base_model})" if base_model else _escape(shown_base or "")
    data = (
        f"[{_escape(dataset_name)}](https://huggingface.co/datasets/{dataset_id})"
        if dataset_id
        else _escape(dataset_name)
    )
    of_base = f" for {base}" if base else ""
    if method == "autolora":
        how = f"with one rank for every module, learned by [AutoLoRA]({PAPER_URL})"
    elif method in PATTERN_METHODS:
        how = f"with ranks by the pattern {_escape(method)}, a baseline of [AutoLoRA]({PAPER_URL})"
    else:
        how = f"by the method {_escape(method)}"
    if method == "full":
        return f"{base or 'A model'}, fully fine-tuned on {data}."
    if method == "adapter":
        return f"Bottleneck adapters (Houlsby et al. 2019){of_base}, trained on {data}."
    return f"{'A LoRA adapter' if method in LORA_METHODS else 'An adapter'}{of_base}, trained on {data}, {how}."


def _rank_sentence(ranks: LearnedRanks) -> str:
    dropped = sum(rank == 0 for rank in ranks.ranks.values())
    parts = [f"Total rank {ranks.total_rank} in {len(ranks.modules)} modules"]
    if ranks.rank_rule:
        parts.append(f"chosen by the rule {_code(ranks.rank_rule)} from {ranks.initial_rank} components each")
    if dropped:
        parts.append(f"{dropped} of them at rank 0 and so left out of the adapter")
    return ", ".join(parts) + ". Blocks across, projections down."


def _rank_tables(ranks: LearnedRanks) -> list[str]:
    rows, columns, grid = rank_grid(ranks)
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
    facts = [("method", _code(method)), ("seed", str(seed)), ("adapter parameters", f"{adapter_params:,}")]
    facts.append(("other parameters trained (head)", f"{head_params:,}"))
    if ranks and ranks.constraint:
        facts.append(("constraint on the selection variables", _code(ranks.constraint)))
    if ranks and ranks.threshold is not None:
        facts.append(("threshold", f"{ranks.threshold:.4g}"))
    return "\n".join(f"- {name}: {value}" for name, value in facts)


def _snippet(folder, auto_class, base_model, shown_base, repo_id, library) -> str:
    is_adapter = library != "transformers"
    labels = _number_of_labels(folder) if "Classification" in auto_class else None
    more = f", num_labels={labels}" if labels else ""
    has_tokenizer = os.path.exists(os.path.join(folder, "tokenizer_config.json"))
    lines = [f"from transformers import {auto_class}, AutoTokenizer", ""]
    if is_adapter:
        lines.insert(
            0,
            (
                "from peft import PeftModel"
                if library == "peft"
                else "from autolora_trainer.methods.adapter import load_bottleneck_adapter"
            ),
        )
    target = "adapter" if is_adapter else "name"
    if library == "autolora_trainer":
        lines.append(f'{target} = "."  # this folder, or a download of its repository')
    else:
        lines.append(
            f'{target} = "{repo_id or "."}"' + ("" if repo_id else "  # this folder, or its repository on the Hub")
        )
    if not is_adapter:
        return "\n".join(
            [*lines, f"model = {auto_class}.from_pretrained(name)", "tokenizer = AutoTokenizer.from_pretrained(name)"]
        )
    if base_model:
        lines.append(f'base = "{base_model}"')
    else:
        hint = f", {_plain_word(shown_base)}" if shown_base and _plain_word(shown_base) else ""
        lines.append(f'base = "BASE_MODEL"  # the folder of the base model{hint}')
    lines += [
        f"model = {auto_class}.from_pretrained(base{more})",
        f"model = {'PeftModel.from_pretrained' if library == 'peft' else 'load_bottleneck_adapter'}(model, adapter)",
        f"tokenizer = AutoTokenizer.from_pretrained({'adapter' if has_tokenizer else 'base'})",
    ]
    return "\n".join(lines)


def _plain_word(text: str) -> str:
    return re.sub(r"[^\w.\- ]", "", text)


def _number_of_labels(folder) -> int | None:
    """The rows of the classifier that was saved with the adapter, without which the base model builds another head."""
    from safetensors import SafetensorError, safe_open

    for name in ("adapter_model.safetensors", "bottleneck_adapter.safetensors"):
        try:
            with safe_open(os.path.join(folder, name), framework="pt") as file:
                for key in file.keys():
                    if key.endswith(("classifier.out_proj.weight", "classifier.weight", "score.weight")):
                        return file.get_slice(key).get_shape()[0]
        except (OSError, SafetensorError):
            pass
    return None


def _max_lora_rank(ranks, task_type) -> int | None:
    if ranks is None or task_type != "CAUSAL_LM":
        return None
    try:
        return lora_rank_for_servers(ranks)
    except ValueError:  # a rank that vLLM cannot serve
        return None


def _split_command(command: str) -> list[str]:
    try:
        return shlex.split(command)
    except ValueError:
        return command.split()


# ---------------------------------------------------------------- upload


def check_repo_id(repo_id: str, argument: str = "hub_model_id") -> None:
    """Raise `ValueError` unless this can name a repository; to be asked before a run, not after it."""
    try:
        validate_repo_id(repo_id)
    except HFValidationError:
        raise ValueError(
            f"{argument} must be a repository's name, e.g. owner/mrpc-autolora, got {repo_id!r}."
        ) from None


def push_to_hub(
    folder: str | os.PathLike,
    repo_id: str,
    token: str | None = None,
    private: bool | None = None,
    commit_message: str | None = None,
    endpoint: str | None = None,
    revision: str | None = None,
) -> str:
    """Upload `PUSHED_FILES` of a finished run; checkpoints, histories and whatever else lies there are not sent.

    Call it last: a failure then costs nothing but the upload.

    Args:
        folder: the run's output directory.
        repo_id: `name` or `owner/name`; the repository is created if need be.
        token: Default: the one of `hf auth login`.
        private: visibility of a new repository. Default: the owner's setting.
        commit_message: Default: "Upload the adapter".
        endpoint: Default: the Hub.
        revision: the branch to push to, which is created if need be. Default: main.
    Returns:
        The repository's address.
    Raises:
        ValueError: if `repo_id` is not the name of a repository.
        PushError: one line that names the repository, the reason and what to type next.
    """
    folder = os.fspath(folder)
    check_repo_id(repo_id)
    try:
        with bounded_waits():
            api = HfApi(endpoint=endpoint, token=token)
            url = api.create_repo(repo_id, private=private, exist_ok=True)
            if revision is not None and not revision.startswith("refs/pr/"):
                api.create_branch(url.repo_id, branch=revision, exist_ok=True)
            api.upload_folder(
                repo_id=url.repo_id,
                revision=revision,
                folder_path=folder,
                allow_patterns=list(PUSHED_FILES),
                commit_message=commit_message or "Upload the adapter",
            )
    # The client raises HTTP, JSON, OS and value errors, and none of them may look as if the run had failed.
    except Exception as error:
        branch = "" if revision is None else f", revision={revision!r}"
        again = f"from autolora_trainer.hub import push_to_hub; push_to_hub({folder!r}, {repo_id!r}{branch})"
        raise PushError(
            f"Could not push to {repo_id}: {reason(error, token)}. The run itself is finished, in {folder}. "
            f"{_remedy(error)}, then type: python -c {shlex.quote(again)}"
        ) from error
    return str(url)


def _remedy(error: Exception) -> str:
    error = root_cause(error)
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, OfflineModeIsEnabled):
        return "Unset HF_HUB_OFFLINE"
    if status in (401, 403):
        return "Log in with `hf auth login` and a token that may write to that repository"
    if status is None:
        return "Check the connection"
    return "Wait until the Hub answers again" if status >= 500 else "Check the repository's name and your rights to it"
