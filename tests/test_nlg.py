"""Is data put into words as LoRA's code does it: prompts, loss, decoding, files? And is bad data named in one line?"""

import itertools
import json
import math
import re
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset, DatasetDict
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    GenerationConfig,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    TrainingArguments,
    set_seed,
)

import autolora_trainer.pipeline
import run_nlg
from autolora_trainer import AutoLoraTrainer, AutoLoraTrainingArguments, LearnedRanks, generation
from autolora_trainer.errors import UsageError, run_guarded
from autolora_trainer.generation import NoRepeatInText, generate_texts, line_break_tokens
from autolora_trainer.pipeline import Run, execute
from autolora_trainer.ranks import ModuleRank
from autolora_trainer.script_arguments import parse_arguments
from autolora_trainer.tasks import nlg, nlg_metrics
from autolora_trainer.trainer_utils import RetrainTrainer, fix_loss_scale
from tests.tiny import as_argv, data_error, lora, tiny_gpt2, write_rows

E2E, WEBNLG, OWN = (nlg.NLG_TASKS[name] for name in ("e2e", "webnlg", "nlg"))


def byte_tokenizer(llama=False):
    """One token a byte, as in GPT-2's vocabulary, and one that is start and end; as Llama: one more, put in front."""
    vocabulary = {token: index for index, token in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    names = {"bos_token": "<s>", "eos_token": "</s>"} if llama else dict.fromkeys(("bos_token", "eos_token"), "<end>")
    tokenizer = Tokenizer(
        models.BPE({**vocabulary, **{n: 256 + i for i, n in enumerate(dict.fromkeys(names.values()))}}, [])
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if llama:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 256)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def padded(tokenizer):
    tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def tiny_llama(**changes):
    config = dict(
        vocab_size=258,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=200,
        initializer_range=0.5,  # far from uniform, so that texts differ
        pad_token_id=None,
        bos_token_id=256,
        eos_token_id=257,
    )
    return LlamaForCausalLM(LlamaConfig(**{**config, **changes}))


def gpt2(**changes):
    config = {
        "vocab_size": 257,
        "n_positions": 200,
        "initializer_range": 0.5,
        "bos_token_id": 256,
        "eos_token_id": 256,
    }
    return tiny_gpt2(**{**config, **changes})


# ---- prompts and rows


def test_e2e_prompt_is_that_of_loras_files():
    meaning = (
        "name[The Vaults], eatType[pub], priceRange[more than £30], customer rating[5 out of 5], familyFriendly[no], "
        "near[Café Adriatic]"
    )
    assert nlg.prompt_of_meaning(meaning) == (
        "name : The Vaults | Type : pub | price : more than £30 | customer rating : 5 out of 5 | family friendly : no "
        "| near : Café Adriatic"
    )


@pytest.mark.parametrize(
    "meaning", ["", "name", "name[]", "name[ ]", "name[X", "name[X] near[Y]", "name[X],", "[X]", "a[b[c]]"]
)
def test_what_is_no_meaning_representation_is_refused(meaning):
    with pytest.raises(ValueError, match=r"written as name\[Blue Spice\], eatType\[pub\]"):
        nlg.prompt_of_meaning(meaning)


@pytest.mark.parametrize(
    "value",
    [
        ["A_B | leader | C", 'A_B | size | "1, 2"'],
        [["A_B", "leader", "C"], ["A_B", "size", '"1, 2"']],
        [
            {"subject": "A_B", "property": "leader", "object": "C"},
            {"object": '"1, 2"', "subject": "A_B", "property": "size"},
        ],
        'A_B | leader | C\nA_B|size|"1, 2"\n',
        json.dumps(["A_B | leader | C", 'A_B | size | "1, 2"']),
    ],
)
def test_triples_in_every_form_give_the_prompt_of_loras_code(value):
    assert nlg.prompt_of_triples(nlg.as_triples(value)) == 'A_B : leader : C | A_B : size : "1, 2"'


@pytest.mark.parametrize(
    "value", [None, 3, [], "", ["A | b"], ["A | b | c | d"], ["A |  | c"], [["A", "b"]], [{"subject": "A"}], [1]]
)
def test_what_is_no_set_of_triples_is_refused(value):
    with pytest.raises(ValueError, match=r"subject \| property \| object"):
        nlg.prompt_of_triples(nlg.as_triples(value))


def test_training_has_a_row_for_every_reference():
    rows = Dataset.from_list([{"input": "a", "references": ["x", " y "]}, {"input": "a", "references": ["z"]}])
    examples = nlg.to_examples(rows, OWN, "train")
    assert [(e["row"], e["prompt"], e["references"]) for e in examples] == [
        (1, "a", ["x"]),
        (1, "a", ["y"]),
        (2, "a", ["z"]),
    ]


def test_evaluation_has_a_row_for_every_input_in_order_of_first_appearance():
    meanings = ["name[B]", "name[A]", "name[B]", "name[A]", "name[C]"]
    rows = Dataset.from_dict({"meaning_representation": meanings, "human_reference": list("vwxyz")})
    for split in ("validation", "test"):
        examples = nlg.to_examples(rows, E2E, split)
        assert examples["prompt"][:] == ["name : B", "name : A", "name : C"] and examples["row"][:] == [1, 2, 5]
        assert examples["references"][:] == [["v", "x"], ["w", "y"], ["z"]]
        assert examples["source"][:] == ["name[B]", "name[A]", "name[C]"] and examples["seen"][:] == [None] * 3


@pytest.mark.parametrize(
    "columns",
    [
        {"mr": ["name[B]"], "ref": ["x"]},
        {"meaning_representation": ["name[B]"], "human_references": [["x"]]},
        {"meaning_representation": ["name[B]"], "human_references": ['["x"]']},
        {"meaning_representation": ["name[B]"], "human_reference": [" x\n"]},
    ],
)
def test_references_in_every_form(columns):
    assert nlg.to_examples(Dataset.from_dict(columns), E2E, "validation")[0]["references"] == ["x"]


def test_line_breaks_stay_where_texts_are_not_lines():
    rows = Dataset.from_dict({"input": ["a"], "reference": ["two \r\n  lines"]})
    assert nlg.to_examples(rows, OWN, "train")[0]["references"] == ["two lines"]
    assert nlg.to_examples(rows, OWN, "train", one_line=False)[0]["references"] == ["two \r\n  lines"]


def test_plain_prompts_are_the_rows_own():
    rows = Dataset.from_dict({"meaning_representation": ["name[B], area[C]"], "human_reference": ["x"]})
    assert nlg.to_examples(rows, E2E, "train", prompt_format="plain")[0]["prompt"] == "name[B], area[C]"
    rows = Dataset.from_dict({"triples": [["A | b | c", "A | d | e"]], "references": [["x"]]})
    assert nlg.to_examples(rows, WEBNLG, "train", prompt_format="plain")[0]["prompt"] == "A | b | c | A | d | e"


def test_prompts_of_words_have_no_underscores_and_quotes():
    rows = Dataset.from_list([{"triples": ['Al_Asad | city | "Ba\'gh , Iraq"'], "references": ["x"]}])
    example = nlg.to_examples(rows, WEBNLG, "train", prompt_format="words")[0]
    assert example["prompt"] == "Al Asad : city : Ba'gh , Iraq"
    rows = Dataset.from_list([{"meaning_representation": "name[B], area[C]", "human_reference": "x"}])
    lora, words = (nlg.to_examples(rows, E2E, "train", prompt_format=form)[0]["prompt"] for form in ("lora", "words"))
    assert words == lora


def test_seen_comes_from_the_rows_or_from_the_category():
    rows = {"triples": [["A | b | c"], ["D | e | f"]], "references": [["x"], ["y"]], "category": ["Airport", "Artist"]}
    assert nlg.to_examples(Dataset.from_dict(rows), WEBNLG, "test")["seen"][:] == [True, False]
    rows["seen"] = ["false", "True"]  # a CSV file's
    assert nlg.to_examples(Dataset.from_dict(rows), WEBNLG, "test")["seen"][:] == [False, True]


def test_a_test_set_may_have_no_references_but_not_for_some_rows_only():
    rows = {"input": ["a", "b", "a"]}
    assert nlg.to_examples(Dataset.from_dict(rows), OWN, "test")["references"][:] == [[], []]
    rows["reference"] = ["x", "", None]
    text = data_error(nlg.to_examples, Dataset.from_dict(rows), OWN, "test", "folder/t.jsonl")
    assert (
        text == "folder/t.jsonl, row 2: there is no reference, and other rows have one. Give every row one, or none."
    )
    rows["reference"] = ["x", "y", None]
    assert nlg.to_examples(Dataset.from_dict(rows), OWN, "test")["references"][:] == [["x"], ["y"]]


BAD_ROWS = [
    (
        E2E,
        {"meaning_representation": ["name[B]"]},
        "has no column 'human_reference': e2e needs meaning_representation and",
    ),
    (
        E2E,
        {"text": ["name[B]"], "human_reference": ["x"]},
        "has no column 'meaning_representation'.*given are text, human",
    ),
    (
        E2E,
        {"mr": ["name[B]", "name B"], "ref": ["x", "y"]},
        "row 2: mr is 'name B'; a meaning representation is written as",
    ),
    (E2E, {"mr": [3], "ref": ["x"]}, "row 1: mr is 3; text is needed. Correct the row"),
    (
        WEBNLG,
        {"triples": [["A | b"]], "references": [["x"]]},
        r"row 1: triples is .*; the triple 'A \| b' is not written as",
    ),
    (
        WEBNLG,
        {"triples": [["A | b | c"]], "references": [[]]},
        "row 1: there is no reference, and every row for train",
    ),
    (
        WEBNLG,
        {"triples": [["A | b | c"]], "references": [["x"]], "seen": [7]},
        "row 1: seen is 7. Write true or false",
    ),
    (OWN, {"input": ["a", None], "reference": ["x", "y"]}, "row 2: input is None; text is needed"),
    (OWN, {"input": ["a", "b"], "reference": ["x", "  "]}, "row 2: there is no reference"),
    (
        OWN,
        {"input": ["a"], "references": [[1, 2]]},
        r"row 1: the reference is \[1, 2\]. Give a text, or a list of texts",
    ),
    (OWN, {"input": [], "reference": []}, "has no rows. Give at least one row for train"),
]


@pytest.mark.parametrize("task, rows, expected", BAD_ROWS, ids=[expected for _, _, expected in BAD_ROWS])
def test_bad_rows_are_named(task, rows, expected):
    assert re.search(
        expected, data_error(nlg.to_examples, Dataset.from_dict(rows), task, "train", "folder/rows.jsonl")
    )


# ---- where the rows of E2E and WebNLG lie


def test_webnlg_file_of_the_challenge_gives_the_good_texts_of_every_set():
    def entry(number, *texts):
        triples = [{"subject": "A", "property": "b", "object": f"c{number}"}]
        lexes = [{"comment": comment, "lex": lex, "lang": "", "xml_id": "Id1"} for comment, lex in texts]
        return {
            str(number): {"category": "Airport", "lexicalisations": lexes, "modifiedtripleset": triples, "size": "1"}
        }

    entries = [
        entry(1, ("good", "x"), ("toFix", "y"), ("good", "z")),
        entry(2, ("toFix", "y")),
        entry(3, ("good", "w")),
    ]
    rows = nlg.webnlg_rows(json.dumps({"entries": entries}))
    assert rows.to_list() == [
        {"category": "Airport", "triples": ["A | b | c1"], "references": ["x", "z"]},
        {"category": "Airport", "triples": ["A | b | c3"], "references": ["w"]},
    ]


def test_both_tasks_load_without_a_script(monkeypatch):
    asked = []

    def hub(hub_id, config, splits, **arguments):
        asked.append((hub_id, config, arguments))
        entry = {"category": "City", "lexicalisations": [{"comment": "good", "lex": "x"}]}
        entry["modifiedtripleset"] = [{"subject": "A", "property": "b", "object": "c"}]
        row = {
            "meaning_representation": "name[B]",
            "human_reference": "x",
            "text": json.dumps({"entries": [{"1": entry}]}),
        }
        return DatasetDict({split: Dataset.from_list([row]) for split, _ in splits})

    monkeypatch.setattr(nlg, "load_from_hub", hub)
    for task, prompt in ((E2E, "name : B"), (WEBNLG, "A : b : c")):
        examples = nlg.load_examples(task, {}, cache_dir="there")
        assert list(examples) == ["train", "validation", "test"]
        assert all(
            dataset[0]["prompt"] == prompt and dataset[0]["references"] == ["x"] for dataset in examples.values()
        )
    assert asked[0] == (
        "tuetschek/e2e_nlg",
        None,
        {"revision": "refs/convert/parquet", "cache_dir": "there", "token": None},
    )
    assert asked[1][0] == "text" and all(
        re.search(r"/[0-9a-f]{40}/", url) for url in asked[1][2]["data_files"].values()
    )


def test_without_a_network_the_message_names_the_data_set():
    text = data_error(nlg.load_examples, WEBNLG, {})
    assert "Could not reach the Hugging Face Hub for the data set WebNLG 2017" in text and "--train_file" in text
    assert "data set tuetschek/e2e_nlg" in data_error(nlg.load_examples, E2E, {})
    assert "is for rows of your own. Give --train_file" in data_error(nlg.load_examples, OWN, {})


# ---- tokens


@pytest.mark.parametrize("llama", [False, True])
def test_prompt_ends_with_the_start_token_and_the_loss_is_on_blank_text_and_end(llama):
    tokenizer = byte_tokenizer(llama)
    prompts = nlg.encode_prompts(["é", "ab", "é"], tokenizer)
    start, end = (256, 257) if llama else (256, 256)
    letter = tokenizer.convert_tokens_to_ids
    assert prompts[0] == prompts[2] == ([start] if llama else []) + [letter("Ã"), letter("©"), start]
    pairs, cut = nlg.encode_pairs(prompts[1:2], [["c d", "e"]], tokenizer, max_seq_length=99)
    target = [letter("Ġ"), letter("c"), letter("Ġ"), letter("d"), end]
    assert cut == 0 and pairs[0] == {"input_ids": prompts[1] + target, "labels": [-100] * len(prompts[1]) + target}
    assert pairs[1]["labels"] == [-100] * len(prompts[1]) + [letter("Ġ"), letter("e"), end]


def test_long_texts_are_cut_and_counted_and_lose_their_end():
    tokenizer = byte_tokenizer()
    prompts = nlg.encode_prompts(["abc", "abc"], tokenizer)
    pairs, cut = nlg.encode_pairs(prompts, [["12345"], ["1"]], tokenizer, max_seq_length=7)
    assert cut == 1 and [len(row) for row in pairs["input_ids"]] == [7, 7]
    assert pairs[0]["labels"][-1] != 256 and pairs[1]["labels"][-1] == 256
    nlg.check_lengths(prompts, [1, 2], 5, "f", "")
    text = data_error(nlg.check_lengths, prompts, [3, 8], 4, "d/f.csv", "Shorten it.")
    assert (
        text == "d/f.csv, row 3: the prompt has 4 tokens, and with a limit of 4 none is left for the text. Shorten it."
    )


def test_batches_are_padded_on_the_right():
    rows = [{"input_ids": [5, 6, 7], "labels": [-100, 6, 7]}, {"input_ids": [8], "labels": [8]}]
    batch = nlg.PairCollator(pad_token_id=9)(rows)
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 9, 9]] and batch["attention_mask"].tolist() == [
        [1, 1, 1],
        [1, 0, 0],
    ]
    assert batch["labels"].tolist() == [[-100, 6, 7], [8, -100, -100]]
    assert nlg.PairCollator(9, multiple=8)(rows)["labels"].shape == (2, 8)
    assert nlg.PairCollator(9, multiple=8, longest=5)(rows)["labels"].shape == (
        2,
        5,
    )  # the model has no more positions
    assert nlg.PairCollator(9, longest=5, pad_to_longest=True)(rows)["labels"].shape == (2, 5)


