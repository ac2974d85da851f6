"""Are score and prediction of a row the same alone, in a batch of 17 and on two processes, for every method that saves
an adapter, whatever the tokenizer pads with, and wherever?"""

import json
import re

import numpy as np
import pytest
import torch
import transformers
from tokenizers import processors
from transformers import (
    BartConfig,
    BartForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    XLNetConfig,
    XLNetForSequenceClassification,
)

import run_glue
import run_ner
import run_nlg
from autolora_trainer.methods.registry import METHODS
from autolora_trainer.scripts.command_line import parse_arguments
from autolora_trainer.scripts.job import make_trainer
from autolora_trainer.scripts.pipeline import prepare
from autolora_trainer.scripts.request import settle
from tests.helpers.commands import as_argv
from tests.helpers.models import SMALL, byte_gpt2, byte_llama, byte_tokenizer, tiny_roberta
from tests.helpers.processes import in_processes
from tests.helpers.rows import write_rows

BART = {"encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
MODELS = {  # of which no config has the padding token of its tokenizer, which pads on the left
    "encoder": lambda: BertForSequenceClassification(
        BertConfig(**{**SMALL, "vocab_size": 258}, intermediate_size=32, initializer_range=0.5)
    ),
    "decoder": lambda: byte_llama(pad_token_id=0),
    "positions": lambda: byte_gpt2(vocab_size=258),
    "both": lambda: BartForSequenceClassification(
        BartConfig(vocab_size=258, d_model=16, encoder_ffn_dim=32, decoder_ffn_dim=32, init_std=0.5, **BART)
    ),
    "left": lambda: XLNetForSequenceClassification(
        XLNetConfig(vocab_size=258, d_model=16, n_layer=2, n_head=2, d_inner=32, initializer_range=0.5)
    ),
}
TEXTS = ["abcdefghijklmnop"[: 1 + 5 * i % 13] for i in range(17)]
ROWS = {
    "glue": [{"sentence": text, "label": i % 2} for i, text in enumerate(TEXTS)],
    "ner": [{"tokens": [*text], "tags": ["B-x", *"O" * (len(text) - 1)]} for text in TEXTS],
    "nlg": [{"input": text, "reference": text[::-1]} for text in TEXTS],
}
OWN = {
    "adapter": {"adapter_size": 4},
    **{name: {"size": "lora:2"} for name in ("uniform", "random", "linear", "svd", "eva")},
    "adalora": {"lora_r": 2, "max_steps": 20},
    "peft": {"peft_type": "dora"},
    **{name: {"peft_kwargs": '{"num_virtual_tokens": 4}'} for name in ("prefix_tuning", "prompt_tuning", "p_tuning")},
}
LORA = ["random", "linear", "svd", "eva", "adalora"]  # which save it too, with ranks of their own
EVERY = ["lora", "uniform", "full", "adapter", "ia3", "prefix_tuning", "prompt_tuning", "p_tuning", "peft"]
CASES = [
    *(("glue", "encoder", method) for method in EVERY + LORA),
    *(("glue", "decoder", method) for method in EVERY if method not in ("prompt_tuning", "p_tuning")),
    *(("glue", family, "lora") for family in ("positions", "both", "left")),
    *(("ner", "encoder", method) for method in ("lora", "prefix_tuning")),
    *(("nlg", family, method) for family in ("decoder", "positions") for method in ("lora", "prompt_tuning")),
]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("place")
    for name, model in MODELS.items():
        torch.manual_seed(0)
        model().save_pretrained(folder / name)
        tokenizer = byte_tokenizer(llama=name == "both")
        if name == "both":  # BART reads a text at its end, and its padding is no end
            end = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 257)])
            tokenizer.backend_tokenizer.post_processor, tokenizer.pad_token = end, "<s>"
        tokenizer.padding_side = "left"
        tokenizer.save_pretrained(folder / name)
    for script, rows in ROWS.items():
        write_rows(folder / f"{script}.jsonl", rows)
    return folder


