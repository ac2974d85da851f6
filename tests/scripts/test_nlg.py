"""Does run_nlg.py leave texts beside inputs and references, and is bad data named in one line?"""

import json
import math
import re
from types import SimpleNamespace

import pytest
from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast, set_seed

import run_nlg
from autolora_trainer import LearnedRanks
from autolora_trainer.errors import UsageError, run_guarded
from autolora_trainer.ranks.learned import ModuleRank
from autolora_trainer.scripts import job as jobs
from autolora_trainer.scripts.command_line import parse_arguments
from autolora_trainer.scripts.pipeline import execute
from autolora_trainer.tasks import generation, nlg, nlg_metrics
from tests.helpers.commands import as_argv
from tests.helpers.measures import by_hand
from tests.helpers.models import byte_gpt2, byte_llama, byte_tokenizer
from tests.helpers.rows import restaurants, write_rows


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with two checkpoints and rows."""
    folder = tmp_path_factory.mktemp("place")
    set_seed(0)
    byte_gpt2(initializer_range=0.1).save_pretrained(folder / "gpt2")
    byte_tokenizer().save_pretrained(folder / "gpt2")
    byte_llama(initializer_range=0.1).save_pretrained(folder / "llama")
    byte_tokenizer(llama=True).save_pretrained(folder / "llama")
    write_rows(folder / "train.jsonl", restaurants(16))
    write_rows(folder / "validation.jsonl", restaurants(3, 20) + restaurants(1, 20))
    write_rows(folder / "test.jsonl", restaurants(2, 30))
    return folder


@pytest.fixture(autouse=True)
def scores(monkeypatch):
    """Neither Java nor the libraries of the metrics: what was asked is kept, and 12.5 is the answer."""
    asked = []

    def score(*arguments):
        asked.append(arguments)
        return {"bleu": 12.5}

    monkeypatch.setattr(nlg_metrics, "score", score)
    monkeypatch.setattr(run_nlg, "check_libraries", lambda: None)
    return asked


def command(place, output, model="gpt2", **changes):
    settings = {
        "task_name": "e2e",
        "model_name_or_path": place / model,
        "train_file": place / "train.jsonl",
        "validation_file": place / "validation.jsonl",
        "output_dir": output,
        "num_train_epochs": 1,
        "max_new_tokens": 8,
        "num_beams": 2,
        "per_device_train_batch_size": 4,
        "initial_rank": 2,
        "lora_target_modules": "query-value",
        "val_fraction": 0.5,
        "search_epochs": 2,
        "hypergradient_interval": 1,
        "use_cpu": True,
        "save_strategy": "no",
    }
    return as_argv({**settings, **changes})


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("method", ["uniform", "random", "linear", "svd"])
def test_a_baseline_has_the_size_of_ranks_of_parts(place, tmp_path, scores, method):
    """GPT-2's query and value are parts of `c_attn`."""
    found = {f"transformer.h.{i}.attn.c_attn#{part}": ModuleRank(1 + i) for i in range(2) for part in "qv"}
    LearnedRanks(found, initial_rank=4).save(tmp_path / "ranks.json")
    argv = command(place, tmp_path / "o", method=method, ranks=tmp_path / "ranks.json", initial_rank=4, num_beams=1)
    run_nlg.main(argv)
    ranks = LearnedRanks.load(tmp_path / "o" / "ranks.json")
    assert set(ranks.modules) == set(found) and ranks.total_rank == 6
    argv = command(place, tmp_path / "p", method=method, ranks=tmp_path / "ranks.json", lora_target_modules=["c_attn"])
    with pytest.raises(UsageError, match="ranks.json names 4 modules, and this run adapts other ones: not '.*#q'"):
        run_nlg.main(argv)