def training_rows(tokenizer):
    texts = {"name : A": ["one", "another text"], "name : B | near : C": ["a third, longer text", "x"]}
    return nlg.encode_pairs(nlg.encode_prompts(list(texts), tokenizer), list(texts.values()), tokenizer, 99)[0]


def trainer_of(model, folder, rows, trainer_class=RetrainTrainer, **arguments):
    settings = {"output_dir": str(folder), "use_cpu": True, "report_to": [], "optim": "sgd", "max_grad_norm": 0.0}
    settings |= {"save_strategy": "no", "disable_tqdm": True, "lr_scheduler_type": "constant", "learning_rate": 0.1}
    arguments = TrainingArguments(**{**settings, **arguments})
    return fix_loss_scale(
        trainer_class(model=model, args=arguments, train_dataset=rows, data_collator=nlg.PairCollator(256))
    )


def by_hand(model, rows, smoothing=0.0):
    """The mean over all text tokens of  (1 - ε) (-log p) + ε mean_v (-log p_v), row by row, without padding."""
    losses = []
    for row in rows:
        with torch.no_grad():
            scores = -model(torch.tensor([row["input_ids"]])).logits[0, :-1].log_softmax(-1)
        for position, label in enumerate(row["labels"][1:]):
            if label != -100:
                losses.append((1 - smoothing) * scores[position, label] + smoothing * scores[position].mean())
    return torch.stack(losses).mean().item()


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("build, target", [(gpt2, "c_attn"), (tiny_llama, "q_proj")])
def test_loss_is_the_mean_over_text_tokens_however_the_batch_is_split(tmp_path, build, target, smoothing):
    """transformers 5.23's label smoothing divides by the tokens of the whole step, as the models' own loss does."""
    rows, weights = training_rows(byte_tokenizer()), []
    for batch, steps in ((4, 1), (1, 4)):
        torch.manual_seed(0)
        model = get_peft_model(build(), LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=[target]))
        expected = by_hand(model, rows, smoothing)
        trainer = trainer_of(
            model,
            tmp_path,
            rows,
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=steps,
            max_steps=1,
            label_smoothing_factor=smoothing,
        )
        assert trainer.train().training_loss == pytest.approx(expected, rel=1e-5)
        weights.append([p.detach() for n, p in model.named_parameters() if "lora_B" in n])
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-7) for a, b in zip(*weights))
    assert any(weight.abs().max() > 0 for weight in weights[0])


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_search_descends_the_same_loss_on_both_splits(tmp_path, smoothing):
    """Its first step, in two micro-batches, whose texts have unequal lengths."""
    rows = training_rows(byte_tokenizer())
    model = lora(gpt2(), 2, ["c_attn"], task_type="CAUSAL_LM")
    expected = by_hand(model, rows, smoothing)
    arguments = AutoLoraTrainingArguments(
        output_dir=str(tmp_path),
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        max_steps=1,
        logging_steps=1,
        label_smoothing_factor=smoothing,
        initial_rank=2,
        hypergradient_interval=1,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
    )
    collator = nlg.PairCollator(256)
    trainer = AutoLoraTrainer(model, arguments, train_dataset=rows, val_dataset=rows, data_collator=collator)
    trainer.train()
    logs = {key: value for entry in trainer.state.log_history for key, value in entry.items()}
    assert logs["search_train_loss"] == pytest.approx(expected, rel=1e-4)
    assert logs["search_val_loss"] == pytest.approx(expected, rel=1e-4)