def argv(place, script, family, method, output, **changes):
    settings = {
        "task_name": "sst2" if script == "glue" else None,
        "model_name_or_path": place / family,
        **{f"{split}_file": place / f"{script}.jsonl" for split in ("train", "validation")},
        "method": method,
        "output_dir": output,
        "lora_target_modules": "all-linear" if method in ("lora", "uniform") else None,
        "decode": False if script == "nlg" else None,
        "use_cpu": True,
        "max_seq_length": 48,
        **({"label_smoothing_factor": 0} if script == "nlg" else {}),
        **OWN.get(method, {}),
    }
    return as_argv({**settings, **changes})


def trained(place, script, family, method, output, **changes):
    """The Trainer of a method whose weights have moved."""
    task, kind = {"glue": (run_glue.Glue, {}), "ner": (run_ner.Ner, {"data_arguments": run_ner.NerDataArguments}),
                  "nlg": (run_nlg.Nlg, {"data_arguments": run_nlg.NlgArguments})}[script]  # fmt: skip
    job = prepare(settle(task(), *parse_arguments(argv(place, script, family, method, output, **changes), **kind)))
    job.folder.clear = lambda: output.mkdir(exist_ok=True)
    model, generator = METHODS[method].prepare(job)().model, torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return make_trainer(job, model, [])


def scores(trainer, size):
    """(the logits of every row, its own tokens alone; the loss of all) in batches of one size."""
    trainer.args.per_device_eval_batch_size, rows = size, trainer.eval_dataset
    trainer.compute_metrics = None
    found = trainer.predict(rows)
    lengths, logits = [len(ids) for ids in rows["input_ids"]], found.predictions
    logits = logits[0] if isinstance(logits, tuple) else logits
    if logits.ndim == 3:
        virtual = logits.shape[1] - max(lengths)
        logits = [own[virtual : virtual + length] for own, length in zip(logits, lengths)]
    return [np.asarray(own) for own in logits], found.metrics["test_loss"]


def check_same(first, second):
    for own, other in zip(first[0], second[0], strict=True):
        np.testing.assert_allclose(own, other, atol=2e-4 * max(1, abs(own).max()))
    assert first[1] == pytest.approx(second[1], rel=2e-5)


@pytest.mark.parametrize("script, family, method", CASES, ids=["-".join(case) for case in CASES])
def test_a_row_alone_and_in_a_batch_of_17(place, tmp_path, script, family, method):
    trainer = trained(place, script, family, method, tmp_path / "o")
    alone = scores(trainer, 1)
    check_same(alone, scores(trainer, 17))
    assert np.ptp(np.concatenate([own.ravel() for own in alone[0]])) > 1e-2  # it says something
    sides = {"left": "left", "encoder": "right", "positions": "right", "decoder": "right", "both": "right"}
    assert script == "nlg" or trainer.processing_class.padding_side == sides[family]


@pytest.mark.parametrize("method", ["prompt_tuning", "p_tuning"])
def test_a_head_that_takes_padding_for_the_end_of_a_text_is_refused(place, tmp_path, method):
    """Virtual tokens go in as vectors, among which a decoder's head finds no padding."""
    said = f"{method.upper()} does not work with .*: what it computes of a row depends on the rows beside it: padding"
    with pytest.raises(ValueError, match=said):
        trained(place, "glue", "decoder", method, tmp_path / "o")


def evaluated(place, output):
    """What each of two processes finds of every row."""
    for script, family in (("glue", "decoder"), ("ner", "encoder"), ("nlg", "positions"), ("glue", "both")):
        logits, loss = scores(trained(place, script, family, "lora", output / f"{script}-{family}"), 4)
        if torch.distributed.get_rank() == 0:
            kept = {"logits": [own.tolist() for own in logits], "loss": loss}
            (output / f"{script}-{family}.json").write_text(json.dumps(kept))


