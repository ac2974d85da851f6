"""Runs of `run_glue.py` on a tiny checkpoint, forked from a process that has imported everything, so that 50 of them
take minutes; for reliability.py. They are processes of their own, and SIGKILL is SIGKILL."""

import hashlib
import json
import os
import signal
import sys
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import run_glue
from autolora_trainer.errors import run_guarded
from tests.helpers.commands import as_argv
from tests.helpers.models import tiny_checkpoint
from tests.helpers.rows import sentences, write_rows

RESULTS = ("ranks.json", "adapter_model.safetensors")  # compared byte for byte; ranks.json holds α
SETTINGS = {
    **{"task_name": "sst2", "learning_rate": 2e-2, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2},
    **{"initial_rank": 4, "hypergradient": "finite_difference", "hypergradient_interval": 2, "use_cpu": True},
    **{"search_max_steps": 12, "max_steps": 12},
    **{"save_strategy": "steps", "save_steps": 1, "save_total_limit": 3},
}


class Bench:
    """A folder with a tiny checkpoint and rows, and runs on them.

    Args:
        folder: an empty one.
        skipped: how many of a check's items an earlier, interrupted one had done.
        earlier: how many outcomes are counted already: what is drawn at random is drawn anew.
    """

    def __init__(self, folder: str, dropout: float = 0.1, skipped: int = 0, earlier: int = 0):
        self.folder, self.skipped, self.earlier = Path(folder), skipped, earlier
        self.done = skipped
        drops = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
        tiny_checkpoint(self.path("model"), **drops)
        for name, count, seed in (("train", 64, 0), ("validation", 16, 1)):
            write_rows(self.path(f"{name}.jsonl"), sentences(count, seed=seed))

    def left(self, items: Iterable) -> Iterator:
        """A check's items without those that are done."""
        for item in islice(items, self.skipped, None):
            yield item
            self.done += 1

    def argv(self, name: str, **changes) -> list[str]:
        places = {"model_name_or_path": self.path("model"), "output_dir": self.path(name)}
        places |= {f"{split}_file": self.path(f"{split}.jsonl") for split in ("train", "validation")}
        return as_argv({**SETTINGS, **places, **changes})

    def path(self, *parts: str) -> Path:
        return self.folder.joinpath(*parts)

    def read(self, *parts: str) -> dict:
        return json.loads(self.path(*parts).read_text(encoding="utf-8"))

    def start(self, argv: list[str], before=None, main=run_glue.main) -> int:
        """Fork a run; `before` is called in it first. Returns its process id; its output lies in `log`."""
        sys.stdout.flush()
        sys.stderr.flush()
        process = os.fork()
        if process:
            return process
        try:
            log = os.open(self.path("log"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(log, 1)
            os.dup2(log, 2)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            if before is not None:
                before()
            os._exit(run_guarded(lambda: main(argv), "run_glue.py"))
        finally:
            os._exit(70)

    def run(self, argv: list[str], before=None, main=run_glue.main) -> int:
        """Run to the end; returns the exit status, negative for a signal."""
        return os.waitstatus_to_exitcode(os.waitpid(self.start(argv, before, main), 0)[1])

    def log(self) -> str:
        return self.path("log").read_text(encoding="utf-8")

    def bits(self, name: str) -> list[str]:
        """Hashes of what a run has learned."""
        return [hashlib.sha256(self.path(name, result).read_bytes()).hexdigest() for result in RESULTS]

    def reference(self, **changes) -> list[str]:
        """The bits of a run that nothing happened to."""
        if self.run([*self.argv("reference", **changes), "--overwrite"]):
            raise RuntimeError(self.log())
        return self.bits("reference")

    def goes_on(self, argv, bits, before: str) -> str | None:
        """Resume the run `killed`. None if it went on from a checkpoint to the same bits, else what is wrong."""
        if self.path("killed", "all_results.json").exists():
            return f"{before}: it had finished"
        if status := self.run([*argv, "--resume_from_checkpoint"]):
            return f"{before}: resuming ended with {status}: {self.log().strip().splitlines()[-1]}"
        origin = self.read("killed", "all_results.json")["resumed_from"]
        if origin is None:
            return f"{before}: started over"
        return None if self.bits("killed") == bits else f"{before}: resumed from {origin} to other bits"