# ---- decoding


class Scripted(GPT2LMHeadModel):
    """A GPT-2 whose next token depends on the last one alone, by a table of logits."""

    def forward(self, input_ids=None, **kwargs):
        output = super().forward(input_ids=input_ids, **kwargs)
        output.logits = self.table[input_ids][:, -output.logits.shape[1] :]
        return output


def scripted(tokenizer, text, vocabulary=257):
    """Writes `text`, whose letters are all different, whatever the prompt; then ends."""
    model = Scripted(gpt2(vocab_size=vocabulary).config)
    tokens = [tokenizer.bos_token_id, *tokenizer(text)["input_ids"], tokenizer.eos_token_id]
    model.table = torch.zeros(vocabulary, vocabulary)
    for token, following in zip(tokens, tokens[1:]):
        model.table[token] = 0.0
        model.table[token, following] = 9.0
    return model


PROMPTS = [
    "a",
    "name : Blue Spice | Type : pub",
    "xyxyxy",
    "b",
    "name : Café",
    "cd",
    "b",
    "The quick brown fox jumps over it",
]


@pytest.mark.parametrize("num_beams", [1, 4])
@pytest.mark.parametrize("build", [gpt2, tiny_llama])
def test_texts_do_not_depend_on_the_batch(build, num_beams):
    tokenizer = padded(byte_tokenizer(llama=build is tiny_llama))
    model, prompts = build(), nlg.encode_prompts(PROMPTS, tokenizer)
    settings = {"num_beams": num_beams, "max_new_tokens": 12, "one_line": False, "progress": False}
    alone, together, mixed = (
        generate_texts(model, tokenizer, prompts, batch_size=size, **settings) for size in (1, 8, 3)
    )
    assert alone == together == mixed and len(set(alone)) > 4 and alone[3] == alone[6]
    # and they are what a plain loop writes, without padding, cache or batches
    if num_beams == 1:
        for prompt, text in zip(prompts, alone):
            assert tokenizer.decode(greedy(model, prompt, 12, 4, tokenizer.eos_token_id)).strip() == text


