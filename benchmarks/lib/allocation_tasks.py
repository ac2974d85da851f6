"""The tasks of `allocation.py`: rows, model and scores by the package's own scripts.

Training rows are drawn by the seed from the training file. `develop` scores on rows of the training file that were not
trained on, `final` on rows that nothing was ever chosen by: test files, and of SST-2, QNLI and MNLI the second half of
the validation file.
"""

import json
import lzma
import os
import random
import types
from dataclasses import dataclass, field

import torch
from torch.nn.functional import cross_entropy
from transformers.modeling_outputs import CausalLMOutput

import run_glue
import run_ner
import run_nlg
from autolora_trainer.heldout.passes import ordered_batches, target_loss, undisturbed
from autolora_trainer.heldout.prefixes import mean_loss
from autolora_trainer.heldout.split import split_rows
from autolora_trainer.scripts.command_line import parse_arguments
from autolora_trainer.scripts.job import Job
from autolora_trainer.scripts.pipeline import prepare
from autolora_trainer.scripts.request import settle
from autolora_trainer.search.trainer import AutoLoraTrainer
from autolora_trainer.tasks.generation import generate_texts
from autolora_trainer.tasks.nlg_metrics import bleu
from benchmarks.lib import allocation_plan as plan
from benchmarks.lib import trials

HELD_OUT = 0.2  # of the training rows: D_val of the search, and what `develop` scores on
KINDS = {"run_nlg": (run_nlg.Nlg, {"data_arguments": run_nlg.NlgArguments}), "run_glue": (run_glue.Glue, {}),
         "run_ner": (run_ner.Ner, {"data_arguments": run_ner.NerDataArguments})}  # fmt: skip


@dataclass(frozen=True)
class Task:
    """One task of the plan.

    Attributes:
        script, task_name: of the package.
        model: key of the folders that the command line gives.
        rows, tests: training rows, and rows scored.
        steps: of the final training.
        rate: of the search, and of what is trained before rates are tuned.
        metric: the score beside the loss.
        settings: further arguments of the script.
    """

    name: str
    script: str
    task_name: str
    model: str
    rows: int
    tests: int
    steps: int
    rate: float
    metric: str
    settings: dict = field(default_factory=dict)


LM = {"decode": "false", "max_seq_length": 128, "attn_implementation": "eager", "lora_dropout": 0}
CHAT = {**LM, "prompt_format": "plain", "max_seq_length": 192, "attn_implementation": "sdpa"}
CLASSES = {"lora_dropout": 0, "max_seq_length": 96}
PAIRS = {**CLASSES, "per_device_train_batch_size": 16}
TASKS = {
    task.name: task
    for task in (
        Task("e2e", "run_nlg", "e2e", "gpt2", 2000, 400, 250, 4e-3, "bleu", LM),
        Task("e2e_long", "run_nlg", "e2e", "gpt2", 8000, 400, 1000, 4e-3, "bleu", LM),
        Task("webnlg", "run_nlg", "webnlg", "gpt2", 2000, 400, 250, 4e-3, "bleu", {**LM, "max_seq_length": 384}),
        Task("novels", "run_nlg", "nlg", "gpt2", 1600, 400, 200, 4e-3, "loss", {**LM, "prompt_format": "plain"}),
        Task("jnlpba", "run_ner", "jnlpba", "minilm", 4800, 1000, 300, 2e-3, "f1", PAIRS),
        Task("smollm2", "run_nlg", "nlg", "smollm2", 800, 200, 100, 1e-3, "loss", CHAT),
        Task("gsm8k", "run_nlg", "nlg", "smollm2", 2000, 400, 250, 1e-3, "answers", {**CHAT, "max_seq_length": 320}),
        Task("sst2", "run_glue", "sst2", "minilm", 8000, 436, 300, 1e-3, "accuracy", PAIRS),
        Task("qnli", "run_glue", "qnli", "minilm", 8000, 1500, 200, 1e-3, "accuracy", PAIRS),
        Task("mnli", "run_glue", "mnli", "minilm", 8000, 1500, 200, 1e-3, "accuracy", PAIRS),
    )
}
PROMPTS = {"bleu": (48, 48), "answers": (200, 256)}  # decoded greedily: how many, and new tokens at most
CHATS = {  # the folder of a chat's rows, what is asked of one, and what is to be said
    "smollm2": ("e2e", "Write one sentence from this data: {meaning_representation}", "{human_reference}"),
    "gsm8k": ("gsm8k", "{question}", "{answer}"),
}


