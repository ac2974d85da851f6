"""Fine-tune a causal language model to put data into words (§5.3), with learned LoRA ranks.

    python run_nlg.py --method autolora --task_name e2e
    python run_nlg.py --task_name webnlg --train_file train.jsonl --validation_file dev.jsonl
    python run_nlg.py --train_file rows.csv --validation_file dev.csv  # columns: input, reference

Search, ranks, retrain, evaluation and files are `autolora_trainer.scripts.pipeline`; here stands what is particular to
generation. The defaults are LoRA's published ones (Hu et al. 2022, `examples/NLG` of their code). Texts are decoded
for the validation inputs, written to predictions_validation.jsonl and scored. `--help` lists the arguments in groups,
`--help_all` Trainer's as well.
"""

import importlib.util
import json
import math
import sys
from dataclasses import dataclass
from itertools import count, takewhile

from autolora_trainer.errors import guard_imports, run_guarded

if __name__ == "__main__":
    guard_imports("run_nlg.py")  # the following take seconds, and may fail

import torch
from transformers import AutoModelForCausalLM

from autolora_trainer.files import write_atomically
from autolora_trainer.scripts.arguments import DataArguments
from autolora_trainer.scripts.command_line import parse_arguments
from autolora_trainer.scripts.job import Job
from autolora_trainer.scripts.pipeline import execute
from autolora_trainer.scripts.request import Request
from autolora_trainer.scripts.task_kind import TaskKind
from autolora_trainer.tasks import nlg
from autolora_trainer.tasks.files import shown_path
from autolora_trainer.tasks.generation import generate_texts
from autolora_trainer.training.processes import refuse_sharding
from autolora_trainer.values import check_choice, check_numbers, setting


@dataclass
class NlgArguments(DataArguments):
    """Which rows to train and evaluate on, how the model reads them, and how texts are decoded.

    "LoRA": the commands in the README of LoRA's `examples/NLG`, and their code.
    """

    own_group = "prompts and decoding"  # the title of the arguments that other scripts have not

    max_seq_length: int = setting(  # LoRA: --seq_len 512
        512, "Tokens of prompt and text together. A longer text is cut, a longer prompt refused."
    )
    max_eval_samples: int | None = setting(None, "Evaluate on the first N inputs.")
    max_predict_samples: int | None = setting(None, "Predict the first N inputs.")
    base_dropout: float = setting(  # LoRA's GPT-2 has no dropout but that of its adapters; Hugging Face's has 0.1
        0.0, "Dropout inside the frozen model, in training; see lora_dropout for LoRA's."
    )
    prompt_format: str = setting(
        "lora",
        "lora: as LoRA's code writes the data (`name : X | Type : Y`); words: the same with blanks for "
        "`_` and without quotes, so that a value can be copied token by token; plain: as the rows have it.",
    )
    one_line: bool = setting(
        True,
        "Texts are lines: decoding ends at a line break, and one in a reference becomes a blank (it is said). False: "
        "texts of several lines, with their indentation.",
    )
    decode: bool = setting(True, "Decode texts and score them; false: the loss is all there is to evaluate.")
    num_beams: int = setting(10, "Beams of the search; 1: greedy.")  # LoRA: --beam 10
    length_penalty: float = setting(  # LoRA: --length_penalty 0.8; Table 11 of the paper has 0.9 for E2E
        0.8, "A beam scores its log probability over length ** length_penalty."
    )
    no_repeat_ngram_size: int = setting(  # LoRA: --no_repeat_ngram_size 4
        4, "No n tokens occur twice in a generated text (its input does not count); 0: off."
    )
    max_new_tokens: int = setting(64, "Tokens of a generated text, at most.")  # LoRA: --eval_len 64
    generation_batch_size: int = setting(16, "Inputs to decode at once, per process; the texts do not depend on it.")

    def __post_init__(self):
        super().__post_init__()
        check_choice("prompt_format", self.prompt_format, ("lora", "words", "plain"))
        check_numbers(
            self,
            {"at least 1": "num_beams max_new_tokens generation_batch_size", "at least 0": "no_repeat_ngram_size"},
        )
        if not math.isfinite(self.length_penalty):
            raise ValueError(f"length_penalty must be a finite number, got {self.length_penalty}. LoRA used 0.8.")
        if not 0 <= self.base_dropout < 1:
            raise ValueError(f"base_dropout must be at least 0 and below 1, got {self.base_dropout}.")


DROPOUTS = """
    resid_pdrop embd_pdrop attn_pdrop attention_dropout hidden_dropout embed_dropout resid_dropout dropout
    activation_dropout
""".split()