def greedy(model, prompt, count, size, end):
    """`count` most probable tokens, none of which repeats an n-gram of them; up to the end token."""
    text = []
    with torch.no_grad():
        for _ in range(count):
            scores = model(torch.tensor([prompt + text])).logits[0, -1]
            for start in range(len(text) - size + 1):
                if text[start : start + size - 1] == text[len(text) - size + 1 :]:
                    scores[text[start + size - 1]] = -math.inf
            text.append(scores.argmax().item())
            if text[-1] == end:
                return text[:-1]
    return text


def test_beam_search_finds_the_best_text_of_all():
    """Five tokens, texts of up to three, enough beams for all of them: log probability over length ** 0.8."""
    tokenizer, size = padded(byte_tokenizer()), 257
    model = Scripted(gpt2().config)
    letters = tokenizer("abcd")["input_ids"] + [256]
    model.table = torch.full((size, size), -1e4)
    for token in letters:
        model.table[token, letters] = torch.randn(5, generator=torch.Generator().manual_seed(token))
    model.table[256, 256] = -3.0
    log = model.table.log_softmax(-1)
    best, expected = -math.inf, None
    for length in (1, 2, 3):
        for text in itertools.product(letters, repeat=length):
            ends = text[-1] == 256
            if 256 in text[:-1] or (not ends and length < 3):
                continue
            score = sum(log[a, b].item() for a, b in zip((256, *text), text)) / length**0.8
            if score > best:
                best, expected = score, tokenizer.decode(text[:-1] if ends else text)
    settings = {
        "num_beams": 60,
        "no_repeat_ngram_size": 0,
        "max_new_tokens": 3,
        "length_penalty": 0.8,
        "progress": False,
    }
    assert generate_texts(model, tokenizer, [[3, 256]], **settings) == [expected]


