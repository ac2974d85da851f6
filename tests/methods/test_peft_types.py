"""Does every type of PEFT train, come back, and say in one line what it cannot do?"""

import json
from types import SimpleNamespace

import pytest
import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import RobertaForTokenClassification

import run_glue
from autolora_trainer.methods import peft_types
from autolora_trainer.methods.base import count_parameters
from autolora_trainer.methods.registry import METHODS
from autolora_trainer.scripts.command_line import parse_arguments
from autolora_trainer.scripts.request import Request
from autolora_trainer.scripts.source import Source
from autolora_trainer.scripts.task_kind import Rows
from autolora_trainer.tasks import lengths
from tests.helpers.commands import command
from tests.helpers.methods import HEAD, collate
from tests.helpers.models import FAMILIES, tiny_gpt2, tiny_llama, tiny_roberta
from tests.helpers.rows import rows


class FakeJob:
    """What `methods.peft_types` asks of a job, around a tiny model."""

    def __init__(self, make, task, peft_type, targets=None, **kwargs):
        argv = ["--method", "peft", "--peft_type", peft_type, "--peft_kwargs", json.dumps(kwargs)]
        parsed = parse_arguments(argv + ["--output_dir", "nowhere", "--use_cpu", "True"])
        parsed[2].lora_target_modules = targets
        self.task_type, self.peft_type = task, peft_type
        self.request = Request(SimpleNamespace(task_type=task), *parsed, METHODS["peft"])
        self.source = Source(self.request)
        self.source._load = make
        ids = [row["input_ids"] for row in rows(4, length=8)]
        labels = {"SEQ_CLS": [0, 1, 0, 1], "TOKEN_CLS": [[i % 2 for i in row] for row in ids], "CAUSAL_LM": ids}[task]
        train = [{"input_ids": row, "attention_mask": [1] * 8, "labels": label} for row, label in zip(ids, labels)]
        self.rows = Rows({"train": train}, collator=collate)

    def adapter(self):
        """The model under the adapter, as the method prepares it."""
        return self.request.method.prepare(self)().model


KINDS = {
    "SEQ_CLS": (tiny_roberta, "SEQ_CLS"),
    "TOKEN_CLS": (lambda: RobertaForTokenClassification(tiny_roberta().config), "TOKEN_CLS"),
    "gpt2": (tiny_gpt2, "CAUSAL_LM"),
    "llama": (tiny_llama, "CAUSAL_LM"),
}
ALL = tuple(KINDS)
LINEAR_ONLY = ("SEQ_CLS", "TOKEN_CLS", "llama")  # GPT-2's Conv1D is none of theirs
# settings are those that models of 16 dimensions need; at real sizes PEFT's defaults fit
TYPES = {
    "LORA": (ALL, {"r": 2}),
    "DORA": (ALL, {}),
    "IA3": (ALL, {}),
    "PREFIX_TUNING": (ALL, {"num_virtual_tokens": 4}),
    "PROMPT_TUNING": (("SEQ_CLS", "gpt2", "llama"), {"num_virtual_tokens": 4}),
    "P_TUNING": (("SEQ_CLS", "gpt2", "llama"), {}),
    "LLAMA_ADAPTER": (("gpt2", "llama"), {}),
    "VERA": (ALL, {}),
    "RANDLORA": (ALL, {}),
    "LN_TUNING": (ALL, {}),
    "FOURIERFT": (ALL, {"n_frequency": 20}),
    "VBLORA": (ALL, {"vector_length": 4, "num_vectors": 8}),
    "HIRA": (ALL, {}),
    "LOHA": (LINEAR_ONLY, {}),
    "LOKR": (LINEAR_ONLY, {}),
    "OFT": (LINEAR_ONLY, {"oft_block_size": 4}),
    "BOFT": (LINEAR_ONLY, {}),
    "HRA": (LINEAR_ONLY, {}),
    "MISS": (LINEAR_ONLY, {"r": 2}),
    "BONE": (LINEAR_ONLY, {"r": 2}),
}


@pytest.mark.parametrize("kind, name", [(kind, name) for name, (kinds, _) in TYPES.items() for kind in kinds])
def test_a_peft_type_trains_and_comes_back(tmp_path, kind, name):
    job = FakeJob(*KINDS[kind], name, **TYPES[name][1])
    model = job.adapter()
    adapter_params, head = count_parameters(model)
    assert adapter_params > 0 and head == (0 if job.task_type == "CAUSAL_LM" else HEAD if kind == "SEQ_CLS" else 34)
    batch = collate(job.rows.datasets["train"])
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    before = [p.detach().clone() for p in trained]
    for _ in range(2):
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert all(not torch.equal(p, old) for p, old in zip(trained, before))
    with torch.no_grad():
        expected = model.eval()(**batch).logits
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(job.source.base_model(), tmp_path).eval()
    with torch.no_grad():
        torch.testing.assert_close(again(**batch).logits, expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("kind", ["distilbert", "roberta tokens"])
@pytest.mark.parametrize(
    "name, settings", [("LOHA", {}), ("IA3", {"feedforward_modules": ["lin2", "output.dense"]}), ("VERA", {})]
)  # VeRA has no `exclude_modules`
def test_all_linear_layers_are_those_of_no_head(kind, name, settings):
    task = "TOKEN_CLS" if kind == "roberta tokens" else "SEQ_CLS"
    model = FakeJob(FAMILIES[kind], task, name, ["all-linear"], **settings).adapter()
    adapted = [name for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)]
    assert len(adapted) == 12 and not any("classifier" in name for name in adapted)


