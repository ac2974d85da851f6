"""The words of the command `autolora`: its verbs, their arguments, and two examples of each."""

import argparse
import sys

from autolora_trainer.commands.export import FOLDERS, FORMATS
from autolora_trainer.errors import UsageError
from autolora_trainer.usage import Helpful
from autolora_trainer.values import no_argument
from autolora_trainer.version import __version__

VERBS = {  # what each is for, and two examples
    "demo": ("ranks found, trained beside uniform LoRA, and compressed: a minute or two on a CPU, no network",
             ("demo", "demo --steps 20 --search_steps 20 --output_dir outputs/short")),
    "find": ("which modules, which ranks and how large, before a training",
             ("find Qwen/Qwen3-0.6B chats.jsonl --format trl --output_dir found",
              "find Qwen/Qwen3-8B chats.jsonl --load_in_4bit --bf16 --output_dir found")),
    "compress": ("any LoRA adapter, as small as held-out rows let it be",
                 ("compress my-adapter --eval_file dev.jsonl --output_dir small",
                  "compress my-adapter --rank 8 --output_dir small  # without rows: by singular values")),
    "show": ("rank grid, parameters, MB, and what a server needs, of any LoRA adapter; no model is loaded",
             ("show my-adapter", "show owner/an-adapter-on-the-hub")),
    "diff": ("where two patterns differ", ("diff found small", "diff my-adapter owner/an-adapter-on-the-hub")),
    "export": ("the ranks in the words of another tool, or a trainable adapter for it",
               ("export my-adapter --format axolotl",
                "export my-adapter --format adapter --pad --output start  # one rank, filled up with zeros")),
    "run": ("the scripts run_glue, run_nlg and run_ner with their own arguments, after a pip install",
            ("run glue --task_name mrpc", "run nlg --help")),
}  # fmt: skip
PAD = "of adapter, llama-factory: one rank, filled up with zeros"
FIND_FORMATS = tuple(form for form in FORMATS if form != "method_comparison")


class OneLine(Helpful):
    """Whose complaints are one line, and repeat no value of what it does not know.

    Attributes:
        names: of the arguments of every verb; of the parser of all verbs.
    """

    names: dict[str, list[str]] = {}

    def parse_args(self, args=None, namespace=None):
        words = sys.argv[1:] if args is None else list(args)
        if words and words[0].startswith("-") and words[0] not in ("-h", "--help", "--version"):
            raise UsageError(no_argument(words[:1], words, (), self.prog))  # or its value would be called a verb
        options, unknown = self.parse_known_args(words, namespace)
        if unknown:
            program = f"{self.prog} {options.command}"
            raise UsageError(no_argument(unknown, words, self.names[options.command], program))
        return options

    def error(self, message):
        what = "arguments" if " " in self.prog else "commands"
        raise UsageError(f"{message}; {self.prog} --help lists the {what}")


def parser() -> argparse.ArgumentParser:
    """Of all verbs."""
    lines = [(f"\n{name}: {what}", *(f"  autolora {line}" for line in lines)) for name, (what, lines) in VERBS.items()]
    description = "\n".join(["Ranks of LoRA, found, shown and handed on.", *sum(lines, ())])
    made = OneLine(prog="autolora", description=description, add_help=False, allow_abbrev=False)
    about = "one of these; autolora VERB --help has its arguments"
    verbs = made.add_subparsers(
        dest="command", required=True, metavar="VERB", parser_class=OneLine, title="verbs", help=about
    )
    more = _more(made)
    more.add_argument("--version", action="version", version=__version__, help="the version")
    for name, (what, lines) in VERBS.items():
        own = verbs.add_parser(name, description=what[0].upper() + what[1:] + ".", add_help=False, allow_abbrev=False)
        own.examples = tuple(f"autolora {line}" for line in lines)
        ARGUMENTS[name](own)
        _more(own)
        made.names = {**made.names, name: [action.dest for action in own._actions]}
    return made


def _more(command):
    more = command.add_argument_group("more")
    more.add_argument("-h", "--help", action="help", help="this text")
    return more


def _demo(command) -> None:
    group = command.add_argument_group("how much, and where")
    group.add_argument("--lines", type=int, default=1600, help="that are trained on; a built-in grammar writes them")
    group.add_argument("--steps", type=int, default=100, help="of each training, 16 lines each")
    group.add_argument("--search_steps", type=int, help="default: until the search has settled, 112 at most")
    group.add_argument("--seed", type=int, default=42)
    group.add_argument("--output_dir", metavar="DIR", default="outputs/demo", help="default: outputs/demo")
    group.add_argument("--overwrite", action="store_true", help="replace an earlier demo there")