def test_references_of_one_input_stay_on_one_side_of_the_search(place, tmp_path, monkeypatch):
    rows = [
        {"meaning_representation": f"name[{name}]", "human_reference": f"{name} {i}"}
        for name in "abcdef"
        for i in (1, 2)
    ]
    write_rows(tmp_path / "train.jsonl", rows)
    sides = []
    split = jobs.split_three

    def recorded(dataset, *arguments):
        sides[:] = split(dataset, *arguments)
        return sides

    monkeypatch.setattr(jobs, "split_three", recorded)
    argv = command(place, tmp_path / "o", method="autolora", train_file=tmp_path / "train.jsonl", decode=False)
    run_nlg.main([*argv, "--max_steps", "1"])
    prompts = [{str(row["input_ids"][: row["labels"].count(-100)]) for row in side} for side in sides]
    assert [len(side) for side in sides] in ([6, 2, 4], [6, 4, 2])
    assert len(set.union(*prompts)) == 6


@pytest.mark.parametrize("model, targets", [("gpt2", None), ("llama", ["q_proj", "v_proj"])])
@pytest.mark.parametrize("method", ["lora", "autolora"])
def test_a_run_leaves_texts_beside_inputs_and_references_and_a_fresh_call_decodes_the_same(
    place, tmp_path, scores, model, targets, method
):
    output = tmp_path / "o"
    argv = command(place, output, model, method=method, lora_target_modules=targets, test_file=place / "test.jsonl")
    results = run_nlg.main(argv)
    assert results["eval_bleu"] == results["predict_bleu"] == 12.5 and results["eval_samples"] == 4
    written = lines(output / "predictions_validation.jsonl")
    assert [row["input"] for row in written] == [
        f"name[Cafe {i}], area[{a}]" for i, a in ((20, "riverside"), (21, "city centre"), (22, "riverside"))
    ]
    assert written[0]["references"] == ["Cafe 20 is by the riverside."] * 2
    assert all(row.keys() == {"input", "prediction", "references"} for row in written)
    task, texts, references, seen = scores[0]
    assert (task, seen) == ("e2e", None) and texts == [row["prediction"] for row in written]
    assert references == [row["references"] for row in written]
    tested = lines(output / "predictions_test.jsonl")
    texts = [" ".join(row["prediction"].splitlines()) for row in tested]
    assert (output / "predict_results_e2e.txt").read_text() == "\n".join([*texts, ""])
    assert json.loads((output / "adapter_config.json").read_text())["task_type"] == "CAUSAL_LM"
    assert "trained on own rows in the form of E2E, " in (output / "README.md").read_text()
    before = (output / "predictions_validation.jsonl").read_bytes()
    (output / "predictions_validation.jsonl").unlink()
    again = run_nlg.main(argv + ["--do_eval"])
    assert (output / "predictions_validation.jsonl").read_bytes() == before
    assert again["eval_loss"] == pytest.approx(results["eval_loss"], rel=1e-5)


def test_decode_false_evaluates_the_loss_alone(place, tmp_path, monkeypatch, scores):
    monkeypatch.setattr(generation, "generate_texts", None)
    results = run_nlg.main(command(place, tmp_path / "o", method="lora", max_steps=1, decode=False))
    assert "eval_loss" in results and "eval_bleu" not in results and not scores
    assert not (tmp_path / "o" / "predictions_validation.jsonl").exists()


def test_eval_loss_is_the_mean_over_the_text_tokens_of_all_references(place, tmp_path):
    settings = {"method": "lora", "max_steps": 1, "decode": False, "label_smoothing_factor": 0, "learning_rate": 1e-9}
    results = run_nlg.main(command(place, tmp_path / "o", **settings))
    tokenizer, model = byte_tokenizer(), GPT2LMHeadModel.from_pretrained(place / "gpt2")
    prompts = nlg.encode_prompts(
        [f"name : Cafe {i} | area : {a}" for i, a in ((20, "riverside"), (21, "city centre"))], tokenizer
    )
    texts = [["Cafe 20 is by the riverside."] * 2, ["Cafe 21 is by the city centre."]]
    rows = nlg.encode_pairs(prompts, texts, tokenizer, 99)[0]
    results = run_nlg.main(command(place, tmp_path / "p", max_eval_samples=2, **settings))
    assert results["eval_samples"] == 3
    assert results["eval_loss"] == pytest.approx(by_hand(model, rows), rel=1e-4)


