"""Ways in which a loss, a weight, a prediction or a score can turn out to be no number; for reliability.py.

Most come about by themselves: the checkpoint's embedding of one word is NaN, and the word stands in some rows. None
may end in a result: status 1, one line with the first step or row, no file of ours with NaN, checkpoints as they were.
"""

import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

import run_glue
import run_ner
import run_nlg
from autolora_trainer import AutoLoraTrainer
from autolora_trainer.commands import cli
from autolora_trainer.training.finite import FiniteStepMixin
from benchmarks.lib.forked import Bench
from tests.helpers.models import byte_gpt2, byte_tokenizer
from tests.helpers.rows import restaurants, reviews, sentences, write_rows

POISON = "cast"  # a word that no row has by itself
PLACE = 120  # of a token, in a text that is longer than others: of a model of texts its embedding is NaN
LORA = {"method": "lora", "lora_r": 4, "initial_rank": 8, "hypergradient_interval": 1, "search_max_steps": -1}
MAINS = {"glue": run_glue.main, "ner": run_ner.main, "nlg": run_nlg.main, "cli": cli.main}
IN_A_ROW = r"step 10 of \d+: the loss was not finite for 10 steps in a row, the first of them step 1\."


@dataclass(frozen=True)
class Way:
    """One way.

    Args:
        what: it is.
        says: a regular expression of the last line; None for a run that ends well, with numbers alone.
        given: arguments that differ from a plain LoRA of 12 steps with a checkpoint at each; or the whole command.
        rows: {split: numbers, from 1, of the rows that hold the word}.
        before: changes the process.
        checks: results -> whether they are right, of a run that ends well.
    """

    what: str
    says: str | None
    given: dict | list = field(default_factory=dict)
    rows: dict = field(default_factory=dict)
    before: Callable | None = None
    script: str = "glue"
    status: int = 1
    checks: Callable = lambda results: True


def spoilt_gradient() -> None:
    """In the fifth step."""
    plain = FiniteStepMixin.training_step

    def training_step(self, model, *args, **kwargs):
        loss = plain(self, model, *args, **kwargs)
        if self.state.global_step == 4:
            next(p for p in model.parameters() if p.grad is not None).grad.view(-1)[0] = math.inf
        return loss

    FiniteStepMixin.training_step = training_step


def spoilt_hypergradient() -> None:
    plain = AutoLoraTrainer._step_selection

    def step_selection(self, result):
        result.direct[0, 0] = math.nan
        return plain(self, result)

    AutoLoraTrainer._step_selection = step_selection


def spoilt_held_out() -> None:
    """Held-out losses, which no step is taken by."""
    plain = AutoLoraTrainer._held_out_loss

    def held_out_loss(self, model, inputs):
        sums, counts = plain(self, model, inputs)
        return sums if torch.is_grad_enabled() else sums * math.nan, counts

    AutoLoraTrainer._held_out_loss = held_out_loss


