"""The command `autolora`: what people do with a run's results.

autolora run glue --task_name mrpc …        the scripts, after a pip install
autolora show DIR|REPO                      rank grid, parameters, what a server needs, cost
autolora export DIR|REPO --format peft      the ranks for tools that take a rank pattern
autolora diff A B                           where two patterns differ
"""

import argparse
import importlib
import json
import os
import sys

import yaml
from peft import LoraConfig
from scipy.stats import spearmanr

from autolora_trainer import report
from autolora_trainer.errors import UsageError, run_guarded, usage_errors
from autolora_trainer.ranks import LearnedRanks
from autolora_trainer.version import __version__

SCRIPTS = {"glue": "run_glue", "nlg": "run_nlg", "ner": "run_ner"}
FORMATS = ("peft", "axolotl")


def show(source: str) -> str:
    """What there is to know of a finished run, as text.

    Args:
        source: an output directory, a `ranks.json`, or a Hub repository.
    """
    ranks = LearnedRanks.from_pretrained(source)
    lines = [f"ranks of {ranks.base_model or 'a model without a name'}", report.format_rank_table(ranks)]
    origin = f"rule {ranks.rank_rule}" if ranks.rank_rule else "no rule recorded"
    lines.append(f"{origin}, {ranks.initial_rank} components per module at the start")
    lines.append(f"a server needs --max-lora-rank {report.lora_rank_for_servers(ranks)}")
    results = _neighbour(source, "all_results.json")
    if results:
        scores = {k: v for k, v in results.items() if k.startswith(("eval_", "predict_")) and isinstance(v, float)}
        hidden = ("runtime", "per_second", "preparation_time")
        scores = {k: v for k, v in scores.items() if not any(part in k for part in hidden)}
        lines.append(f"{results['adapter_params']:,} adapter parameters, {results['head_params']:,} in the head")
        lines.append(", ".join(f"{name} = {value:.4f}" for name, value in scores.items()))
    cost = _neighbour(source, "cost.json")
    if cost:
        lines += ["", report.format_cost(cost)]
    return "\n".join(line for line in lines if line is not None)


def _neighbour(source: str, name: str) -> dict | None:
    """A JSON file beside the ranks of a folder, where there is one."""
    folder = source if os.path.isdir(source) else os.path.dirname(source)
    path = os.path.join(folder, name)
    if not os.path.isfile(path) or not os.path.exists(source):
        return None
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None


def export(ranks: LearnedRanks, form: str, lora_alpha: int = 16) -> str:
    """The ranks in the words of another tool.

    Args:
        ranks: of a search.
        form: `peft`: the JSON of a `LoraConfig`, for `LoraConfig(**json.load(file))`; `axolotl`: lines for its YAML
            (`lora_rank_pattern`, `lora_alpha_pattern`).
        lora_alpha: the scale of every update is lora_alpha / mean rank.
    Raises:
        ValueError: for ranks of parts of fused projections, which a pattern of whole modules cannot say.
    """
    parts = [name for name, rank in ranks.ranks.items() if "#" in name and rank]
    if parts:
        raise ValueError(
            f"{parts[0]!r} is a part of a fused module, and {form} takes whole modules: their sum would train more "
            "than was searched. Use the adapter itself, or --ranks of this package's scripts."
        )
    config = ranks.to_lora_config(LoraConfig(lora_alpha=lora_alpha))
    targets = sorted(config.target_modules)
    if form == "peft":
        settings = {"r": config.r, "lora_alpha": config.lora_alpha, "target_modules": targets}
        settings |= {"rank_pattern": config.rank_pattern, "alpha_pattern": config.alpha_pattern}
        return json.dumps(settings, indent=2)
    settings = {"adapter": "lora", "lora_r": config.r, "lora_alpha": config.lora_alpha, "lora_target_modules": targets}
    settings |= {"lora_rank_pattern": config.rank_pattern, "lora_alpha_pattern": config.alpha_pattern}
    return yaml.safe_dump(settings, sort_keys=False).rstrip()


def diff(first: LearnedRanks, second: LearnedRanks) -> str:
    """Where two patterns differ: a line a module, then how far they agree."""
    names = list(dict.fromkeys([*first.modules, *second.modules]))
    a, b = ([ranks.ranks.get(name) for name in names] for ranks in (first, second))
    rows = [[name, _rank(x), _rank(y), _change(x, y)] for name, x, y in zip(names, a, b) if x != y]
    shared = [(x, y) for x, y in zip(a, b) if x is not None and y is not None]
    lines = [report.format_table(["module", "first", "second", "change"], rows)] if rows else []
    lines.append(f"{len(rows)} of {len(names)} modules differ; total rank {first.total_rank} and {second.total_rank}")
    xs, ys = zip(*shared) if shared else ((), ())
    if len(set(xs)) > 1 and len(set(ys)) > 1:
        lines.append(f"Spearman correlation over {len(shared)} shared modules: {spearmanr(xs, ys).statistic:.2f}")
    return "\n".join(lines)


def _rank(rank: int | None) -> str:
    return "-" if rank is None else str(rank)


def _change(first: int | None, second: int | None) -> str:
    return "-" if first is None or second is None else f"{second - first:+d}"


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
    for name, text in (("show", "rank grid, parameters, cost"), ("export", "the ranks for another tool")):
        command = commands.add_parser(name, help=text)
        command.add_argument("source", metavar="DIR|REPO", help="an output directory, a ranks.json or a repository")
        if name == "export":
            command.add_argument("--format", default="peft", choices=FORMATS)
            command.add_argument("--lora_alpha", type=int, default=16, help="as in the search")
    compare = commands.add_parser("diff", help="where two patterns differ")
    compare.add_argument("first", metavar="A")
    compare.add_argument("second", metavar="B")
    return parser


def main(argv: list[str] | None = None) -> None:
    """Run one command.

    Raises:
        UsageError: one line, for what was given.
    """
    options = _parser().parse_args(argv)
    if options.command == "run":
        importlib.import_module(SCRIPTS[options.script]).main(options.arguments)
        return
    with usage_errors():
        if options.command == "show":
            print(show(options.source))
        elif options.command == "export":
            print(export(LearnedRanks.from_pretrained(options.source), options.format, options.lora_alpha))
        else:
            print(diff(LearnedRanks.from_pretrained(options.first), LearnedRanks.from_pretrained(options.second)))


def entry_point() -> None:
    """`autolora`, as pip installs it."""
    sys.exit(run_guarded(main, "autolora"))


if __name__ == "__main__":
    entry_point()
