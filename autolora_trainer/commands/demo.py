"""`autolora demo`: ranks and size found, trained beside uniform LoRA, and an adapter compressed.

The language model is so small that it takes minutes on a CPU. Six lines are said; the rest goes to a log, and what was
found into a page.
"""

import contextlib
import logging
import os
import sys
import time
from dataclasses import dataclass

from peft import LoraConfig, PeftModel, get_peft_model_state_dict
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments, set_seed

from autolora_trainer.clean import say
from autolora_trainer.commands.export import check_new
from autolora_trainer.commands.surroundings import one_bar
from autolora_trainer.find.rank_search import RankSearch
from autolora_trainer.hub.public import public_command
from autolora_trainer.machine import is_terminal
from autolora_trainer.ranks.adapter import build_adapter, save_adapter
from autolora_trainer.ranks.budget import uniform_ranks
from autolora_trainer.ranks.learned import LearnedRanks, ModuleRank
from autolora_trainer.report.findings import save_findings
from autolora_trainer.report.page import PAGE_FILE, save_page
from autolora_trainer.report.tables import cost_table, format_table
from autolora_trainer.sample.decoder import lines, save_decoder
from autolora_trainer.shrink.compressing import compress
from autolora_trainer.training.cost import CostMeter
from autolora_trainer.training.progress import show_phase

LOG, BASE = "demo.log", "decoder"  # in the output folder
LEAST = {"lines": 64, "steps": 1, "search_steps": 5}  # the first selection step follows the fourth
TOLERANCE = 0.05  # of a compressed adapter; every component of one that is full counts, and 1 % would leave nearly all
RANK = 8  # of the uniform LoRA that people take
LORA = LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", exclude_modules=r"lm_head.*", lora_alpha=32)


@dataclass
class Adapter:
    """One that was trained, or made of one that was: its loss is that of the test lines, in nats a token."""

    name: str
    model: PeftModel
    parameters: int
    loss: float
    cost: dict