def _find(command) -> None:
    given = command.add_argument_group("what is given")
    given.add_argument("model", metavar="MODEL", help="a base model: folder or Hub id")
    rows = "rows: messages, prompt and completion, text, or label (JSON lines, CSV, parquet)"
    given.add_argument("data", metavar="DATA", help=rows)
    size = command.add_argument_group("how large")
    size.add_argument("--size", default="auto", help="auto, same (as --lora_r everywhere), lora:R, or parameters")
    size.add_argument("--tolerance", type=float, default=0.06, help="share of the held-out gain that may be lost")
    size.add_argument("--max_lora_rank", type=int, help="a cap on any module, for servers")
    lora = command.add_argument_group("LoRA, as TRL has it")
    lora.add_argument("--lora_r", type=int, default=8, help="the rank of size same, and a width for the search")
    lora.add_argument("--lora_alpha", type=int, default=16, help="over the mean rank it is the scale of all modules")
    lora.add_argument("--lora_target_modules", nargs="+", default=["all-linear"], help="modules that may get a rank")
    search = command.add_argument_group("the search")
    search.add_argument("--eval_file", help="held-out rows; default: a fifth of DATA")
    search.add_argument("--search_steps", type=int, help="default: until it has settled, 112 at most")
    width = "its width, the most that a module can get; default: --lora_r, twice R for size lora:R, 8 at least"
    search.add_argument("--initial_rank", type=int, help=width)
    search.add_argument("--learning_rate", type=float, default=1e-4, help="that of your training")
    search.add_argument("--gradient_accumulation_steps", type=int, default=1, help="batches of a step")
    search.add_argument("--seed", type=int, default=42, help="the same one gives the same ranks")
    search.add_argument("--resume_from_checkpoint", action="store_true", help="go on with what was interrupted")
    _rows_and_model(command)
    out = command.add_argument_group("what is written")
    out.add_argument("--format", default="trl", choices=FIND_FORMATS, help="for the tool that trains")
    out.add_argument("--pad", action="store_true", help=PAD)
    out.add_argument("--output_dir", required=True, help="a new folder")
    _hub(out, "the adapter of --format adapter or llama-factory")


def _compress(command) -> None:
    given = command.add_argument_group("what is given")
    given.add_argument("adapter", metavar="ADAPTER", help="a folder or Hub id of a LoRA adapter, whoever trained it")
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
    _rows_and_model(command).add_argument("--base_model", help="default: the one that the adapter names")
    out = command.add_argument_group("what is written")
    out.add_argument("--output_dir", required=True, help="a new folder for the small adapter")
    _hub(out, "it")


def _rows_and_model(command):
    more = command.add_argument_group("model and rows")
    more.add_argument("--batch_size", type=int, default=8, help="rows of a pass")
    more.add_argument("--max_length", type=int, default=1024, help="tokens of a row")
    more.add_argument("--bf16", action="store_true", help="compute in bfloat16 autocast")
    more.add_argument("--gradient_checkpointing", action="store_true", help="less memory, slower; the same numbers")
    more.add_argument(
        "--load_in_4bit", action="store_true", help="hold the base in 4 bit, NF4 (bitsandbytes); with --bf16"
    )
    more.add_argument("--device_map", help="as of transformers' from_pretrained, e.g. auto: over several devices")
    return more


def _hub(out, what: str) -> None:
    out.add_argument("--push_to_hub", action="store_true", help=f"upload {what}, with a card")
    out.add_argument("--hub_model_id", help="owner/name; default: the name of --output_dir")
    out.add_argument("--hub_token", help="default: that of `hf auth login`")
    out.add_argument("--hub_private_repo", action="store_true", help="make the repository a private one")


def _show(command) -> None:
    what = "a LoRA adapter or an output directory, here or on the Hub, or a ranks.json"
    command.add_argument_group("what is given").add_argument("source", metavar="ADAPTER", help=what)


def _export(command) -> None:
    _show(command)
    tool = command.add_argument_group("for which tool")
    tool.add_argument("--format", default="peft", choices=FORMATS, help="what it reads")
    tool.add_argument("--lora_alpha", type=int, help="default: that of the run, else 16")
    tool.add_argument("--pad", action="store_true", help=PAD)
    out = command.add_argument_group("what is written")
    out.add_argument("--output", metavar="DIR", help=f"of {', '.join(FOLDERS)}: the folder to write")


def _diff(command) -> None:
    given = command.add_argument_group("what is given")
    given.add_argument("first", metavar="A", help="as for autolora show")
    given.add_argument("second", metavar="B", help="likewise")


def _run(command) -> None:
    given = command.add_argument_group("what is given")
    given.add_argument("script", choices=("glue", "nlg", "ner"), help="sequences, generated texts, or named entities")
    given.add_argument(
        "arguments", nargs=argparse.REMAINDER, help="its arguments; autolora run glue --help lists them"
    )


ARGUMENTS = {
    "demo": _demo,
    "find": _find,
    "compress": _compress,
    "show": _show,
    "diff": _diff,
    "export": _export,
    "run": _run,
}
