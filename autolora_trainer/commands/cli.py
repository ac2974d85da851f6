"""The command `autolora`: what people do with adapters, and with a run's results.

autolora find MODEL DATA --output_dir found  which modules, which ranks and how large, before a training
autolora compress ADAPTER --eval_file dev.jsonl --output_dir small
                                            any LoRA adapter, as small as held-out rows let it be
autolora run glue --task_name mrpc …        the scripts, after a pip install
autolora show ADAPTER                       rank grid, parameters, MB, what a server needs, of any LoRA adapter
autolora export ADAPTER --format peft       the ranks for peft, trl, unsloth, axolotl, or PEFT's method_comparison
autolora export ADAPTER --format adapter --output START
                                            a trainable adapter for whatever goes on training one; --pad: at one rank
autolora diff A B                           where two patterns differ
"""

import argparse
import importlib
import sys

from autolora_trainer.commands.export import FOLDERS, FORMATS, export, export_adapter, export_experiment, scale_of
from autolora_trainer.commands.show import diff, show
from autolora_trainer.errors import UsageError, hide_secrets, is_first_process, run_guarded, usage_errors
from autolora_trainer.ranks.learned import LearnedRanks
from autolora_trainer.version import __version__

FIND_FORMATS = tuple(form for form in FORMATS if form != "method_comparison")
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
            folders = ", ".join(FOLDERS)
            command.add_argument("--output", metavar="DIR", help=f"of {folders}: the folder to write")
            command.add_argument("--pad", action="store_true", help="of adapter: one rank, filled up with zeros")
    _add_find(commands)
    _add_compress(commands)
    compare = commands.add_parser("diff", help="where two patterns differ")
    compare.add_argument("first", metavar="A")
    compare.add_argument("second", metavar="B")
    return parser


EXAMPLES_OF_FIND = """examples:
  autolora find Qwen/Qwen3-0.6B chats.jsonl --format trl --output_dir found
  autolora find Qwen/Qwen3-0.6B chats.jsonl --format llama-factory --max_lora_rank 16 --output_dir found
"""


def _add_find(commands) -> None:
    command = commands.add_parser(
        "find", help="which modules, which ranks and how large, before a training", epilog=EXAMPLES_OF_FIND,
        description="A short search, and its ranks in the words of the tool that trains.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    command.add_argument("model", metavar="MODEL", help="a base model: folder or Hub id")
    command.add_argument("data", metavar="DATA", help="rows: messages, prompt and completion, text, or label (JSON "
                         "lines, CSV, parquet)")  # fmt: skip
    size = command.add_argument_group("how large")
    size.add_argument("--size", default="auto", help="auto, same (as --lora_r everywhere), lora:R, or parameters")
    size.add_argument("--tolerance", type=float, default=0.05, help="share of the held-out gain that may be lost")
    size.add_argument("--max_lora_rank", type=int, help="a cap on any module, for servers")
    lora = command.add_argument_group("LoRA, as TRL has it")
    lora.add_argument("--lora_r", type=int, default=8)
    lora.add_argument("--lora_alpha", type=int, default=16)
    lora.add_argument("--lora_target_modules", nargs="+", default=["all-linear"])
    search = command.add_argument_group("the search")
    search.add_argument("--eval_file", help="held-out rows; default: a fifth of DATA")
    search.add_argument("--search_steps", type=int, help="default: until it has settled, 112 at most")
    search.add_argument("--initial_rank", type=int, default=8, help="its width, the most that a module can get")
    search.add_argument("--learning_rate", type=float, default=1e-4, help="that of your training")
    search.add_argument("--batch_size", type=int, default=8)
    search.add_argument("--max_length", type=int, default=1024, help="tokens of a row")
    search.add_argument("--bf16", action="store_true", help="compute in bfloat16 autocast")
    search.add_argument("--seed", type=int, default=42)
    out = command.add_argument_group("what is written")
    out.add_argument("--format", default="trl", choices=FIND_FORMATS, help="for the tool that trains")
    out.add_argument("--pad", action="store_true", help="of adapter, llama-factory: one rank, filled up with zeros")
    out.add_argument("--output_dir", required=True, help="a new folder")


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
        elif options.command in ("find", "compress"):
            said = importlib.import_module(f"autolora_trainer.commands.{options.command}").run(options)
            if is_first_process():
                print(said)
        else:
            print(diff(LearnedRanks.from_pretrained(options.first), LearnedRanks.from_pretrained(options.second)))


def _export(options) -> str:
    if options.lora_alpha is not None and options.lora_alpha < 1:
        raise ValueError(f"lora_alpha must be at least 1, got {options.lora_alpha}. LoRA's usual is 16.")
    if (options.format in FOLDERS) != (options.output is not None):
        given = f"--format {options.format}" + (" and --output" if options.output else " without it")
        raise ValueError(f"--output DIR belongs to --format {', '.join(FOLDERS)}, got {given}.")
    writes_adapter = options.format in ("adapter", "llama-factory")
    if options.pad and not writes_adapter:
        raise ValueError(f"--pad belongs to --format adapter and llama-factory, got --format {options.format}.")
    if writes_adapter:
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
    sys.exit(run_guarded(main, "autolora"))


if __name__ == "__main__":
    entry_point()