class Nlg(TaskKind):
    """Generation with a causal language model: the loss is on the text, and texts are decoded to be scored."""

    task_type = "CAUSAL_LM"
    task_names = list(nlg.NLG_TASKS)
    own_task = "nlg"
    auto_class = AutoModelForCausalLM

    def load_rows(self, request: Request):
        data, model, training = request.data, request.model, request.training
        self.task = nlg.NLG_TASKS[data.task_name]
        self.examples, self.prompts = {}, {}
        if training.do_predict and not data.decode:
            raise ValueError("Test rows are there to be decoded, got --decode false. Drop it, or the test rows.")
        if data.decode and (training.do_eval or training.do_predict):
            refuse_sharded_decoding(training)
            check_libraries()
        return nlg.load_examples(
            self.task,
            {split: getattr(data, f"{split}_file") for split in ("train", "validation", "test")},
            prompt_format=data.prompt_format,
            one_line=data.one_line,
            cache_dir=model.cache_dir,
            token=model.token,
        )

    def check_rows(self, dataset, split: str, path: str | None) -> None:
        """Nothing: `load_examples` has checked every row."""

    def load_tokenizer(self, request: Request):
        tokenizer = super().load_tokenizer(request)
        if tokenizer.eos_token_id is None:
            raise ValueError(
                f"The tokenizer of {request.model.model_name_or_path} has no end token, and a text has to end. Give "
                "another with --tokenizer_name."
            )
        return tokenizer

    def load_config(self, request: Request):
        """The model's config with the dropout of `--base_dropout`, by whatever name it has it."""
        config = super().load_config(request)
        for name in DROPOUTS:
            if hasattr(config, name):
                setattr(config, name, request.data.base_dropout)
        return config

    def check_model(self, request: Request, model) -> None:
        """A model for masked words (BERT, RoBERTa) loads as a causal one too, and would read what it is to write."""
        words = torch.zeros(2, 8, dtype=torch.long)
        words[1, -1] = 1  # the two texts differ in their last token alone
        model.eval()
        with torch.no_grad():
            first, second = model(input_ids=words.to(model.device)).logits[:, 0].float()
        tolerance = math.sqrt(torch.finfo(model.dtype).eps) * first.abs().max()
        if (first - second).abs().max() > tolerance:
            raise ValueError(
                f"{request.model.model_name_or_path} is a {type(model).__name__} that sees the words after a word, "
                "and texts are written one word after the other. Give a causal model with --model_name_or_path."
            )

    def longest(self, request: Request) -> int:
        """Tokens that a row may have: `--max_seq_length`, or fewer where the model has fewer positions."""
        return min(request.data.max_seq_length, getattr(self.config, "max_position_embeddings", None) or math.inf)

    def tokenize(self, request: Request, dataset, split: str):
        """Every pair of an input and a reference; inputs and references stay in `examples` for decoding."""
        limit = self.longest(request)
        prompts = nlg.encode_prompts(dataset["prompt"][:], self.tokenizer)
        path = getattr(request.data, f"{split}_file")
        name = shown_path(path) if path else f"The {split} split"
        advice = (
            "Raise --max_seq_length" if limit == request.data.max_seq_length else "Give a model with more positions"
        )
        nlg.check_lengths(prompts, dataset["row"][:], limit, name, f"{advice}, or leave the row out.")
        if split != "train":
            self.examples[split], self.prompts[split] = dataset, prompts
        references = [texts or [""] for texts in dataset["references"][:]]  # test inputs without one have a row, too
        pairs, cut = nlg.encode_pairs(prompts, references, self.tokenizer, limit)
        if split == "train":
            self.prompts[split] = [tuple(own) for own, texts in zip(prompts, references) for _ in texts]
        if cut:
            request.warn(f"{name}: {cut} of {len(pairs)} texts were cut, as prompt and text exceed {limit} tokens")
        return pairs

    def links(self, dataset, inputs: list) -> list[tuple]:
        """The prompt: what a pair of it and a text has as its input."""
        return [(prompt,) for prompt in self.prompts["train"]]

    def make_collator(self, request: Request):
        multiple = self.padding_multiple(request) or 1
        return nlg.PairCollator(
            self.tokenizer.pad_token_id, multiple, self.longest(request), pad_to_longest=request.data.pad_to_max_length
        )

    def extra_scores(self, job: Job, trainer, split: str) -> dict[str, float]:
        """Decode the inputs of the split, write the texts beside them, score them."""
        if not job.request.data.decode:
            return {}
        texts = self._decode(job, trainer, split)
        return self._score(job, split, texts)

    def predict(self, job: Job, trainer) -> dict[str, float]:
        """The texts of the test rows, one a line in predict_results_<task>.txt, and beside their inputs."""
        texts = self._decode(job, trainer, "test")
        if job.request.is_main_process:
            written = zip(self.examples["test"]["rows"][:], texts)
            by_row = {row: " ".join(text.splitlines()) for rows, text in written for row in rows}
            # rows of inputs beyond --max_predict_samples have none
            lines = [by_row[row] for row in takewhile(by_row.__contains__, count(1))]
            name = f"predict_results_{job.request.data.task_name}.txt"
            write_atomically(job.folder.file(name), "\n".join([*lines, ""]))
        if not self.examples["test"][0]["references"]:
            return {}
        return self._score(job, "test", texts)

    def _decode(self, job: Job, trainer, split: str) -> list[str]:
        data = job.request.data
        texts = generate_texts(
            trainer.model,
            self.tokenizer,
            self.prompts[split],
            num_beams=data.num_beams,
            length_penalty=data.length_penalty,
            no_repeat_ngram_size=data.no_repeat_ngram_size,
            max_new_tokens=data.max_new_tokens,
            batch_size=data.generation_batch_size,
            one_line=data.one_line,
            verbatim=self.task.verbatim,
            progress=not job.request.training.disable_tqdm,
        )
        if job.request.is_main_process:
            rows = (
                {"input": example["source"], "prediction": text, "references": example["references"]}
                for example, text in zip(self.examples[split], texts)
            )
            lines = [json.dumps(row, ensure_ascii=False) for row in rows]
            write_atomically(job.folder.file(f"predictions_{split}.jsonl"), "\n".join([*lines, ""]))
        return texts

    def _score(self, job: Job, split: str, texts: list[str]) -> dict[str, float]:
        """The task's metrics. One process computes them (METEOR starts a Java program), all return them."""
        outcome: list = [None, None]  # scores, error
        if job.request.is_main_process:
            from autolora_trainer.tasks import nlg_metrics  # its libraries are an extra of the package

            examples = self.examples[split]
            seen = examples["seen"][:]
            try:
                outcome[0] = nlg_metrics.score(
                    self.task.name, texts, examples["references"][:], seen if len(set(seen)) > 1 else None
                )
            except Exception as error:
                outcome[1] = error
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.broadcast_object_list(outcome)
        if outcome[1] is not None:
            raise outcome[1]
        return outcome[0]

    def card_details(self, request: Request) -> dict:
        return self.data_details(request, self.task.title, self.task.dataset_id)


