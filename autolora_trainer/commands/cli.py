"""The command `autolora`: what people do with adapters, and with a run's results."""

import importlib
import math
import os
import sys

from autolora_trainer.clean import hide_secrets, say
from autolora_trainer.commands.arguments import parser
from autolora_trainer.commands.export import (
    FOLDERS,
    PADDED,
    check_pad,
    export,
    export_adapter,
    export_experiment,
    scale_of,
)
from autolora_trainer.commands.show import diff, show
from autolora_trainer.errors import is_first_process, run_guarded, usage_errors
from autolora_trainer.machine import check_letters
from autolora_trainer.ranks.learned import LearnedRanks


def main(argv: list[str] | None = None) -> None:
    """Run one command, or raise `UsageError`: one line, for what was given."""
    if argv is None:
        argv, sys.argv[1:] = sys.argv[1:], hide_secrets(sys.argv[1:])
    options = parser().parse_args(argv)
    options.typed = ["autolora", *argv]  # for the card
    if options.command == "run":
        importlib.import_module(f"run_{options.script}").main(options.arguments)
        return
    with usage_errors():
        check_letters(argv)
        for name, value in vars(options).items():
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"--{name} must be a finite number, got {value}.")
        if options.command == "show":
            say(show(options.source))
        elif options.command == "export":
            say(_export(options))
        elif options.command == "demo":
            os.environ.setdefault("HF_HUB_OFFLINE", "1")  # its client reads this once, when it is imported
            importlib.import_module("autolora_trainer.commands.demo").run(options)
        elif options.command in ("find", "compress"):
            said = importlib.import_module(f"autolora_trainer.commands.{options.command}").run(options)
            if is_first_process():
                say(said)
        else:
            say(diff(LearnedRanks.from_pretrained(options.first), LearnedRanks.from_pretrained(options.second)))


def _export(options) -> str:
    if options.lora_alpha is not None and options.lora_alpha < 1:
        raise ValueError(f"lora_alpha must be at least 1, got {options.lora_alpha}. LoRA's usual is 16.")
    if (options.format in FOLDERS) != (options.output is not None):
        given = f"--format {options.format}" + (" and --output" if options.output else " without it")
        raise ValueError(f"--output DIR belongs to --format {', '.join(FOLDERS)}, got {given}.")
    check_pad(options)
    if options.format in PADDED:
        if options.lora_alpha is not None:
            raise ValueError(f"--format {options.format} keeps the adapter's own scale. Drop --lora_alpha.")
        return export_adapter(options.source, options.output, options.format, options.pad)
    ranks = LearnedRanks.from_pretrained(options.source)
    lora = scale_of(options.source)
    if options.lora_alpha is not None:
        lora["lora_alpha"] = options.lora_alpha
    if options.output is None:
        return export(ranks, options.format, **lora)
    return export_experiment(ranks, options.output, **lora)


def entry_point() -> None:
    """`autolora`, as pip installs it."""
    ended = {"find": (), "run": (), "demo": ("interrupted; type the same command with --overwrite to begin again.",)}
    said = ended.get("".join(sys.argv[1:2]), ("interrupted; nothing was written.",))
    sys.exit(run_guarded(main, "autolora", *said))


if __name__ == "__main__":
    entry_point()