def test_only_the_generated_text_is_searched_for_repetitions():
    processor = NoRepeatInText(2, prompt_length=3)
    scores = torch.zeros(2, 6)
    banned = processor(torch.tensor([[1, 2, 1, 2, 3, 2], [1, 2, 1, 4, 5, 4]]), scores).isinf()
    assert banned.nonzero().tolist() == [[0, 3], [1, 5]]  # after 2 came 3, after 4 came 5; the prompt's "1 2" is free
    assert not processor(torch.tensor([[1, 2, 1, 2]]), scores[:1]).isinf().any()
    assert NoRepeatInText(1, 1)(torch.tensor([[1, 2, 2]]), scores[:1]).isinf().nonzero().tolist() == [[0, 2]]
    assert not NoRepeatInText(0, 1)(torch.tensor([[1, 2, 2]]), scores[:1]).isinf().any()


def test_a_name_of_the_prompt_can_be_written():
    tokenizer = padded(byte_tokenizer())
    model, prompts = scripted(tokenizer, "abcdefgh"), nlg.encode_prompts(["abcdefgh abcdefgh"], tokenizer)
    assert generate_texts(model, tokenizer, prompts, num_beams=1, progress=False) == ["abcdefgh"]
    model.table[tokenizer("h")["input_ids"][0]] = model.table[256]  # and then over again: "abcd" must not come twice
    text = generate_texts(model, tokenizer, prompts, num_beams=1, max_new_tokens=14, progress=False)[0]
    assert text.startswith("abcdefghabc") and "abcd" not in text[8:]