def test_a_type_is_tried_where_its_model_is():
    """bitsandbytes puts a quantized model on the accelerator while it loads."""

    class Watched(torch.Tensor):
        def to(self, device):
            moved.append(device)
            return self.as_subclass(torch.Tensor)

    moved, job = [], FakeJob(*KINDS["gpt2"], "IA3")
    job.rows.collator = lambda rows: {key: value.as_subclass(Watched) for key, value in collate(rows).items()}
    job.adapter()
    assert moved == 3 * [torch.device("cpu")]


@pytest.mark.parametrize(
    "kind, name, changes, message",
    [
        ("TOKEN_CLS", "PROMPT_TUNING", {}, "puts virtual tokens before the words, .* Type --method prefix_tuning"),
        ("TOKEN_CLS", "P_TUNING", {}, "puts virtual tokens before the words, .* Type --method prefix_tuning"),
        ("SEQ_CLS", "ADAPTION_PROMPT", {}, "does not work with Roberta.* for SEQ_CLS: Unsupported model type"),
        ("gpt2", "LOHA", {}, "does not work with GPT2LMHeadModel for CAUSAL_LM: Target module .*Conv1D"),
        ("llama", "LILY", {}, "so that a token would see later ones"),
        ("gpt2", "OSF", {}, "does not work with GPT2LMHeadModel for CAUSAL_LM: it has nothing to train there"),
        ("SEQ_CLS", "MISS", {}, "does not work with Roberta.*in_features.*settings with --peft_kwargs"),
        (
            "SEQ_CLS",
            "IA3",
            {"targets": ["q_proj"]},
            "does not work with Roberta.*No modules were targeted.*--lora_target_modules",
        ),
        ("llama", "TRAINABLE_TOKENS", {}, "needs the tokens to train. Add --peft_kwargs"),
        ("SEQ_CLS", "TRAINABLE_TOKENS", {"token_indices": [5]}, "leaves the new head of a classifier as it was drawn"),
        ("SEQ_CLS", "XLORA", {}, "--peft_type XLORA mixes adapters that are trained already. Type --method lora"),
        ("SEQ_CLS", "POLY", {}, "needs a task id in every row"),
        ("SEQ_CLS", "ADALORA", {}, "is a method of its own here. Type --method adalora"),
        ("SEQ_CLS", "PREFIX", {}, "must be one of PEFT's types, got 'PREFIX'. Did you mean"),
        ("SEQ_CLS", "IA3", {"ranks": 2}, "sets 'ranks', and IA3Config has no such setting. It has target_modules"),
        ("SEQ_CLS", "VERA", {"vera_droput": 2}, "Did you mean vera_dropout"),
        ("SEQ_CLS", "VERA", {"inference_mode": True}, "sets 'inference_mode', and VeraConfig has no such setting"),
        ("SEQ_CLS", "LORA", {"init_lora_weights": "eva"}, "Type --method eva"),
    ],
)
def test_what_a_peft_type_cannot_do_is_refused_in_one_line(kind, name, changes, message):
    job = FakeJob(*KINDS[kind], name, **changes)
    with pytest.raises(ValueError, match=message) as error:
        job.adapter()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind, limit", [("SEQ_CLS", 38), ("gpt2", 40), ("llama", None)])
def test_virtual_tokens_and_rows_fit_the_positions(kind, limit):
    datasets = {"train": rows(4, length=5), "validation": [{"input_ids": [7] * 8}]}
    model = FakeJob(*KINDS[kind], "PREFIX_TUNING", num_virtual_tokens=30).adapter()
    assert lengths.positions(model) == limit and lengths.longest_row(datasets["train"]) == 5
    peft_types.check_positions(datasets, model)
    if limit is None:
        return
    datasets["validation"] = [{"input_ids": [7] * (limit - 29)}]
    message = f"30 virtual tokens and the longest validation row, {limit - 29} tokens, exceed the {limit} positions"
    with pytest.raises(ValueError, match=f"{message} of .* Lower --max_seq_length to {limit - 30}, or num_virtual"):
        peft_types.check_positions(datasets, model)
    fits = {"input_ids": torch.full((1, limit - 30), 7), "attention_mask": torch.ones(1, limit - 30)}
    assert model(**fits).logits.isfinite().all()
    with pytest.raises((IndexError, RuntimeError)):
        model(**{key: torch.cat([value, value[:, :1]], dim=1) for key, value in fits.items()})


def test_peft_types_have_folders_of_their_own(place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_glue.main(command(place, None, method="peft", peft_type="ia3", max_steps=1))
    assert json.loads((tmp_path / "outputs" / "sst2-ia3" / "all_results.json").read_text())["peft_type"] == "IA3"