def prepared(task: Task, seed: int, options, stage: str, folder: str, **changes) -> Job:
    """The task's rows and base model, for training with a seed; `changes`: arguments of the script.

    Args:
        options: data (a folder with a folder per task), models ({key: folder}), bf16.
        stage: `develop` or `final`.
        folder: for the run's files.
    """
    kind, more = KINDS[task.script]
    os.makedirs(folder, exist_ok=True)
    train, test = _files(task, options, stage, folder)
    settings = {
        "task_name": task.task_name, "model_name_or_path": options.models[task.model], "train_file": train,
        "validation_file": test or train, "output_dir": os.path.join(folder, "run"), "seed": seed,
        "max_train_samples": task.rows, "sample_seed": seed, "max_steps": task.steps, "warmup_steps": task.steps // 16,
        "per_device_train_batch_size": 8, "train_sampling_strategy": "group_by_length", "lora_alpha": 16,
        "val_fraction": HELD_OUT, "use_cpu": not torch.cuda.is_available(), "bf16": options.bf16,
        **trials.QUIET, **task.settings, **changes,
    }  # fmt: skip
    if test and task.script == "run_ner":  # entity scores count sentences, so rows are drawn before they are read
        settings["max_eval_samples"] = task.tests
    arguments = parse_arguments(trials.arguments(settings), **more)
    job = prepare(settle(kind(), *arguments))
    if task.script == "run_nlg":
        load = job.source.base_model
        job.source.base_model = lambda: losses_at_targets(load())
    if stage == "develop":
        rows, groups = job.rows.datasets["train"], job.rows.groups
        train, held_out = split_rows(rows, HELD_OUT, seed, groups)
        job.rows.datasets["train"], job.rows.datasets["validation"] = rows.select(train), rows.select(held_out)
        job.rows.groups = None if groups is None else [groups[row] for row in train]
    rows = job.rows.datasets["validation"]
    if "max_eval_samples" not in settings:  # a sentence in several windows has them all
        scored = random.Random(7).sample(range(len(rows)), min(task.tests, len(rows)))
        job.rows.datasets["validation"] = rows.select(sorted(scored))
    return job