@pytest.mark.parametrize("num_beams", [1, 3])
def test_a_text_ends_at_its_end_or_at_a_line_break(num_beams):
    tokenizer = padded(byte_tokenizer())
    model, settings = scripted(tokenizer, " ab\ncd"), {"num_beams": num_beams, "progress": False}
    prompts = nlg.encode_prompts(["x", "longer"], tokenizer)
    assert generate_texts(model, tokenizer, prompts, **settings) == ["ab", "ab"]
    assert generate_texts(model, tokenizer, prompts, one_line=False, **settings) == ["ab\ncd", "ab\ncd"]
    assert generate_texts(model, tokenizer, prompts, max_new_tokens=2, **settings) == ["a", "a"]
    assert generate_texts(model, tokenizer, [], **settings) == []
    assert [tokenizer.decode([token]) for token in line_break_tokens(tokenizer)] == ["\n"]


def test_a_line_break_within_a_token_ends_the_text_after_what_stands_before_it():
    tokenizer = padded(byte_tokenizer())
    tokenizer.add_tokens(["b.\n"])  # as in Llama 3's vocabulary
    model = scripted(tokenizer, "ab.\ncd", vocabulary=258)
    assert line_break_tokens(tokenizer)[-1] == 257
    assert generate_texts(model, tokenizer, [[5, 256]], num_beams=1, progress=False) == ["ab."]