SEARCH = {"method": "autolora", "lora_r": None, "initial_rank": 4, "search_max_steps": 24}
EVERY = {"train": range(1, 65)}
STSB, NER, NLG = {"task_name": "stsb"}, {"task_name": "ner"}, {"task_name": "nlg", "decode": False}
PHASES = {"do_train": True, "do_eval": True, "do_predict": True}
COMPRESS = ["compress", "{adapter}", "--base_model", "{model}", "--output_dir", "{out}", "--eval_file"]
HEAL = ["--heal_steps", "4", "--train_file", "{train}", "--learning_rate", "1e38"]
FIND = ["find", "{model}", "{train}", "--output_dir", "{out}", "--search_steps", "24", "--size", "lora:2"]
DIVERGED = r"NaN or inf|not finite|no finite|no number"
WAYS = [
    Way("a training row is skipped", None, rows={"train": [3]}),
    Way("a training row, --non_finite stop", r"step \d+ of 12: the loss is not finite", {"non_finite": "stop"},
        {"train": range(1, 65, 8)}),
    Way("every training row", IN_A_ROW, rows=EVERY),
    Way("every training row of a short training", "step 3 of 3: the loss was not finite, in this step and all before",
        {"max_steps": 3}, EVERY),
    Way("every training row, logged without Trainer's filter", IN_A_ROW, {"logging_nan_inf_filter": False}, EVERY),
    Way("a gradient, --non_finite stop", "step 5 of 12: the gradient is not finite", {"non_finite": "stop"},
        before=spoilt_gradient),
    Way("a gradient is skipped", None, {"logging_steps": 1}, before=spoilt_gradient),
    Way("every hypergradient", "the hypergradient was not finite for 10 selection steps in a row", SEARCH,
        before=spoilt_hypergradient),
    Way("every row of a search", IN_A_ROW, SEARCH, EVERY),
    Way("the held-out loss of a search", "The loss of held-out row|Infinity", SEARCH, before=spoilt_held_out),
    Way("a learning rate that diverges at once", DIVERGED, {"learning_rate": 1e38}),
    Way("it, in one step", DIVERGED, {"learning_rate": 1e38, "max_steps": 1}),
    Way("it, in bf16", DIVERGED, {"learning_rate": 1e38, "bf16": True}),
    Way("it, in a search", f"cannot take its first step: .*({DIVERGED})", {**SEARCH, "learning_rate": 1e38}, status=2),
    Way("a validation row", "evaluation after step 12 of 12: row 3 gives NaN", rows={"validation": [3, 9]}),
    Way("a validation row, during training", "evaluation after step 4 of 12: row 3 gives NaN",
        {"eval_strategy": "steps", "eval_steps": 4}, {"validation": [3]}),
    Way("a validation row, losses alone", "evaluation after step 12 of 12: one of the rows 9 to 16 gives NaN",
        {"prediction_loss_only": True, "per_device_eval_batch_size": 8}, {"validation": [13]}),
    Way("a test row", "row 2 gives NaN", PHASES, {"test": [2]}),
    Way("an adapter with NaN in it, evaluated alone", "holds NaN or infinity. Train it again",
        {"output_dir": "{spoilt}", "do_eval": True, "overwrite": None}),
    Way("a similarity", "evaluation after step 12 of 12: row 3 gives NaN", STSB, {"validation": [3]}),
    Way("a similarity to predict", "row 3 gives NaN", {**STSB, **PHASES}, {"test": [3]}),
    Way("one similarity for all rows is no correlation", None, {**STSB, "validation_file": "{same}"},
        checks=lambda results: results["eval_pearsonr"] == results["eval_spearmanr"] == 0),
    Way("a label", "the label is nan", {**STSB, "train_file": "{nan}"}, status=2),
    Way("a sentence with entities", "evaluation after step 12 of 12: row 3 gives NaN", NER, {"validation": [3]},
        script="ner"),
    Way("a sentence to tag", "row 1 gives NaN", {**NER, **PHASES}, {"test": [1]}, script="ner"),
    Way("a long text", "evaluation after step 12 of 12: one of the rows 1 to 8 gives NaN", NLG, {"validation": [3]},
        script="nlg"),
    Way("a text to write", "The model gives NaN or infinity for the text of input 2, and 1 of 4 in all",
        {**NLG, "decode": True, "num_beams": 2, "do_train": True, "do_predict": True}, {"test": [2]}, script="nlg"),
    Way("every trial of a grid", "all trainings diverged", {**LORA, "method": "grid", "lora_r": None, "grid_trials": 2,
        "learning_rate": 1e38}),
    *(Way(f"every training row, --method {name}", IN_A_ROW, {**LORA, "method": name, "lora_r": None, **own}, EVERY)
      for name, own in {"adalora": {}, "adapter": {"initial_rank": None}, "svd": {}, "uniform": {}}.items()),
    Way("every training row, --method full", "embeddings.weight holds NaN",  # the row's word is one of its weights
        {**LORA, "method": "full", "lora_r": None, "initial_rank": None}, EVERY),
    Way("every training row, --method peft", "its loss on the first two rows is nan",
        {**LORA, "method": "peft", "lora_r": None, "peft_type": "ia3"}, EVERY, status=2),
    Way("a held-out row of compress", DIVERGED, [*COMPRESS, "{validation}"], {"validation": [3]}, script="cli"),
    Way("healing that diverges", DIVERGED, [*COMPRESS, "{validation}", *HEAL], script="cli"),
    Way("every row of find", IN_A_ROW, FIND, EVERY, script="cli"),
    Way("find that diverges", DIVERGED, [*FIND, "--learning_rate", "1e38"], script="cli"),
    *(Way(f"--{name} {value}", f"{name} must be", {name: value}, status=2)
      for name, value in (("learning_rate", "nan"), ("weight_decay", "inf"), ("max_grad_norm", "nan"),
                          ("lora_dropout", "nan"), ("adam_epsilon", "inf"), ("warmup_steps", "nan"))),
]  # fmt: skip


def no_number(bench: Bench, count: int):
    """Every way of `WAYS`, or the first `count`."""
    _prepare(bench)
    for way in bench.left(WAYS[: count or None]):
        folder = bench.path(f"way-{WAYS.index(way)}")
        folder.mkdir()
        argv = _argv(bench, way, folder)
        fault = _judge(bench, way, bench.run(argv, way.before, MAINS[way.script]), Path(_places(bench, folder)["out"]))
        yield fault and f"{way.what}: {fault}"


