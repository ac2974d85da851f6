"""Can every file that is written be read again, whatever the modules are called?"""

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import TrainingArguments

from autolora_trainer import AutoLoraTrainer, LearnedRanks, build_adapter, compress
from autolora_trainer.lora.cut import check_cuttable
from autolora_trainer.ranks.adapter_file import AdapterFile
from autolora_trainer.ranks.learned import ModuleRank
from tests.helpers.trainings import arguments

NAMES = [
    ("x.lora_A", "x.lora_B", "lora_head"),
    ("lora_A.default", "lora_model.b", "explora_head"),
    ("a", "x.a", "x.lora_B"),
    ("base_model.model.a", "modules_to_save.default.b", "modules_to_save.head"),
    ("é", "a.base_layer", "weight"),
]
OTHERS = [
    ("a b", "is no name for ranks.json"),
    ("a/b", "is no name"),
    ("a#q", "holds #, which stands before the parts"),
]


class Net(nn.Module):
    def __init__(self, *names):
        super().__init__()
        torch.manual_seed(0)
        self.names = names
        for name, shape in zip(names, ((4, 16), (16, 16), (16, 2))):
            *path, last = name.split(".")
            owner = self
            for step in path:
                if step not in owner._modules:
                    owner.add_module(step, nn.Module())
                owner = owner._modules[step]
            owner.add_module(last, nn.Linear(*shape))

    def forward(self, x, labels=None):
        a, b, head = (self.get_submodule(name) for name in self.names)
        logits = head(torch.relu(b(torch.relu(a(x)))))
        return {"loss": None if labels is None else nn.functional.cross_entropy(logits, labels), "logits": logits}


def data():
    x = torch.randn(64, 4, generator=torch.Generator().manual_seed(1))
    return [{"x": row, "labels": label} for row, label in zip(x, (x[:, 0] * x[:, 1] > 0).long())]


@torch.no_grad()
def logits(model):
    return model.eval()(torch.ones(3, 4).cumsum(0))["logits"]


@pytest.mark.parametrize("names", NAMES, ids=" ".join)
def test_search_retrain_and_compress_read_what_they_wrote(tmp_path, names):
    config = LoraConfig(target_modules=list(names[:2]), modules_to_save=[names[2]], lora_alpha=8)
    settings = {"max_steps": 4, "hypergradient": "first_order", "hypergradient_interval": 1, "size": "lora:4"}
    trainer = AutoLoraTrainer(Net(*names), arguments(tmp_path, **settings), train_dataset=data(), peft_config=config)
    trainer.train()
    searched = logits(trainer.model)
    trainer.learned_ranks.save(tmp_path / "ranks.json")
    ranks = LearnedRanks.load(tmp_path / "ranks.json")
    trainer.save_model(str(tmp_path / "searched"))
    torch.testing.assert_close(logits(PeftModel.from_pretrained(Net(*names), tmp_path / "searched")), searched)
    model = build_adapter(Net(*names), ranks, config)
    trainer.start_retrain(model)
    torch.testing.assert_close(logits(model), searched)
    model.save_pretrained(tmp_path / "adapter")
    loaded = PeftModel.from_pretrained(Net(*names), tmp_path / "adapter")
    torch.testing.assert_close(logits(loaded), searched)
    file = AdapterFile.from_pretrained(tmp_path / "adapter")
    assert file.ranks == ranks.ranks == dict.fromkeys(names[:2], 4)
    assert (file.parameters, file.other_parameters) == (4 * (20 + 32), 34)
    args = TrainingArguments(str(tmp_path), use_cpu=True, report_to="none", disable_tqdm=True)
    small = compress(loaded, data(), args=args, size="lora:1")
    small.save_pretrained(tmp_path / "small")
    again = PeftModel.from_pretrained(Net(*names), tmp_path / "small")
    torch.testing.assert_close(logits(again), logits(small.load(Net(*names))))
    assert LearnedRanks.from_pretrained(tmp_path / "small").ranks == small.ranks.ranks


@pytest.mark.parametrize("name, message", OTHERS)
def test_a_name_that_no_file_gives_back_is_refused_before_anything_runs(tmp_path, name, message):
    config = LoraConfig(target_modules=[name], lora_alpha=8)
    with pytest.raises(ValueError, match=f"^'{name}' {message}"):
        AutoLoraTrainer(Net(name, "b", "head"), arguments(tmp_path), train_dataset=data(), peft_config=config)
    adapted = get_peft_model(Net(name, "b", "head"), config)
    with pytest.raises(ValueError, match=f"^'{name}' {message}"):
        AutoLoraTrainer(adapted, arguments(tmp_path, initial_rank=8), train_dataset=data())
    with pytest.raises(ValueError, match=f"^'{name}' {message}"):
        check_cuttable(adapted)


def test_what_could_not_be_read_is_not_written(tmp_path):
    with pytest.raises(ValueError, match="^'a b' is no name for ranks.json"):
        LearnedRanks({"a b": ModuleRank(1)}).save(tmp_path / "ranks.json")
    assert not (tmp_path / "ranks.json").exists()
    LearnedRanks({"a": ModuleRank(1)}, base_model="two\nlines" + 1000 * "x").save(tmp_path / "ranks.json")
    assert LearnedRanks.load(tmp_path / "ranks.json").base_model == "twolines" + 492 * "x"