def test_webnlg_reports_seen_and_unseen_and_test_rows_may_lack_references(place, tmp_path, scores):
    def row(number, category):
        return {"category": category, "triples": [f"A | size | {number}"], "references": [f"A is {number}.", "It is."]}

    files = {
        "train_file": write_rows(tmp_path / "t.jsonl", [row(i, "Airport") for i in range(6)]),
        "validation_file": write_rows(tmp_path / "v.jsonl", [row(7, "Airport"), row(8, "Artist")]),
        "test_file": write_rows(tmp_path / "e.jsonl", [{"category": "City", "triples": ["A | b | c"]}]),
    }
    settings = {"task_name": "webnlg", "method": "lora", "max_steps": 1, "num_beams": 1, **files}
    results = run_nlg.main(command(place, tmp_path / "o", **settings))
    assert results["train_samples"] == 12 and "predict_bleu" not in results
    assert [asked[0] for asked in scores] == ["webnlg"] and scores[0][3] == [True, False]
    assert lines(tmp_path / "o" / "predictions_validation.jsonl")[1]["input"] == ["A | size | 8"]
    assert lines(tmp_path / "o" / "predictions_test.jsonl")[0]["references"] == []
    assert len((tmp_path / "o" / "predict_results_webnlg.txt").read_text().splitlines()) == 1


def test_every_test_row_has_a_line_of_its_own(place, tmp_path, scores, monkeypatch):
    """Those of one input too; and a line for none that comes after the first one beyond --max_predict_samples."""
    rows = [{"input": f"{word} and", "reference": f"{word}!"} for word in "abacda"]
    files = {f"{split}_file": write_rows(tmp_path / f"{split}.jsonl", rows) for split in ("train", "test")}
    monkeypatch.setattr(run_nlg, "generate_texts", lambda model, tokenizer, prompts, **settings: list("ABCD"))
    settings = {
        "task_name": None,
        "method": "lora",
        "max_steps": 1,
        "validation_file": None,
        "do_predict": True,
        **files,
    }
    output = tmp_path / "o"
    run_nlg.main([*command(place, output, **{**settings, "do_eval": False, "do_train": True})])
    assert (output / "predict_results_nlg.txt").read_text().split() == list("ABACDA")
    run_nlg.main(command(place, output, **settings, max_predict_samples=2))
    assert (output / "predict_results_nlg.txt").read_text().split() == list("ABA")


def test_rows_of_ones_own_need_no_task_name(place, tmp_path, scores):
    rows = [{"input": f"{i} and {i}", "reference": f"twice {i}"} for i in range(8)]
    files = {f"{split}_file": write_rows(tmp_path / f"{split}.jsonl", rows) for split in ("train", "validation")}
    run_nlg.main(command(place, tmp_path / "o", task_name=None, method="lora", max_steps=1, num_beams=1, **files))
    assert scores[0][0] == "nlg" and lines(tmp_path / "o" / "predictions_validation.jsonl")[3]["input"] == "3 and 3"
    assert "trained on data of one's own, " in (tmp_path / "o" / "README.md").read_text()


def test_methods_with_virtual_tokens_train_without_label_smoothing_and_say_so(place, tmp_path, caplog):
    run_nlg.main(command(place, tmp_path / "o", method="prefix_tuning", max_steps=1, num_beams=1))
    assert "no label smoothing: Trainer has none for virtual tokens" in caplog.text
    assert len(lines(tmp_path / "o" / "predictions_validation.jsonl")) == 3
    noted = json.loads((tmp_path / "o" / "run.json").read_text())["settings"]
    assert noted["label_smoothing_factor"] == 0.1  # as typed, or a resume would seem to have another one
    assert noted["prompt_format"] == "lora" and noted["base_dropout"] == 0.0


def test_settings_of_decoding_have_an_effect(place, tmp_path):
    """When a run trains and decodes, and when it decodes with what was trained."""
    settings = ({"num_beams": 1}, {"max_new_tokens": 3}, {"no_repeat_ngram_size": 1}, {"prompt_format": "plain"})

    def texts(output, *flags, **changes):
        run_nlg.main([*command(place, output, method="lora", max_steps=1, **changes), *flags])
        return [row["prediction"] for row in lines(output / "predictions_validation.jsonl")]

    first = texts(tmp_path / "o")
    assert texts(tmp_path / "o", "--do_eval") == first
    for setting in settings:
        assert texts(tmp_path / "o", "--do_eval", **setting) != first, setting
    assert texts(tmp_path / "another", num_beams=1) != first


