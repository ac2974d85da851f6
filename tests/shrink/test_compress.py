"""A planted adapter with noise beside what it should have learned: does the cut find the one, and drop the other?"""

import json
import re
import sys

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model, set_peft_model_state_dict
from transformers import AutoModelForSequenceClassification, Trainer, TrainingArguments
from trl import SFTConfig

from autolora_trainer.lora.cut import cut, cuttable_parts
from autolora_trainer.ranks.learned import LearnedRanks
from autolora_trainer.shrink import compressing
from autolora_trainer.shrink.compressing import compress
from tests.helpers.models import byte_llama, byte_tokenizer, lora, padded, tiny_roberta
from tests.helpers.planted import Planted, planted_data
from tests.helpers.rows import rows
from tests.helpers.state import everything, same
from tests.helpers.trainings import short_training

NAMES = [f"layers.{i}" for i in range(4)]


def planted(noise=0.01):
    """(model with an adapter of rank 8, rows): its updates are the teacher's, of rank 0, 1, 2 and 6, and noise."""
    torch.manual_seed(0)
    base = Planted()
    data = planted_data(base)
    x, y = data["x"][:], data["labels"][:]
    model = get_peft_model(base, LoraConfig(target_modules=r"layers\.\d", r=8, lora_alpha=4))
    for i, layer in enumerate(base.layers):
        rest = y[:, i] - layer.base_layer(x[:, i]).detach()
        update = torch.linalg.lstsq(x[:, i], rest).solution.T + noise * torch.randn(12, 12)
        u, s, vh = torch.linalg.svd(update)
        layer.lora_B["default"].weight.data = 2 * u[:, :8] * s[:8]  # the scale is 1/2
        layer.lora_A["default"].weight.data = vh[:8].contiguous()
    return model, data


def fresh_base():
    torch.manual_seed(0)
    return Planted()


@torch.no_grad()
def loss_of(model, data):
    return float(model(x=data["x"][:], labels=data["labels"][:])["loss"])


@pytest.fixture(scope="module")
def cut_adapter(tmp_path_factory):
    model, data = planted()
    folder = tmp_path_factory.mktemp("small")
    return model, data, compress(model, data, tolerance=0.01, output_dir=folder), folder


def test_the_planted_ranks_are_what_stays(cut_adapter):
    model, data, small, folder = cut_adapter
    assert small.ranks.ranks == dict(zip(NAMES, Planted.ranks)) and small.curve.decided
    assert small.file.parameters == 9 * 24 and small.given["parameters"] == 32 * 24
    loaded = PeftModel.from_pretrained(fresh_base(), folder)
    assert loss_of(loaded, data) == pytest.approx(loss_of(small.load(fresh_base()), data))
    assert loss_of(loaded, data) < loss_of(model, data)  # the noise is gone


def test_the_folder_is_smaller_and_says_why(cut_adapter):
    _, _, small, folder = cut_adapter
    names = {path.name for path in folder.iterdir()}
    assert names >= {"adapter_config.json", "adapter_model.safetensors", "ranks.json", "curve.json", "rank_curve.png"}
    assert (folder / "adapter_model.safetensors").stat().st_size < 9 * 24 * 4 + 1500
    read = LearnedRanks.load(folder / "ranks.json")
    assert read.ranks == small.ranks.ranks and read.curve == small.curve
    assert all(len(own.contributions) == 8 for own in read.modules.values())
    points = json.loads((folder / "curve.json").read_text())["points"]
    assert [point["parameters"] for point in points] == [p.parameters for p in small.curve.points]
    text = str(small)
    assert "216 of 768 parameters (28%)" in text and "8  given" in text and "6  chosen" in text
    assert small.plot().axes
    shown = small._repr_mimebundle_()
    assert shown["text/plain"] == text and "<svg" in shown["text/html"] and "<script" not in shown["text/html"]
    assert re.findall(r"title='layers.3: rank (\d+)[^>]*>(\d+)</td>", shown["text/html"]) == [("8", "8"), ("6", "6")]


