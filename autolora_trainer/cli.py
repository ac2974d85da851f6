"""The command `autolora`: what people do with a run's results.

autolora run glue --task_name mrpc …        the scripts, after a pip install
autolora show DIR|REPO                      rank grid, parameters, what a server needs, cost
autolora export DIR|REPO --format peft      the ranks for tools that take a rank pattern: peft, axolotl, and
                                            method_comparison, an experiment folder of PEFT's benchmark
autolora diff A B                           where two patterns differ
"""

import argparse
import importlib
import json
import os
import sys
from contextlib import suppress

import yaml
from peft import LoraConfig
from scipy.stats import spearmanr

from autolora_trainer import report
from autolora_trainer.checks import RUN_FILE
from autolora_trainer.errors import UsageError, run_guarded, usage_errors
from autolora_trainer.ranks import LearnedRanks
from autolora_trainer.script_arguments import hide_secrets
from autolora_trainer.version import __version__

SCRIPTS = {"glue": "run_glue", "nlg": "run_nlg", "ner": "run_ner"}
FORMATS = ("peft", "axolotl", "method_comparison")


def show(source: str) -> str:
    """What there is to know of a finished run, as text.

    Args:
        source: an output directory, a `ranks.json`, or a Hub repository.
    """
    ranks = LearnedRanks.from_pretrained(source)
    lines = [f"ranks of {ranks.base_model or 'a model without a name'}", report.format_rank_table(ranks)]
    origin = f"rule {ranks.rank_rule}" if ranks.rank_rule else "no rule recorded"
    lines.append(f"{origin}, {ranks.initial_rank} components per module at the start")
    with suppress(ValueError):  # a rank that vLLM cannot serve
        lines.append(f"a server needs --max-lora-rank {report.lora_rank_for_servers(ranks)}")
    results = _neighbour(source, "all_results.json")
    if results:
        scores = {k: v for k, v in results.items() if k.startswith(("eval_", "predict_")) and isinstance(v, float)}
        hidden = ("runtime", "per_second", "preparation_time")
        scores = {k: v for k, v in scores.items() if not any(part in k for part in hidden)}
        sizes = [results.get(name) for name in ("adapter_params", "head_params")]
        if all(type(size) is int for size in sizes):
            lines.append("{:,} adapter parameters, {:,} in the head".format(*sizes))
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
            content = json.load(file)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}. Remove it, and the ranks are shown without it.") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a JSON object, got {content!r:.80}. Remove it, or run again.")
    return content


def export(ranks: LearnedRanks, form: str, **lora) -> str:
    """The ranks in the words of another tool.

    Args:
        ranks: of a search.
        form: `peft`: the JSON of a `LoraConfig`, for `LoraConfig(**json.load(file))`; `axolotl`: lines for its YAML
            (`lora_rank_pattern`, `lora_alpha_pattern`).
        lora: `lora_alpha`, `use_rslora`, `scaling`, as of `LearnedRanks.to_lora_config`. By default the scale of every
            update is 16 / mean rank.
    Raises:
        ValueError: for ranks of parts of fused projections, which a pattern of whole modules cannot say.
    """
    config = _pattern(ranks, form, lora)
    targets = sorted(config.target_modules)
    if form == "peft":
        settings = {"r": config.r, "lora_alpha": config.lora_alpha, "target_modules": targets}
        settings |= {"rank_pattern": config.rank_pattern, "alpha_pattern": config.alpha_pattern}
        settings |= {"use_rslora": True} if config.use_rslora else {}
        return json.dumps(settings, indent=2)
    settings = {"adapter": "lora", "lora_r": config.r, "lora_alpha": config.lora_alpha, "lora_target_modules": targets}
    settings |= {"lora_rank_pattern": config.rank_pattern, "lora_alpha_pattern": config.alpha_pattern}
    settings |= {"peft_use_rslora": True} if config.use_rslora else {}
    return yaml.safe_dump(settings, sort_keys=False).rstrip()


def export_experiment(ranks: LearnedRanks, output: str, **lora) -> str:
    """An experiment folder of PEFT's `method_comparison/MetaMathQA`: `adapter_config.json` with the learned pattern,
    and `training_params.json` with what differs from the benchmark's own defaults, which is the model.

    Args:
        ranks: of a search on a causal language model.
        output: the folder; the benchmark reads `experiments/lora/NAME`.
        lora: as in `export`.
    Returns:
        What was written, in one line.
    Raises:
        ValueError: as `export`, and if the folder holds something already.
    """
    config = _pattern(ranks, "method_comparison", lora)
    config.task_type = "CAUSAL_LM"
    if os.path.isdir(output) and os.listdir(output):
        raise ValueError(f"--output {output} is not empty. Give a new folder.")
    config.save_pretrained(output)
    parameters = {"model_id": ranks.base_model} if ranks.base_model else {}
    with open(os.path.join(output, "training_params.json"), "w", encoding="utf-8") as file:
        file.write(json.dumps(parameters, indent=2) + "\n")
    return f"adapter_config.json and training_params.json in {output}"


def _pattern(ranks: LearnedRanks, form: str, lora: dict) -> LoraConfig:
    parts = [name for name, rank in ranks.ranks.items() if "#" in name and rank]
    if parts:
        raise ValueError(
            f"{parts[0]!r} is a part of a fused module, and {form} takes whole modules: their sum would train more "
            "than was searched. Use the adapter itself, or --ranks of this package's scripts."
        )
    return ranks.to_lora_config(**lora)


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
            command.add_argument("--lora_alpha", type=int, help="default: that of the run, else 16")
            command.add_argument("--output", metavar="DIR", help="of method_comparison: the folder to write")
    compare = commands.add_parser("diff", help="where two patterns differ")
    compare.add_argument("first", metavar="A")
    compare.add_argument("second", metavar="B")
    return parser


def main(argv: list[str] | None = None) -> None:
    """Run one command.

    Raises:
        UsageError: one line, for what was given.
    """
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
        else:
            print(diff(LearnedRanks.from_pretrained(options.first), LearnedRanks.from_pretrained(options.second)))


def _export(options) -> str:
    if options.lora_alpha is not None and options.lora_alpha < 1:
        raise ValueError(f"lora_alpha must be at least 1, got {options.lora_alpha}. LoRA's usual is 16.")
    if (options.format == "method_comparison") != (options.output is not None):
        given = f"--format {options.format}" + (" and --output" if options.output else " without it")
        raise ValueError(f"--output DIR belongs to --format method_comparison, got {given}.")
    ranks = LearnedRanks.from_pretrained(options.source)
    lora = _scale_of(options.source)
    if options.lora_alpha is not None:
        lora["lora_alpha"] = options.lora_alpha
    if options.output is None:
        return export(ranks, options.format, **lora)
    return export_experiment(ranks, options.output, **lora)


def _scale_of(source: str) -> dict:
    """What decides the scale of the updates, as far as a run says beside its ranks."""
    settings = (_neighbour(source, RUN_FILE) or {}).get("settings")
    known = {"lora_alpha": int, "use_rslora": bool, "scaling": str}
    settings = settings if isinstance(settings, dict) else {}
    return {name: settings[name] for name, kind in known.items() if isinstance(settings.get(name), kind)}


def entry_point() -> None:
    """`autolora`, as pip installs it."""
    sys.exit(run_guarded(main, "autolora"))


if __name__ == "__main__":
    entry_point()