def test_base_dropout_replaces_that_of_the_checkpoint(place, tmp_path):
    losses = []
    for index, changes in enumerate(({}, {}, {"base_dropout": 0.5})):
        settings = {"method": "lora", "max_steps": 1, "decode": False, "lora_dropout": 0}
        run_nlg.main(command(place, tmp_path / str(index), **settings, **changes))
        losses.append(json.loads((tmp_path / str(index) / "train_results.json").read_text())["train_loss"])
    assert losses[0] == losses[1] != losses[2]
    assert parse_nlg()[1].base_dropout == 0.0  # LoRA's GPT-2


def test_defaults_are_those_of_loras_readme():
    model, data, method, training = parse_nlg()
    assert model.model_name_or_path == "gpt2-medium" and data.max_seq_length == 512
    assert (method.lora_alpha, method.lora_dropout, method.rank) == (32, 0.1, 4)
    assert (training.num_train_epochs, training.per_device_train_batch_size, training.learning_rate) == (5, 8, 2e-4)
    assert (training.weight_decay, training.label_smoothing_factor, training.max_grad_norm) == (0.01, 0.1, 0.0)
    assert (training.adam_beta1, training.adam_beta2, training.adam_epsilon) == (0.9, 0.999, 1e-6)
    assert training.lr_scheduler_type == "linear"
    assert training.get_warmup_steps(5 * math.ceil(42061 / 8)) == 500
    assert parse_nlg("--task_name", "webnlg")[3].get_warmup_steps(5 * math.ceil(18102 / 8)) == 500
    assert (data.num_beams, data.length_penalty, data.no_repeat_ngram_size, data.max_new_tokens) == (10, 0.8, 4, 64)
    assert data.decode and data.one_line and data.prompt_format == "lora"


def test_preset_paper_has_the_batch_and_rate_of_section_5_1():
    _, data, method, training = parse_nlg("--preset", "paper")
    assert (training.per_device_train_batch_size, training.learning_rate) == (16, 1e-4)
    assert (method.initial_rank, method.lora_alpha, method.scaling) == (8, 32, "paper")
    assert data.num_beams == 10 and parse_nlg("--preset", "paper", "--lora_alpha", "5")[2].lora_alpha == 5


def parse_nlg(*argv):
    return parse_arguments(
        list(argv), run_nlg.TASK_DEFAULTS, run_nlg.NlgArguments, run_nlg.PRESET_CHANGES, **run_nlg.DEFAULTS
    )


BAD_INPUT = [
    ({"task_name": "e2e_nlg"}, "task_name must be one of e2e, webnlg, nlg, got 'e2e_nlg'"),
    ({"train_file": "nowhere.jsonl"}, "There is no file nowhere.jsonl"),
    ({"task_name": "webnlg"}, r"train.jsonl has no column 'triples': webnlg needs triples and references"),
    (
        {"decode": False, "test_file": "t.jsonl"},
        "Test rows are there to be decoded, got --decode false. Drop it, or the",
    ),
    ({"num_beams": 0}, "num_beams must be at least 1, got 0"),
    ({"no_repeat_ngram_size": -1}, "no_repeat_ngram_size must be at least 0, got -1"),
    ({"max_new_tokens": 0}, "max_new_tokens must be at least 1"),
    ({"generation_batch_size": 0}, "generation_batch_size must be at least 1"),
    ({"length_penalty": "nan"}, "length_penalty must be a finite number, got nan. LoRA used 0.8"),
    ({"base_dropout": 1.0}, "base_dropout must be at least 0 and below 1, got 1.0"),
    ({"prompt_format": "json"}, "prompt_format must be one of lora, words, plain, got 'json'"),
    (
        {"max_seq_length": 20},
        r"train.jsonl, row 1: the prompt has 33 tokens, and with a limit of 20 none is left for the text. Raise "
        "--max_seq_length, or leave the row out",
    ),
    ({"lora_target_modules": ["q_proj"]}, "--lora_target_modules q_proj fits no module of GPT2LMHeadModel"),
]