def test_the_curve_is_the_loss_of_the_cut_adapters(cut_adapter):
    """Every point of it, on rows of its own, to what cutting at that size gives."""
    model, data, small, _ = cut_adapter
    for point in small.curve.points[2::3]:
        other = compress(model, data, size=point.parameters)
        assert other.file.parameters == point.parameters
        assert loss_of(other.load(fresh_base()), data) == pytest.approx(point.loss, rel=0.25)  # half of the rows


@pytest.mark.parametrize("times", [1.2, 1.5, 1.9])
def test_one_component_of_an_adapter_that_is_trained_out_is_the_one_that_does_most(times):
    """A part that has gone too far takes back what it gave, and its cut is worth what is left. Shares of a gain that
    ends on the way, right for a new training, would be of noise."""
    model, data = planted(noise=0)
    with torch.no_grad():
        model.base_model.model.layers[1].lora_B["default"].weight *= times
    alone = {}
    for name, part in cuttable_parts(model).items():
        config, tensors = cut(model, {name: [0]})
        own = get_peft_model(fresh_base(), config)
        set_peft_model_state_dict(own, tensors)
        alone[name] = loss_of(own, data)
    small = compress(model, data, size=24)
    assert [name for name, rank in small.ranks.ranks.items() if rank] == [min(alone, key=alone.get)]


@pytest.mark.parametrize(
    "asked, ranks",
    [
        ({"max_lora_rank": 2}, (0, 1, 2, 2)),
        ({"size": "lora:1"}, (0, 1, 2, 1)),
        ({"size": 24 * 5}, (0, 1, 2, 2)),
    ],
)
def test_a_size_or_a_cap_that_is_asked_for(asked, ranks):
    model, data = planted(noise=0)
    found = compress(model, data, **asked).ranks.ranks.values()
    assert sum(found) == sum(ranks) and max(found) <= asked.get("max_lora_rank", 6)


def test_without_rows_by_singular_values():
    model, _ = planted()
    shares = []
    for layer in model.get_base_model().layers:
        energy = torch.linalg.svdvals(layer.get_delta_weight("default").detach().double()).square()
        shares.append(next(r for r in range(1, 9) if energy[:r].sum() >= 0.9 * energy.sum()))
    everywhere = compress(model, rank=2)
    assert set(everywhere.ranks.ranks.values()) == {2} and everywhere.curve is None
    assert list(compress(model, rank=0.9).ranks.ranks.values()) == shares
    with pytest.raises(ValueError, match="No held-out rows judged this size"):
        everywhere.plot()


def test_texts_are_prepared_by_the_trainer_of_the_arguments(tmp_path, monkeypatch):
    """As `find_ranks` has it: an SFTConfig is enough, and so are rows of text."""
    torch.manual_seed(0)
    model = lora(byte_llama(), 4, ["q_proj", "v_proj"], task_type="CAUSAL_LM")
    texts = Dataset.from_list([{"prompt": f"{i} is", "completion": f" {i + 1} ."} for i in range(12)])
    tokenizer, losses = padded(byte_tokenizer(llama=True)), []
    for args in (short_training(tmp_path, SFTConfig, bf16=False), None):
        small = compress(model, texts, args=args, processing_class=tokenizer, size="lora:1")
        losses.append([point.loss for point in small.curve.points])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5) and small.file.parameters
    monkeypatch.setitem(sys.modules, "trl", None)
    with pytest.raises(ValueError, match="Rows of text are prepared by TRL, which is not there"):
        compress(model, texts, processing_class=tokenizer)


def test_healing_trains_what_is_left():
    model, data = planted()
    args = short_training("unused", learning_rate=1e-2, weight_decay=0.0, seed=1)
    before = everything(model)
    cut = compress(model, data, size=24 * 5, args=args)
    healed = compress(model, data, size=24 * 5, args=args, heal_steps=30, train_dataset=data)
    assert healed.ranks.ranks == cut.ranks.ranks and healed.tensors.keys() == cut.tensors.keys()
    assert all(not torch.equal(healed.tensors[name], tensor) for name, tensor in cut.tensors.items())
    assert same(before, everything(model))
    assert loss_of(healed.load(fresh_base()), data) < loss_of(cut.load(fresh_base()), data)