def test_two_processes_find_what_one_does(place, tmp_path):
    in_processes(tmp_path, evaluated, place, tmp_path)
    for path in tmp_path.glob("*.json"):
        both = json.loads(path.read_text())
        alone = scores(trained(place, *path.stem.split("-"), "lora", tmp_path / "o"), 1)
        check_same(alone, ([np.array(own) for own in both["logits"]], both["loss"]))
    assert len(list(tmp_path.glob("*.json"))) == 4


def test_a_saved_adapter_comes_back_to_its_score_in_any_batch_and_by_its_card(place, tmp_path, monkeypatch):
    """The decoder's config says 0 where the tokenizer pads with 256."""
    output = tmp_path / "o"
    typed = argv(place, "glue", "decoder", "lora", output, max_steps=8, learning_rate=1e-2, save_strategy="no")
    results = run_glue.main(typed)
    for size in (1, 8, 17):
        again = run_glue.main([*typed, "--do_eval", "--per_device_eval_batch_size", str(size)])
        assert again["eval_loss"] == pytest.approx(results["eval_loss"], rel=1e-5)
    monkeypatch.chdir(output)
    program = re.search("```python\n(.*?)```", (output / "README.md").read_text(), re.DOTALL)[1]
    names = {}
    exec(re.sub('base = "BASE_MODEL".*', f'base = "{place / "decoder"}"', program), names)
    found = []
    for size in (1, 17):
        parts = [TEXTS[start : start + size] for start in range(0, 17, size)]
        batches = [names["tokenizer"](part, padding=True, return_tensors="pt") for part in parts]
        with torch.no_grad():
            found.append(torch.cat([names["model"].eval()(**batch).logits for batch in batches]))
    assert torch.allclose(*found, atol=1e-4)
    loss = torch.nn.functional.cross_entropy(found[0], torch.tensor([row["label"] for row in ROWS["glue"]])).item()
    assert loss == pytest.approx(results["eval_loss"], rel=1e-4)


def test_a_model_that_mixes_padding_in_needs_rows_of_one_length(place, tmp_path):
    kind = {"vocab_size": 258, "hidden_size": 16, "num_hidden_layers": 2, "intermediate_size": 32}
    config = transformers.FNetConfig(**kind, max_position_embeddings=64, initializer_range=0.5)
    transformers.FNetForSequenceClassification(config).save_pretrained(place / "fnet")
    byte_tokenizer().save_pretrained(place / "fnet")
    said = (
        "FNetForSequenceClassification computes of a row depends on the rows beside it: padding on the right or left "
    )
    with pytest.raises(ValueError, match=said + "changes it by .*Add --pad_to_max_length"):
        trained(place, "glue", "fnet", "full", tmp_path / "o")
    trainer = trained(place, "glue", "fnet", "full", tmp_path / "o", pad_to_max_length=True)
    check_same(scores(trainer, 1), scores(trainer, 17))


def test_a_padding_token_that_positions_are_counted_from_is_the_models(place, tmp_path):
    tiny_roberta(vocab_size=258).save_pretrained(place / "roberta")
    byte_tokenizer().save_pretrained(place / "roberta")
    with pytest.raises(
        ValueError, match="pads with token 256, and Roberta.* counts positions from its own padding tok"
    ):
        trained(place, "glue", "roberta", "lora", tmp_path / "o")


def test_a_row_without_a_token_is_named(place, tmp_path):
    rows = [{"sentence": text, "label": i % 2} for i, text in enumerate(["ab", "", "c"])]
    path = write_rows(tmp_path / "rows.jsonl", rows)
    with pytest.raises(
        ValueError, match="Row 2 has no token: '' is none to this tokenizer. Write a text, or leave it"
    ):
        trained(place, "glue", "decoder", "lora", tmp_path / "o", train_file=path)
