"""Is what is saved, merged and copied what was searched, whoever saves, merges or copies it?"""

import copy
import io
import os
import pickle

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model_state_dict
from transformers import TrainerCallback

from autolora_trainer.lora.fused import add_lora
from autolora_trainer.search.selection import attach_gates
from tests.helpers.models import tiny_gpt2, tiny_roberta
from tests.helpers.trainings import searcher, trained_state

IDS = torch.arange(3, 15).view(1, 12)
KINDS = {
    "layers": (tiny_roberta, {"task_type": "SEQ_CLS", "target_modules": ["query", "value"], "lora_bias": True}),
    "parts": (tiny_gpt2, {"task_type": "CAUSAL_LM"}),
}


def base(kind):
    torch.manual_seed(0)
    return KINDS[kind][0]().eval()


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture
def gates(kind):
    model = add_lora(base(kind), LoraConfig(**KINDS[kind][1], lora_alpha=8), rank=4).eval()
    torch.manual_seed(1)
    gates = attach_gates(model, gate_scaling="plain")
    with torch.no_grad():
        for part in gates.parts.values():
            part.set_lora_B(0.3 * torch.randn_like(part.lora_B))  # of parts, zero elsewhere
            if (bias := part.layer.lora_B["default"].bias) is not None:
                bias.normal_()
        gates.logits.normal_()
    gates.refresh()
    gates.model = model
    return gates


@torch.no_grad()
def logits(model):
    return model.eval()(input_ids=IDS).logits


def pickled(model):
    return pickle.loads(pickle.dumps(model))


def saved_whole(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def close(one, other):
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_a_plain_save_loads_as_what_was_searched(kind, gates, tmp_path):
    expected = logits(gates.model)
    gates.model.save_pretrained(tmp_path / "adapter")
    close(logits(PeftModel.from_pretrained(base(kind), tmp_path / "adapter")), expected)
    torch.save(get_peft_model_state_dict(gates.model), tmp_path / "state.pt")
    with gates.folded():
        folded = get_peft_model_state_dict(gates.model)
        assert all(torch.equal(v, folded[n]) for n, v in torch.load(tmp_path / "state.pt").items())
    assert torch.equal(logits(gates.model), expected)


def test_a_plain_merge_is_what_was_searched(gates):
    expected, model = logits(gates.model), gates.model
    if len(gates.layers) == len(set(gates.layers.values())):  # no parts
        for (name, part), alpha in zip(gates.parts.items(), gates.selection):  # Eq. 2
            update = part.scaling * (part.lora_B * gates.scale * alpha) @ part.lora_A
            torch.testing.assert_close(part.layer.get_delta_weight("default"), update)
    model.merge_adapter()
    close(logits(model), expected)
    model.unmerge_adapter()
    close(logits(model), expected)
    close(logits(model.merge_and_unload()), expected)


def test_mixed_adapters_are_what_was_searched(gates):
    model = gates.model
    for name, parameter in model.named_parameters():  # PEFT mixes no biases
        if "lora_B.default.bias" in name:
            parameter.data.zero_()
    expected = logits(model)
    model.add_weighted_adapter(["default"], [1.0], "mix", combination_type="cat")
    model.set_adapter("mix")
    close(logits(model), expected)


@pytest.mark.parametrize("copied", [copy.deepcopy, pickled, saved_whole])
def test_a_copy_is_what_was_searched_and_stands_by_itself(gates, copied):
    expected, raw = logits(gates.model), [part.lora_B.clone() for part in gates.parts.values()]
    twin = copied(gates.model)
    close(logits(twin), expected)
    with torch.no_grad():
        gates.logits.normal_()
    gates.refresh()
    close(logits(twin), expected)
    close(logits(copied(twin).merge_and_unload()), expected)
    assert all(torch.equal(part.lora_B, before) for part, before in zip(gates.parts.values(), raw))
    assert not any("Gated" in type(module).__name__ for module in twin.modules())
    own = attach_gates(twin, gate_scaling="plain")  # without the gates of the earlier search
    close(logits(twin), expected)
    own.remove()
    gates.remove()
    assert all("get_delta_weight" not in vars(layer) for layer in gates.layers.values())


def test_a_state_that_is_loaded_again_computes_the_same(gates):
    expected = logits(gates.model)
    state = copy.deepcopy(gates.model.state_dict())
    gates.model.load_state_dict(state)
    close(logits(gates.model), expected)
    with torch.no_grad():
        gates.logits.normal_()
    gates.refresh()
    gates.model.load_state_dict(state)  # into gates that have moved on
    close(logits(gates.model), expected)
    gates.selection[0, 0] = 0
    with pytest.raises(RuntimeError, match=r"a gate is zero. Call gates.remove\(\) or gates.bake\(\) before loading"):
        gates.model.load_state_dict(state)


class SaveOnTheWay(TrainerCallback):
    """As users' callbacks do."""

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if state.global_step == 8:
            model.save_pretrained(os.path.join(args.output_dir, "own"))
            self.logits = logits(model)
            model.train()


def test_a_callback_saves_what_is_searched_and_changes_nothing(tmp_path):
    callback = SaveOnTheWay()
    plain, trainer = searcher(tmp_path, dropout=0.0), searcher(tmp_path, dropout=0.0, callbacks=[callback])
    plain.train()
    trainer.train()
    assert all(torch.equal(value, trained_state(trainer)[name]) for name, value in trained_state(plain).items())
    torch.manual_seed(0)
    close(logits(PeftModel.from_pretrained(tiny_roberta(), tmp_path / "own")), callback.logits)