def classifier(tmp_path, name="given"):
    torch.manual_seed(0)
    base = tiny_roberta()
    base.save_pretrained(tmp_path / "base")
    model = get_peft_model(base, LoraConfig(task_type="SEQ_CLS", target_modules=["query", "value", "dense"], r=4))
    args = short_training(tmp_path / "run", learning_rate=2e-2, max_steps=50, seed=0)
    Trainer(model, args, train_dataset=rows(400)).train()
    model.save_pretrained(tmp_path / name)
    return model


def test_an_adapter_of_a_folder_with_its_head(tmp_path):
    model = classifier(tmp_path)
    args = short_training(tmp_path / "unused")
    before = {path.name: path.read_bytes() for path in (tmp_path / "given").iterdir()}
    small = compress(tmp_path / "given", rows(400, seed=1), base_model=tmp_path / "base", args=args, tolerance=0.05)
    assert before == {path.name: path.read_bytes() for path in (tmp_path / "given").iterdir()}
    assert 0 < small.file.parameters < small.given["parameters"]
    small.save_pretrained(tmp_path / "small")
    torch.manual_seed(1)
    loaded = PeftModel.from_pretrained(AutoModelForSequenceClassification.from_pretrained(tmp_path / "base"),
                                       tmp_path / "small").eval()  # fmt: skip
    batch = {name: torch.tensor(rows(400, seed=2)[name]) for name in ("input_ids", "attention_mask", "labels")}
    with torch.no_grad():
        loss, given = loaded(**batch).loss.item(), model.eval()(**batch).loss.item()
    assert loss < 1.3 * given  # 5 % on its own rows; without the trained head it would be chance
    again = compress(tmp_path / "small", rows(400, seed=1), base_model=tmp_path / "base", args=args, tolerance=0.05)
    assert again.given["parameters"] == small.file.parameters
    other = tiny_roberta(initializer_range=0.5)
    with pytest.raises(ValueError, match="and this base model has other weights"):
        compress(tmp_path / "small", rows(), base_model=other, args=args)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_the_given_model_is_left_alone_when_it_fails(monkeypatch, error):
    model, data = planted()
    before = everything(model)

    def fail(*args, **kwargs):
        raise error("on the way")

    monkeypatch.setattr(compressing, "find_size", fail)
    with pytest.raises(error):
        compress(model, data)
    assert same(before, everything(model))


@pytest.mark.parametrize(
    "asked, sentence",
    [
        ({}, "takes eval_dataset, or rank where there are no rows, got neither"),
        ({"eval_dataset": rows(), "rank": 2}, "got both"),
        ({"rank": 2, "size": 100}, "rank decides the size alone"),
        ({"rank": 1.5}, "rank must be a whole number, or a share of the energy between 0 and 1, got 1.5"),
        ({"rank": 0}, "got 0"),
        ({"eval_dataset": rows(), "tolerance": -0.1}, "tolerance must be 0 or more, got -0.1"),
        ({"eval_dataset": rows(), "max_lora_rank": 0}, "max_lora_rank must be at least 1"),
        ({"eval_dataset": rows(), "heal_steps": 5}, "Give train_dataset"),
        ({"eval_dataset": rows(1)}, "cannot be divided"),
    ],
)
def test_what_cannot_be_asked(tmp_path, asked, sentence):
    model = get_peft_model(tiny_roberta(), LoraConfig(task_type="SEQ_CLS"))
    with pytest.raises(ValueError, match=sentence):
        compress(model, args=TrainingArguments(str(tmp_path), report_to="none", use_cpu=True), **asked)


def test_an_adapter_of_another_base_is_refused_in_one_line(tmp_path):
    classifier(tmp_path)
    other = tiny_roberta(hidden_size=8, num_attention_heads=2)
    with pytest.raises(ValueError, match="does not load on .*Give the base_model that it was trained on") as raised:
        compress(tmp_path / "given", rows(), base_model=other)
    assert "\n" not in str(raised.value)