def _files(task: Task, options, stage: str, folder: str) -> tuple[str, str | None]:
    """(training file, file to score on)."""
    place = os.path.join(options.data, plan.LONG.get(task.name, task.name))
    if task.name == "novels":
        return _novels(options, folder)
    if task.name in CHATS:
        return _chat(options, task.name, folder)
    train = os.path.join(place, "train.jsonl")
    if stage == "develop":
        return train, None
    if task.script != "run_glue":
        return train, os.path.join(place, "test.jsonl")
    with open(os.path.join(place, "validation.jsonl"), encoding="utf-8") as file:
        lines = file.readlines()
    half = os.path.join(folder, "second_half.jsonl")
    with open(half, "w", encoding="utf-8") as file:
        file.writelines(lines[len(lines) // 2 :])
    return train, half


def _novels(options, folder: str) -> tuple[str, str]:
    """Blocks of 80 words of twelve novels, and of two others to score on: 16 words to go on from."""
    with lzma.open(os.path.join(options.data, "text", "novels.txt.xz"), "rt") as file:
        documents = [text.split() for text in file.read().split("\n\n") if text.strip()]
    paths = []
    for name, own in (("train", documents[:-2]), ("test", documents[-2:])):
        blocks = [words[start : start + 80] for words in own for start in range(0, len(words) - 80, 80)]
        rows = [{"input": " ".join(block[:16]), "reference": " ".join(block[16:])} for block in blocks]
        paths.append(_write(os.path.join(folder, f"novels_{name}.jsonl"), rows))
    return tuple(paths)


def _chat(options, name: str, folder: str) -> tuple[str, str]:
    """A task as a chat, in the words of SmolLM2's template."""
    paths, (place, question, answer) = [], CHATS[name]
    for split in ("train", "test"):
        with open(os.path.join(options.data, place, f"{split}.jsonl"), encoding="utf-8") as file:
            rows = [json.loads(line) for line in file]
        asked = f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
        said = f"{answer}<|im_end|>"
        chats = [{"input": asked.format_map(row), "reference": said.format_map(row)} for row in rows]
        paths.append(_write(os.path.join(folder, f"chat_{split}.jsonl"), chats))
    return tuple(paths)


def _write(path: str, rows: list[dict]) -> str:
    with open(path, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    return path


def losses_at_targets(model: torch.nn.Module) -> torch.nn.Module:
    """A causal language model that computes logits where there are targets alone: the same loss, in half the time."""
    whole, body = model.forward, getattr(model, model.base_model_prefix)

    def forward(self, input_ids=None, attention_mask=None, labels=None, num_items_in_batch=None, **more):
        if labels is None:
            return whole(input_ids=input_ids, attention_mask=attention_mask, **more)
        hidden = body(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state[:, :-1]
        targets = labels[:, 1:]
        places = targets != -100
        logits = self.get_output_embeddings()(hidden[places]).float()
        losses = cross_entropy(logits, targets[places], reduction="none")
        row = torch.arange(len(labels), device=labels.device)[:, None].expand_as(targets)[places]
        self.row_losses = torch.zeros(len(labels), device=labels.device).index_add(0, row, losses.detach())
        return CausalLMOutput(loss=losses.sum() / (len(losses) if num_items_in_batch is None else num_items_in_batch))

    model.forward = types.MethodType(forward, model)
    return model


def row_losses(model, inputs, forward=None):
    """`target_loss`, with a value for every row of `losses_at_targets` too."""
    found = target_loss(model, inputs, forward)
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    if torch.is_grad_enabled() or not hasattr(base, "row_losses"):
        return found
    return base.row_losses, (inputs["labels"][:, 1:] != -100).sum(1)


class Search(AutoLoraTrainer):
    """The search, with a held-out loss for every row of `losses_at_targets` too."""

    def _held_out_loss(self, model, inputs):
        return row_losses(model, inputs, self._mean_loss)


@torch.no_grad()
def held_out_loss(job: Job, model: torch.nn.Module, batch_size: int = 32) -> float:
    """Σ losses / Σ targets over the rows that are scored, in fp32."""
    rows = job.rows.datasets["validation"]
    keep = [name for name in rows.column_names if name in ("input_ids", "attention_mask", "token_type_ids", "labels")]
    device = next(model.parameters()).device
    original = vars(model).get("_original_forward")
    model.forward, wrapped = original or model.forward, model.forward
    try:
        with undisturbed(model):
            found = []
            for batch in ordered_batches(list(rows.select_columns(keep)), batch_size, job.rows.collator):
                sums, counts = row_losses(model, {name: value.to(device) for name, value in batch.items()})
                found.append(
                    torch.stack([torch.as_tensor(sums).double().sum(), torch.as_tensor(counts).double().sum()])
                )
    finally:
        model.forward = wrapped
    return mean_loss(torch.stack(found).cpu())


def score(job: Job, trainer, metric: str) -> float | None:
    """Accuracy, entity F1, BLEU or right answers in points on the rows that are scored; None where the loss is all
    there is."""
    if metric == "loss":
        return None
    if metric in PROMPTS:
        return _decoded(job, trainer.model, metric)
    return round(100 * trainer.evaluate()[f"eval_{metric}"], 3)


def _decoded(job: Job, model: torch.nn.Module, metric: str) -> float:
    """Of texts decoded greedily for the first inputs that are scored, against all their references."""
    prompts, length = PROMPTS[metric]
    inputs: dict[tuple, list] = {}
    for row in job.rows.datasets["validation"]:
        start = next(place for place, label in enumerate(row["labels"]) if label != -100)
        reference = [token for token in row["labels"][start:] if token != job.rows.tokenizer.eos_token_id]
        inputs.setdefault(tuple(row["input_ids"][:start]), []).append(job.rows.tokenizer.decode(reference).strip())
    chosen = dict(list(inputs.items())[:prompts])
    settings = {"num_beams": 1, "max_new_tokens": length, "batch_size": 32, "progress": False}
    texts = generate_texts(model, job.rows.tokenizer, list(chosen), **settings)
    if metric == "bleu":
        return round(bleu(texts, list(chosen.values())), 3)
    right = [answer_of(text) == answer_of(references[0]) for text, references in zip(texts, chosen.values())]
    return 100 * sum(right) / len(right)


def answer_of(text: str) -> str:
    """GSM8K's answer: what follows the last ####.

    Example:
        >>> answer_of("2*4=8 #### 1,008")
        '1008'
    """
    return text.rpartition("####")[2].partition("<|im_end|>")[0].replace(",", "").strip()