@pytest.mark.parametrize("changes, expected", BAD_INPUT, ids=[str(changes) for changes, _ in BAD_INPUT])
def test_bad_input_gets_one_line_and_status_2_and_leaves_output_dir_alone(place, tmp_path, capsys, changes, expected):
    output = tmp_path / "o"
    status = run_guarded(lambda: run_nlg.main(command(place, output, **changes)), "run_nlg.py")
    said = capsys.readouterr().err.strip().splitlines()
    assert status == 2 and len(said) == 1 and said[0].startswith("run_nlg.py: error: ")
    assert re.search(expected, said[0]) and not output.exists()


def test_a_prompt_beyond_the_positions_of_the_model_is_refused(place, tmp_path):
    rows = [*restaurants(2), {"meaning_representation": f"name[{'x' * 200}]", "human_reference": "y"}]
    path = write_rows(tmp_path / "long.jsonl", rows)
    with pytest.raises(
        UsageError, match="long.jsonl, row 3: the prompt has 208 tokens, .* limit of 200 .*more positions"
    ):
        run_nlg.main(command(place, tmp_path / "o", train_file=path))


def test_cut_texts_are_counted_in_one_warning(place, tmp_path, caplog):
    run_nlg.main(command(place, tmp_path / "o", method="lora", max_steps=1, decode=False, max_seq_length=60))
    assert re.search(r"train.jsonl: \d+ of 16 texts were cut, as prompt and text exceed 60 tokens", caplog.text)


def test_a_tokenizer_without_an_end_token_is_refused(place, tmp_path):
    tokenizer = byte_tokenizer()
    GPT2LMHeadModel.from_pretrained(place / "gpt2").save_pretrained(tmp_path / "m")
    names = {"pad_token": "<end>", "bos_token": "<end>", "eos_token": None}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, **names).save_pretrained(tmp_path / "m")
    with pytest.raises(
        UsageError, match="has no end token, and a text has to end. Give another with --tokenizer_name"
    ):
        run_nlg.main(command(place, tmp_path / "o", model_name_or_path=tmp_path / "m"))


@pytest.mark.parametrize(
    "kind, stage, refused", [("FSDP", None, True), ("DeepSpeed", 3, True), ("DeepSpeed", 2, False)]
)
def test_texts_are_not_decoded_by_processes_that_wait_for_each_other(monkeypatch, kind, stage, refused):
    *parsed, training = parse_nlg("--task_name", "e2e", "--method", "lora", "--use_cpu", "--do_eval")
    run_nlg.refuse_sharded_decoding(training)
    monkeypatch.setenv(f"ACCELERATE_USE_{kind.upper()}", "true")
    training.deepspeed_plugin = stage and SimpleNamespace(zero_stage=stage)
    if refused:
        with pytest.raises(ValueError, match=f"decodes texts .* whole weights, and {kind} shards .* --decode false"):
            run_nlg.refuse_sharded_decoding(training)
    else:
        run_nlg.refuse_sharded_decoding(training)


def test_sharded_decoding_is_refused_before_anything_is_written(place, tmp_path, monkeypatch):
    monkeypatch.setattr(run_nlg, "refuse_sharding", lambda training, reason, cure: 1 / 0)
    for changes in ({}, {"validation_file": None, "test_file": place / "test.jsonl", "do_predict": True}):
        with pytest.raises(ZeroDivisionError):
            run_nlg.main(command(place, tmp_path / "o", method="lora", **changes))
    assert not (tmp_path / "o").exists()
    run_nlg.main(command(place, tmp_path / "o", method="lora", max_steps=1, decode=False))


def test_missing_libraries_of_the_metrics_are_named_before_training(monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr(run_nlg.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r'need sacrebleu, which is not .*"\.\[nlg\]".*--decode'):
        run_nlg.check_libraries()


def test_a_metric_that_fails_fails_the_run(place, tmp_path, monkeypatch):
    def fails(*arguments):
        raise RuntimeError("no")

    monkeypatch.setattr(nlg_metrics, "score", fails)
    parsed = parse_nlg(*command(place, tmp_path / "o", method="lora", max_steps=1, num_beams=1))
    with pytest.raises(RuntimeError, match="no"):
        execute(run_nlg.Nlg(), *parsed)
