"""What a weight step of each variant costs: seconds, passes, peak memory, between two callbacks of its own `train()`.

All variants train the same model on the same random rows; see `benchmarks/cost.py`.
"""

import copy
import gc
import logging
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import torch
import transformers
import yaml
from peft import EvaConfig, LoraConfig, get_peft_model, initialize_lora_eva_weights
from torch.utils.data import DataLoader, default_collate
from transformers import PrinterCallback, TrainingArguments

from autolora_trainer import AutoLoraTrainer, AutoLoraTrainingArguments
from autolora_trainer.lora.parts import lora_layers
from autolora_trainer.methods.adalora import AdaLoraTrainer, adalora_config, schedule
from autolora_trainer.methods.base import count_parameters
from autolora_trainer.search.selection import selection
from autolora_trainer.training.cost import CostMeter
from autolora_trainer.training.passes import fix_loss_scale
from autolora_trainer.training.trainer import FinalTrainer

KNOWN = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
SHAPES, VARIANTS, REFERENCE, CYCLE = (KNOWN[name] for name in ("shapes", "variants", "reference", "cycle"))
DROPOUTS = "hidden_dropout_prob attention_probs_dropout_prob resid_pdrop embd_pdrop attn_pdrop".split()


class Stopwatch(CostMeter):
    """Seconds and passes between the end of step `warmup` and the end of step `warmup + steps`."""

    def __init__(self, warmup: int, steps: int, device: str):
        super().__init__()
        self.first, self.last, self.device = warmup, warmup + steps, device

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.first:
            self.passes, self.start = self.figures()["passes"], self.now()
        elif state.global_step == self.last:
            self.seconds = self.now() - self.start
            self.passes = self.figures()["passes"] - self.passes

    def now(self) -> float:
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def of_a_step(self) -> dict:
        steps, peak = self.last - self.first, self.figures()["peak_memory_mb"]
        return {"step_seconds": self.seconds / steps, "passes": self.passes / steps, "peak_memory_mb": peak}