class Demo:
    """The lines, the base model, and how all adapters are trained: alike, so that only their ranks differ."""

    def __init__(self, options):
        self.place, self.seed, self.steps = options.output_dir, options.seed, options.steps
        held_out = max(16, options.lines // 4)
        (self.rows, self.held_out, self.test), self.collate = lines([options.lines, held_out, held_out])
        save_decoder(self.base_path)

    @property
    def base_path(self) -> str:
        return os.path.join(self.place, BASE)

    def base(self):
        return AutoModelForCausalLM.from_pretrained(self.base_path, attn_implementation="eager")

    def arguments(self) -> TrainingArguments:
        return TrainingArguments(
            self.place, per_device_train_batch_size=16, per_device_eval_batch_size=64, learning_rate=3e-3,
            warmup_steps=10, max_steps=self.steps, logging_steps=10, save_strategy="no", report_to="none",
            use_cpu=True, seed=self.seed, disable_tqdm=not is_terminal(sys.stderr),
        )  # fmt: skip

    def trainer(self, name: str, model, **more) -> Trainer:
        """One whose bar begins with `name`."""
        trainer = Trainer(model, self.arguments(), data_collator=self.collate, eval_dataset=self.test, **more)
        show_phase(trainer, name)
        return trainer

    def search(self, steps: int | None) -> RankSearch:
        more = {"args": self.arguments(), "data_collator": self.collate, "trainer_class": Trainer}
        return RankSearch(self.base(), self.rows, LORA, seed=self.seed, search_steps=steps, **more).run()

    def trained(self, name: str, ranks: dict[str, int], costs: dict[str, int]) -> Adapter:
        """An adapter of some ranks, trained from the pre-trained model."""
        set_seed(self.seed)
        model = build_adapter(self.base(), LearnedRanks({n: ModuleRank(r) for n, r in ranks.items()}), LORA)
        meter = CostMeter()
        trainer = self.trainer(name, model, train_dataset=self.rows, callbacks=[meter])
        trainer.train()
        cost, size = meter.stop(), sum(costs[module] * rank for module, rank in ranks.items())
        return Adapter(name, model, size, self.loss(trainer), cost)

    def loss(self, trainer: Trainer) -> float:
        return trainer.evaluate()["eval_loss"]


def run(options) -> None:
    """All of it; what there is to say is said on the way."""
    began, place = time.perf_counter(), options.output_dir
    _check(place, options.overwrite, vars(options))
    os.makedirs(place, exist_ok=True)
    with _logged(os.path.join(place, LOG)) as aside:
        demo = Demo(options)
        with aside():
            search, search_cost = _timed(lambda: demo.search(options.search_steps))
        say(_curve(search.curve, search.parameters))
        say(search.summary)
        with aside():
            learned = demo.trained("learned ranks", search.ranks.ranks, search.costs)
        say(_said(learned))
        with aside():
            same = demo.trained("uniform, same size", uniform_ranks(search.costs, search.parameters), search.costs)
            eight = demo.trained(f"uniform, rank {RANK}", dict.fromkeys(search.costs, RANK), search.costs)
        say(f"{_said(same)}; {_said(eight)}")
        with aside():
            small, smaller = _compressed(demo, eight)
        share = smaller.parameters / eight.parameters
        say(f"{_said(smaller)}: {share:.0%} of it, within {TOLERANCE:.0%} of its held-out loss")
        adapters = [learned, same, eight, smaller]
        with aside():
            _write(place, search, small, adapters, search_cost, options.typed)
    say(f"{os.path.join(place, PAGE_FILE)} shows it all; adapters and log beside it; "
        f"{time.perf_counter() - began:.0f} s")  # fmt: skip


def _check(place: str, overwrite: bool, counts: dict) -> None:
    """Raise `ValueError` for numbers that are too small, and for a folder that holds anything but an earlier demo that
    may be replaced."""
    for name, least in LEAST.items():
        if (given := counts[name]) is not None and given < least:
            raise ValueError(f"--{name} must be at least {least}, got {given}. Raise it, or leave it out.")
    if os.path.exists(os.path.join(place, LOG)):
        if not overwrite:
            raise ValueError(f"{place} holds a demo. Add --overwrite to replace it, or give another --output_dir.")
    else:
        check_new(place)


@contextlib.contextmanager
def _logged(path: str):
    """Inside, the package's log and warnings go to a file; yields a context in which what is printed does too."""
    with open(path, "w", encoding="utf-8") as log:
        handler, logger = logging.StreamHandler(log), logging.getLogger("autolora_trainer")
        before, logger.handlers = logger.handlers, []  # those of a command that ran before in this process
        one_bar(handler)
        logging.captureWarnings(True)
        logging.getLogger("py.warnings").addHandler(handler)
        try:
            yield lambda: contextlib.redirect_stdout(log)
        finally:
            logging.captureWarnings(False)
            logging.getLogger("py.warnings").removeHandler(handler)
            logger.handlers = before


def _timed(work):
    """(what it gives, its seconds as a cost)."""
    began = time.perf_counter()
    return work(), {"wall_seconds": round(time.perf_counter() - began, 3)}


def _compressed(demo: Demo, eight: Adapter):
    """(the trained rank 8, compressed on rows that it was not trained on; that as one of the adapters)."""
    more = {"args": demo.arguments(), "data_collator": demo.collate, "tolerance": TOLERANCE}
    small, cost = _timed(lambda: compress(eight.model, demo.held_out, **more))
    model = small.load(demo.base())
    loss = demo.loss(demo.trainer("evaluation", model))
    return small, Adapter(f"rank {RANK}, compressed", model, small.file.parameters, loss, cost)


def _said(adapter: Adapter) -> str:
    return f"{adapter.name}: {adapter.parameters:,} parameters, test loss {adapter.loss:.3f}"


def _curve(curve, size: int) -> str:
    """The curve in a line: no adapter, and five sizes, the one that was found among them."""
    none, *rest = curve.points
    every = max(1, -(-len(rest) // 4))
    shown = [point for i, point in enumerate(rest) if i % every == 0 or point.parameters == size or point is rest[-1]]
    points = [f"{p.loss:.2f} at {p.parameters:,}{' <' * (p.parameters == size and curve.decided)}" for p in shown]
    return f"held-out loss: {none.loss:.2f} without adapter, {', '.join(points)} parameters"


def _write(place: str, search: RankSearch, small, adapters: list[Adapter], search_cost: dict, typed) -> None:
    """The adapters, what was found, and the page of it."""
    learned, same, eight, _ = adapters
    for folder, adapter in (("", learned), ("uniform-same-size", same), (f"uniform-rank-{RANK}", eight)):
        config = adapter.model.peft_config["default"]
        save_adapter(config, get_peft_model_state_dict(adapter.model), os.path.join(place, folder))
    small.save_pretrained(os.path.join(place, "compressed"))
    save_findings(search.ranks, place, search.parameters)
    heads = ["adapter", "test loss", "parameters", "seconds"]
    rows = [[a.name, f"{a.loss:.3f}", f"{a.parameters:,}", f"{a.cost['wall_seconds']:.0f}"] for a in adapters]
    print(format_table(heads, rows))
    whole = search_cost["wall_seconds"] + learned.cost["wall_seconds"]
    phases, times = cost_table({"search": search_cost, "retrain": learned.cost, "total": {"wall_seconds": whole}})
    cost = (phases[:2], [row[:2] for row in times])  # the passes of a search are not counted here
    tables = {"Trained alike, on one seed": (heads, rows), "Cost of the learned ranks": cost}
    others = {f"Rank {RANK}, trained and then compressed": (small.ranks, small.file.parameters)}
    save_page(place, search.ranks, search.parameters, tables, public_command(typed), others)