def test_texts_stop_where_the_positions_of_the_model_end():
    tokenizer = padded(byte_tokenizer())
    model = gpt2(n_positions=12)
    prompts = [[7] * length for length in (3, 9, 10, 11, 11)]
    settings = {"num_beams": 1, "max_new_tokens": 6, "one_line": False, "progress": False}
    generate = lambda size: generate_texts(model, tokenizer, prompts, batch_size=size, **settings)  # noqa: E731
    assert generate(1) == generate(8)
    for prompt in ([7] * 12, []):
        with pytest.raises(ValueError, match=f"between 1 and 11 tokens, got {len(prompt)}"):
            generate_texts(model, tokenizer, [prompt], progress=False)


def test_decoding_leaves_the_model_as_it_was_and_takes_nothing_from_its_checkpoint():
    tokenizer = padded(byte_tokenizer())
    model = scripted(tokenizer, "abc")
    settings = GenerationConfig(
        do_sample=True, temperature=9.0, repetition_penalty=50.0, max_length=3, eos_token_id=66
    )
    model.generation_config = settings
    adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", target_modules=["c_attn"], fan_in_fan_out=True))
    adapted.train()
    model.transformer.h[0].eval()
    modes = [module.training for module in adapted.modules()]
    assert generate_texts(adapted, tokenizer, [[1, 256]], num_beams=1, progress=False) == ["abc"]
    assert [module.training for module in adapted.modules()] == modes and model.generation_config is settings
    assert torch.is_grad_enabled()


@pytest.mark.filterwarnings("error:Position ids are not supported")
def test_virtual_tokens_of_prompt_tuning_take_positions_and_no_padding():
    tokenizer = padded(byte_tokenizer())
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    model, prompts = get_peft_model(gpt2(n_positions=40), config), nlg.encode_prompts(PROMPTS, tokenizer)
    settings = {"num_beams": 1, "max_new_tokens": 9, "one_line": False, "progress": False}
    alone, together = (generate_texts(model, tokenizer, prompts, batch_size=size, **settings) for size in (1, 8))
    assert alone == together and len(set(alone)) > 4


