"""The command `autolora`: what people do with adapters, and with a run's results.

autolora compress ADAPTER --eval_file dev.jsonl --output_dir small
                                            any LoRA adapter, as small as held-out rows let it be
autolora run glue --task_name mrpc …        the scripts, after a pip install
autolora show ADAPTER                       rank grid, parameters, MB, what a server needs, of any LoRA adapter
autolora export DIR|REPO --format peft      the ranks for tools that take a rank pattern: peft, axolotl, and
                                            method_comparison, an experiment folder of PEFT's benchmark
autolora diff A B                           where two patterns differ
"""

import argparse
import importlib
import sys

from autolora_trainer.commands.export import FORMATS, export, export_experiment, scale_of
from autolora_trainer.commands.show import diff, show
from autolora_trainer.errors import UsageError, hide_secrets, run_guarded, usage_errors
from autolora_trainer.ranks.learned import LearnedRanks
from autolora_trainer.version import __version__

SCRIPTS = {"glue": "run_glue", "nlg": "run_nlg", "ner": "run_ner"}


def _parser() -> argparse.ArgumentParser:
    class OneLine(argparse.ArgumentParser):
        def error(self, message):
            raise UsageError(f"{message}; autolora --help lists the commands")

    parser = OneLine(prog="autolora", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True, parser_class=OneLine)
    run = commands.add_parser("run", help="run_glue, run_nlg or run_ner with their own arguments", add_help=False)
    run.add_argument("script", choices=SCRIPTS)
    run.add_argument("arguments", nargs=argparse.REMAINDER)
    for name, text in (("show", "rank grid, parameters, MB, cost"), ("export", "the ranks for another tool")):
        command = commands.add_parser(name, help=text)
        what = "a LoRA adapter or an output directory, here or on the Hub, or a ranks.json"
        command.add_argument("source", metavar="ADAPTER", help=what)
        if name == "export":
            command.add_argument("--format", default="peft", choices=FORMATS)
            command.add_argument("--lora_alpha", type=int, help="default: that of the run, else 16")
            command.add_argument("--output", metavar="DIR", help="of method_comparison: the folder to write")
    _add_compress(commands)
    compare = commands.add_parser("diff", help="where two patterns differ")
    compare.add_argument("first", metavar="A")
    compare.add_argument("second", metavar="B")
    return parser


EXAMPLES_OF_COMPRESS = """examples:
  autolora compress my-adapter --eval_file dev.jsonl --output_dir small
  autolora compress my-adapter --rank 8 --output_dir small      # without rows: by singular values
"""


def _add_compress(commands) -> None:
    command = commands.add_parser(
        "compress", help="any LoRA adapter, made smaller on held-out rows", epilog=EXAMPLES_OF_COMPRESS,
        description="The smallest adapter whose held-out loss is that of the given one, within a tolerance.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    command.add_argument("adapter", metavar="ADAPTER", help="a folder or Hub id of a LoRA adapter, whoever trained it")
    rows = command.add_argument_group("what judges (one of the three)").add_mutually_exclusive_group(required=True)
    rows.add_argument("--eval_file", help="rows that it was not trained on: messages, prompt and completion, text, or "
                      "label (JSON lines, CSV, parquet)")  # fmt: skip
    rows.add_argument("--rank", type=int, help="without rows: so many components of every module")
    rows.add_argument(
        "--energy", type=float, help="without rows: the share of Σ σ² that every module keeps, e.g. 0.95"
    )
    size = command.add_argument_group("how small")
    size.add_argument("--tolerance", type=float, default=0.01, help="share by which the held-out loss may grow")
    size.add_argument("--size", default="auto", help="auto, parameters, or lora:R")
    size.add_argument("--max_lora_rank", type=int, help="a cap on any module, for servers")
    heal = command.add_argument_group("training afterwards")
    heal.add_argument("--heal_steps", type=int, default=0, help="steps on --train_file")
    heal.add_argument("--train_file", help="rows to heal on")
    heal.add_argument("--learning_rate", type=float, default=1e-4, help="of healing")
    more = command.add_argument_group("model and rows")
    more.add_argument("--base_model", help="default: the one that the adapter names")
    more.add_argument("--batch_size", type=int, default=8)
    more.add_argument("--max_length", type=int, default=1024, help="tokens of a row")
    more.add_argument("--bf16", action="store_true", help="compute in bfloat16 autocast")
    command.add_argument("--output_dir", required=True, help="a new folder for the small adapter")


def main(argv: list[str] | None = None) -> None:
    """Run one command, or raise `UsageError`: one line, for what was given."""
    if argv is None:
        argv, sys.argv[1:] = sys.argv[1:], hide_secrets(sys.argv[1:])
    options = _parser().parse_args(argv)
    if options.command == "run":
        importlib.import_module(SCRIPTS[options.script]).main(options.arguments)
        return
    with usage_errors():
        if options.command == "show":
            print(show(options.source))
        elif options.command == "export":
            print(_export(options))
        elif options.command == "compress":
            print(importlib.import_module("autolora_trainer.commands.compress").run(options))
        else:
            print(diff(LearnedRanks.from_pretrained(options.first), LearnedRanks.from_pretrained(options.second)))


def _export(options) -> str:
    if options.lora_alpha is not None and options.lora_alpha < 1:
        raise ValueError(f"lora_alpha must be at least 1, got {options.lora_alpha}. LoRA's usual is 16.")
    if (options.format == "method_comparison") != (options.output is not None):
        given = f"--format {options.format}" + (" and --output" if options.output else " without it")
        raise ValueError(f"--output DIR belongs to --format method_comparison, got {given}.")
    ranks = LearnedRanks.from_pretrained(options.source)
    lora = scale_of(options.source)
    if options.lora_alpha is not None:
        lora["lora_alpha"] = options.lora_alpha
    if options.output is None:
        return export(ranks, options.format, **lora)
    return export_experiment(ranks, options.output, **lora)


def entry_point() -> None:
    """`autolora`, as pip installs it."""
    sys.exit(run_guarded(main, "autolora"))


if __name__ == "__main__":
    entry_point()