def _prepare(bench: Bench) -> None:
    """Checkpoints with an embedding that is NaN, and an adapter with a weight that is."""
    tokens = json.loads(bench.path("model", "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    _spoil(bench.path("model", "model.safetensors"), "word_embeddings.weight", tokens[POISON])
    byte_gpt2(initializer_range=0.1).save_pretrained(bench.path("gpt2"))
    byte_tokenizer().save_pretrained(bench.path("gpt2"))
    _spoil(bench.path("gpt2", "model.safetensors"), "wpe.weight", PLACE)
    for name in ("adapter", "spoilt"):
        if bench.run(bench.argv(name, **{**LORA, "search_max_steps": None})):
            raise RuntimeError(bench.log())
    bench.path("spoilt", "all_results.json").unlink()
    _spoil(bench.path("spoilt", "adapter_model.safetensors"), "query.lora_B.weight", 0)
    pair = {"sentence1": "the film was good", "sentence2": "the plot was good"}
    write_rows(bench.path("same.jsonl"), [{**pair, "label": score} for score in (0.0, 2.0, 5.0)])
    bench.path("nan.jsonl").write_text(json.dumps({**pair, "label": math.nan}) + "\n", encoding="utf-8")


def _spoil(path: Path, name: str, row: int) -> None:
    tensors = load_file(path)
    next(tensor for key, tensor in tensors.items() if key.endswith(name))[row] = math.nan
    save_file(tensors, path, metadata={"format": "pt"})


def _places(bench: Bench, folder: Path) -> dict[str, str]:
    names = ("model", "gpt2", "adapter", "spoilt", "same.jsonl", "nan.jsonl")
    places = {name.partition(".")[0]: str(bench.path(name)) for name in names}
    splits = {split: str(folder / f"{split}.jsonl") for split in ("train", "validation", "test")}
    return {**places, **splits, "out": str(folder / "out")}


def _argv(bench: Bench, way: Way, folder: Path) -> list[str]:
    """The command of a way; its rows are written into its folder."""
    places = _places(bench, folder)
    for split, number in (("train", 64), ("validation", 16), ("test", 4)):
        write_rows(Path(places[split]), _rows(way, number, way.rows.get(split, ())))
    if isinstance(way.given, list):
        return [word.format(**places) for word in way.given]
    given = {f"{split}_file": places[split] for split in ("train", "validation", "test")}
    if not way.given.get("do_predict"):
        given.pop("test_file")
    if way.script == "nlg":
        given |= {"model_name_or_path": places["gpt2"], "max_seq_length": 190}
    given |= {"output_dir": places["out"], **LORA, **way.given}
    return bench.argv("out", **{k: v.format(**places) if isinstance(v, str) else v for k, v in given.items()})


def _rows(way: Way, number: int, spoilt) -> list[dict]:
    task = way.given.get("task_name") if isinstance(way.given, dict) else None
    if task == "nlg":
        made = [
            {"input": row["meaning_representation"], "reference": row["human_reference"]}
            for row in restaurants(number)
        ]
        return [{**row, "input": row["input"] + "." * PLACE} if n in spoilt else row for n, row in enumerate(made, 1)]
    if task == "ner":
        return [{"tokens": [POISON, *row["tokens"]], "tags": ["O", *row["tags"]]} if n in spoilt else row
                for n, row in enumerate(reviews(number), 1)]  # fmt: skip
    made = sentences(number)
    texts = [
        row["sentence"].replace("the", POISON) if n in spoilt else row["sentence"] for n, row in enumerate(made, 1)
    ]
    if task == "stsb":
        pairs = (
            zip(texts, texts[1:] + texts[:1], made)
            if not spoilt
            else zip(texts, [row["sentence"] for row in made], made)
        )
        return [{"sentence1": one, "sentence2": two, "label": 5.0 * row["label"]} for one, two, row in pairs]
    if way.script == "cli":
        return [{"text": text, "label": row["label"]} for text, row in zip(texts, made)]
    return [{"sentence": text, "label": row["label"]} for text, row in zip(texts, made)]


def _judge(bench: Bench, way: Way, status: int, folder: Path) -> str | None:
    log = bench.log().strip()
    last = log.splitlines()[-1] if log else ""
    wanted = 0 if way.says is None else way.status
    if status != wanted:
        return f"status {status}, not {wanted}: {last}"
    if "Traceback" in log:
        return "a traceback"
    if way.says is not None and not re.search(way.says, last):
        return f"it says {last}"
    results = folder / "all_results.json"
    if results.exists() != (way.says is None):
        return "results" if way.says else "no results"
    for path in [path for path in folder.rglob("*.json*") if path.is_file()]:
        for line in (
            path.read_text(encoding="utf-8").splitlines()
            if path.suffix == ".jsonl"
            else [path.read_text(encoding="utf-8")]
        ):
            try:
                json.loads(line, parse_constant=_none)
            except ValueError as error:
                return f"{path.name} {error}"
    for path in folder.rglob("*.safetensors"):
        if not all(tensor.isfinite().all() for tensor in load_file(path).values() if tensor.is_floating_point()):
            return f"{path.parent.name}/{path.name} holds NaN or infinity"
    if way.says is None and not way.checks(json.loads(results.read_text(encoding="utf-8"))):
        return f"other results: {results.read_text(encoding='utf-8')}"
    return None


def _none(name: str):
    raise ValueError(f"holds {name}")