class Bench:
    """The model, the data and the arguments that all variants share."""

    def __init__(self, arguments):
        self.arguments = arguments
        if arguments.model:
            config = transformers.AutoConfig.from_pretrained(arguments.model)
        else:
            shape = dict(SHAPES[arguments.shape])
            config = getattr(transformers, shape.pop("kind"))(**shape)
        for name in DROPOUTS:
            if hasattr(config, name):
                setattr(config, name, arguments.dropout)
        causal = (config.architectures or [""])[0].endswith(("LMHeadModel", "ForCausalLM"))
        self.task_type = "CAUSAL_LM" if causal else "SEQ_CLS"
        self.auto = getattr(transformers, f"AutoModelFor{'CausalLM' if causal else 'SequenceClassification'}")
        self.config, self.base = config, None
        count, generator = arguments.batch_size * (arguments.warmup + arguments.steps), torch.Generator().manual_seed(
            0
        )
        ids = torch.randint(3, config.vocab_size, (count, arguments.length), generator=generator)
        labels, mask = ids if causal else torch.randint(0, 2, (count,), generator=generator), torch.ones_like(ids[0])
        self.rows = [{"input_ids": x, "attention_mask": mask, "labels": y} for x, y in zip(ids, labels)]

    def model(self) -> torch.nn.Module:
        """A base model, every time with the same weights. On a GPU it is made anew, so that peaks hold one of them."""
        a = self.arguments
        if self.base is not None:
            return copy.deepcopy(self.base)
        settings = {"attn_implementation": a.attn, "dtype": torch.bfloat16 if a.weights == "bf16" else torch.float32}
        torch.manual_seed(a.seed)
        if a.model:
            model = self.auto.from_pretrained(a.model, config=self.config, **settings)
        else:
            with torch.device(a.device):
                model = self.auto.from_config(self.config, **settings)
        if a.device == "cpu" and not a.measure:
            self.base = copy.deepcopy(model)
        return model

    def lora_config(self, **settings) -> LoraConfig:
        shared = {"task_type": self.task_type, "lora_alpha": 16, "lora_dropout": self.arguments.dropout, "r": 8}
        return LoraConfig(**{**shared, **settings})

    def training_arguments(self, folder: str, kind=TrainingArguments, **search) -> TrainingArguments:
        a = self.arguments
        lengths = {"max_steps": a.warmup + a.steps, "per_device_train_batch_size": a.batch_size, "seed": a.seed}
        device = {"bf16": a.dtype == "bf16", "use_cpu": a.device == "cpu", "torch_compile": a.compile}
        device |= {"dataloader_pin_memory": a.device == "cuda"}
        quiet = {"logging_strategy": "no", "save_strategy": "no", "disable_tqdm": True}
        return kind(folder, learning_rate=1e-4, **lengths, **device, **quiet, **search)

    def trainer(self, kind: str, settings: dict, folder: str):
        if kind == "search":
            # ranks are counted after every selection step, as by default, but never settle within the measured steps
            arguments = self.training_arguments(folder, AutoLoraTrainingArguments, size="lora:1", **settings)
            data = {"train_dataset": self.rows, "val_dataset": self.rows}
            lora = self.lora_config(r=arguments.initial_rank)
            return AutoLoraTrainer(self.model(), arguments, **data, peft_config=lora)
        arguments = self.training_arguments(folder)
        if kind == "lora":
            model = get_peft_model(self.model(), self.lora_config(**settings))
            return fix_loss_scale(FinalTrainer(model=model, args=arguments, train_dataset=self.rows))
        with torch.device("meta"):  # AdaLoRA's modules are LoRA's, which PEFT names only in a model
            probe = get_peft_model(self.auto.from_config(self.config), self.lora_config())
        phases = schedule(self.arguments.steps)
        for name in ("tinit", "total_step"):
            phases[name] += self.arguments.warmup  # so that the measured steps hold the phases in a run's shares
        config = adalora_config(probe.peft_config["default"], settings["target"], **phases)
        model = get_peft_model(self.model(), config)
        return fix_loss_scale(AdaLoraTrainer(model=model, args=arguments, train_dataset=self.rows))

    def measure(self, name: str) -> dict:
        """Train a variant and say what its steps cost."""
        settings = dict(VARIANTS[name])
        kind = settings.pop("kind")
        gc.collect()
        if self.arguments.device == "cuda":
            torch.cuda.empty_cache()
        torch._dynamo.reset()
        watch = Stopwatch(self.arguments.warmup, self.arguments.steps, self.arguments.device)
        if kind == "eva":
            return self.measure_eva(watch, settings)
        if kind == "betty":
            return {**self.run_betty(watch, **settings), **watch.of_a_step()}
        with tempfile.TemporaryDirectory() as folder:
            trainer = self.trainer(kind, settings, folder)
            trainer.remove_callback(PrinterCallback)
            trainer.add_callback(watch)
            trainer.train()
        return {"adapter_params": count_parameters(trainer.model)[0], **watch.of_a_step()}

    def measure_eva(self, watch: Stopwatch, settings: dict) -> dict:
        lora = self.lora_config(init_lora_weights="eva", eva_config=EvaConfig(), **settings)
        model = get_peft_model(self.model(), lora).to(self.arguments.device)
        inputs = lambda batch: {k: v.to(self.arguments.device) for k, v in batch.items() if k != "labels"}
        loader = [inputs(batch) for batch in DataLoader(self.rows, self.arguments.batch_size)]
        start = watch.now()
        initialize_lora_eva_weights(model, loader, show_progress_bar=False)
        figures = {"once_seconds": watch.now() - start, "peak_memory_mb": watch.figures()["peak_memory_mb"]}
        return {**figures, "adapter_params": count_parameters(model)[0]}

    def run_betty(self, watch: Stopwatch, r: int, interval: int) -> dict:
        """The search of Algorithm 1 as Betty's users would write it: two problems, and `darts` between them."""
        from betty.configs import Config, EngineConfig
        from betty.engine import Engine
        from betty.problems import ImplicitProblem

        logging.getLogger("betty").disabled = True  # it prints its dependency graph
        a = self.arguments
        model = get_peft_model(self.model(), self.lora_config(r=r)).to(a.device)
        model = torch.compile(model) if a.compile else model
        layers = list(lora_layers(model).values())
        gates = torch.nn.ParameterDict({"logits": torch.zeros(len(layers), r)}).to(a.device)  # β
        current = {}  # α of the pass that runs
        for row, layer in enumerate(layers):
            layer.lora_A["default"].register_forward_hook(lambda m, x, out, row=row: out * current["alpha"][row])

        def loss(batch):  # L(W, α): the same for both problems, on their own data
            current["alpha"] = selection(gates["logits"])
            with torch.autocast(a.device, dtype=torch.bfloat16, enabled=a.dtype == "bf16"):
                return model(**dict(zip(self.rows[0], batch))).loss

        class Trained(ImplicitProblem):
            def trainable_parameters(self):
                return [p for p in self.module.parameters() if p.requires_grad]

            def training_step(self, batch):
                return loss(batch)

        def problem(name, module, config, rate):
            collate = lambda rows: tuple(default_collate(rows).values())  # Betty takes no dicts
            loader = DataLoader(self.rows, a.batch_size, shuffle=True, drop_last=True, collate_fn=collate)
            trained = [p for p in module.parameters() if p.requires_grad]
            optimizer = torch.optim.AdamW(trained, lr=rate, weight_decay=0.0)
            return Trained(name, config, module, optimizer, train_data_loader=loader, device=a.device)

        weights = problem("weights", model, Config(type="darts", unroll_steps=interval, gradient_clipping=1.0), 1e-4)
        # the outer gradient has a direct and an implicit term, and Betty takes two backward passes through one graph
        ranks = problem("ranks", gates, Config(retain_graph=True), 1e-3)
        dependencies = {"u2l": {ranks: [weights]}, "l2u": {weights: [ranks]}}
        engine = Engine([ranks, weights], EngineConfig(), dependencies)
        engine.train()
        state = SimpleNamespace(global_step=0)
        watch.on_train_begin(SimpleNamespace(world_size=1), state, None, model=model)
        for state.global_step in range(1, watch.last + 1):
            engine.global_step += 1
            engine.train_step()  # what `Engine.run` does in its loop
            watch.on_step_end(None, state, None)
        if not gates["logits"].detach().any():
            raise RuntimeError("no selection variable moved")
        return {"adapter_params": count_parameters(model)[0]}