def test_processes_share_the_work_and_all_have_all_texts(monkeypatch):
    tokenizer = padded(byte_tokenizer())
    model, prompts = gpt2(), nlg.encode_prompts(PROMPTS, tokenizer)
    settings = {"num_beams": 2, "max_new_tokens": 5, "progress": False, "one_line": False, "batch_size": 2}
    expected, shares, done = generate_texts(model, tokenizer, prompts, **settings), {}, {}
    for turn in range(2):  # the first turn collects the shares, the second hands them out
        for rank in (0, 1, 2):

            def gather(output, mine, rank=rank):
                shares[rank] = mine
                output[:] = [shares.get(other, {}) for other in (0, 1, 2)]

            with monkeypatch.context() as patch:
                patch.setattr(torch.distributed, "is_initialized", lambda: True)
                patch.setattr(torch.distributed, "get_rank", lambda rank=rank: rank)
                patch.setattr(torch.distributed, "get_world_size", lambda: 3)
                patch.setattr(torch.distributed, "all_gather_object", gather)
                try:
                    done[rank] = generate_texts(model, tokenizer, prompts, **settings)
                except KeyError:
                    assert turn == 0
    assert done == {0: expected, 1: expected, 2: expected}
    assert sorted(map(len, shares.values())) == [2, 3, 3]


# ---- the script


def restaurants(count, start=0):
    made = []
    for index in range(start, start + count):
        name, area = f"Cafe {index}", ("riverside", "city centre")[index % 2]
        reference = f"{name} is by the {area}."
        made.append({"meaning_representation": f"name[{name}], area[{area}]", "human_reference": reference})
    return made


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with two checkpoints and rows."""
    folder = tmp_path_factory.mktemp("place")
    set_seed(0)
    gpt2(initializer_range=0.1).save_pretrained(folder / "gpt2")
    byte_tokenizer().save_pretrained(folder / "gpt2")
    tiny_llama(initializer_range=0.1).save_pretrained(folder / "llama")
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
    split = autolora_trainer.pipeline.split_train

    def recorded(dataset, *arguments):
        sides[:] = split(dataset, *arguments)
        return sides

    monkeypatch.setattr(autolora_trainer.pipeline, "split_train", recorded)
    argv = command(place, tmp_path / "o", method="autolora", train_file=tmp_path / "train.jsonl", decode=False)
    run_nlg.main([*argv, "--max_steps", "1"])
    prompts = [{str(row["input_ids"][: row["labels"].count(-100)]) for row in side} for side in sides]
    assert len(sides[0]) == len(sides[1]) == 6 and len(prompts[0]) == len(prompts[1]) == 3
    assert not prompts[0] & prompts[1]


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
    run = Run(*parsed, training, run_nlg.NlgApplication())
    run_nlg.refuse_sharded_decoding(run)
    monkeypatch.setenv(f"ACCELERATE_USE_{kind.upper()}", "true")
    training.deepspeed_plugin = stage and SimpleNamespace(zero_stage=stage)
    if refused:
        with pytest.raises(ValueError, match=f"decodes texts .* whole weights, and {kind} shards .* --decode false"):
            run_nlg.refuse_sharded_decoding(run)
    else:
        run_nlg.refuse_sharded_decoding(run)


def test_sharded_decoding_is_refused_before_anything_is_written(place, tmp_path, monkeypatch):
    monkeypatch.setattr(run_nlg, "refuse_sharding", lambda run, reason, cure: 1 / 0)
    for changes in ({}, {"validation_file": None, "test_file": place / "test.jsonl", "do_predict": True}):
        with pytest.raises(ZeroDivisionError):
            run_nlg.main(command(place, tmp_path / "o", method="lora", **changes))
    assert not (tmp_path / "o").exists()
    run_nlg.main(command(place, tmp_path / "o", method="lora", max_steps=1, decode=False))


def test_missing_libraries_of_the_metrics_are_named_before_training(monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr(run_nlg.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"need sacrebleu, which is not .*autolora_trainer\[nlg\].*--decode"):
        run_nlg.check_libraries()


def test_a_metric_that_fails_fails_the_run(place, tmp_path, monkeypatch):
    def fails(*arguments):
        raise RuntimeError("no")

    monkeypatch.setattr(nlg_metrics, "score", fails)
    parsed = parse_nlg(*command(place, tmp_path / "o", method="lora", max_steps=1, num_beams=1))
    with pytest.raises(RuntimeError, match="no"):
        execute(run_nlg.NlgApplication(), *parsed)