def refuse_sharded_decoding(training) -> None:
    """Raise `ValueError` where the weights are sharded: a forward pass then waits for all processes, and they have
    different numbers of them to make."""
    plugin = getattr(training, "deepspeed_plugin", None)
    if plugin is None or plugin.zero_stage == 3:  # the stages below it leave the weights whole
        refuse_sharding(
            training,
            "Every process decodes texts of its own with whole weights",
            "or add --decode false, and decode afterwards with --do_eval",
        )


def check_libraries() -> None:
    """Raise `ValueError` before a training whose texts could not be scored."""
    if importlib.util.find_spec("sacrebleu") is None:
        raise ValueError(
            "Scores of generated text need sacrebleu, which is not installed. Type pip install "
            '".[nlg]", or add --decode false.'
        )


# LoRA's GPT-2 medium on E2E and WebNLG: the README of `examples/NLG` and, where that is silent, the code's defaults.
DEFAULTS = {
    "model_name_or_path": "gpt2-medium",  # --model_card gpt2.md
    "lora_alpha": 32,  # --lora_alpha 32
    "lora_dropout": 0.1,  # --lora_dropout 0.1
    "num_train_epochs": 5,  # --max_epoch 5
    "per_device_train_batch_size": 8,  # --train_batch_size 8
    "per_device_eval_batch_size": 8,  # not LoRA's 4; the vocabulary makes logits large, and scores do not depend on it
    "learning_rate": 2e-4,  # --lr 0.0002
    # --warmup_step 500 of E2E's 26,290, as a share: 500 would be more than a whole search, or a small data set, has
    "warmup_steps": 0.019,
    "weight_decay": 0.01,  # --weight_decay 0.01
    "adam_epsilon": 1e-6,  # the code's default
    "max_grad_norm": 0.0,  # --clip 0.0
    "label_smoothing_factor": 0.1,  # --label_smooth 0.1
}
TASK_DEFAULTS = {"webnlg": {"warmup_steps": 0.04415}}  # 500 of 11,315

# §5.1 gives batch 16 and learning rate 1e-4 for generation too, and is silent about LoRA's alpha.
PRESET_CHANGES = {"lora_alpha": 32}


def main(argv: list[str] | None = None) -> dict:
    model, data, method, training = parse_arguments(
        argv, TASK_DEFAULTS, NlgArguments, preset_changes=PRESET_CHANGES, about=__doc__, **DEFAULTS
    )
    return execute(Nlg(), model, data, method, training)


if __name__ == "__main__":
    sys.exit(run_guarded(main, "run_nlg.py"))
