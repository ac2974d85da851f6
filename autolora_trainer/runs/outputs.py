"""Every file that a run may write into its folder: which a new run clears away, and which are pushed to the Hub."""

import re

from autolora_trainer.files import TEMPORARY
from autolora_trainer.ranks.curve import CURVE_FILE
from autolora_trainer.ranks.learned import RANKS_FILE
from autolora_trainer.report.curve import CURVE_FILES
from autolora_trainer.report.heatmap import HEATMAP_FILES
from autolora_trainer.report.page import PAGE_FILE
from autolora_trainer.tasks.glue import GLUE_TASKS
from autolora_trainer.tasks.ner import LABELS_FILE
from autolora_trainer.tasks.ner import TASKS as NER_TASKS
from autolora_trainer.tasks.nlg import NLG_TASKS

RUN_FILE = "run.json"  # written first: it marks a folder as ours, and only our own files are ever cleared
RESULTS_FILE = "all_results.json"  # written last: it marks a run as finished
TRIAL_FILE = "result.json"  # of a finished trial of a grid, in a folder of its own
RECORD_FILE = "written.json"  # names and hashes of what the run wrote; see runs.record
COST_FILE = "cost.json"
SEARCH_FOLDER = "search"  # the search's own files
HANDOVER_FILE = "kept_components.safetensors"  # in it: what the retrain begins with
TASK_NAMES = (*GLUE_TASKS, "mnli-mm", *NER_TASKS, *NLG_TASKS)

# cleared and pushed
RESULT_FILES = f"""
    adapter_config.json adapter_model.safetensors bottleneck_adapter.json bottleneck_adapter.safetensors
    config.json generation_config.json model.safetensors model.safetensors.index.json
    {RANKS_FILE} {LABELS_FILE} {" ".join(HEATMAP_FILES)} {CURVE_FILE} {" ".join(CURVE_FILES)} README.md
    {RESULTS_FILE} {COST_FILE}
""".split()
# cleared, and of use on this machine alone
LOCAL_FILES = f"""
    {RECORD_FILE} {PAGE_FILE} train_results.json eval_results.json predict_results.json trainer_state.json
    training_args.bin predictions_validation.jsonl predictions_test.jsonl
    {" ".join(f"predict_results_{name}.txt" for name in TASK_NAMES)}
""".split()
# pushed, and written over: a folder of another's may hold them, so they are never cleared
TOKENIZER_FILES = """
    tokenizer.json tokenizer_config.json special_tokens_map.json added_tokens.json vocab.json vocab.txt merges.txt
    spiece.model spm.model sentencepiece.bpe.model tokenizer.model chat_template.jinja
""".split()
# Whole names: the Hub's patterns let `*` match `/` too, and checkpoints hold files of the same names in folders below.
PUSHED_FILES = (*RESULT_FILES, "model-?????-of-?????.safetensors", *TOKENIZER_FILES)


def is_output(name: str, own: frozenset[str] = frozenset()) -> bool:
    """Whether a run writes a file or folder of this name, and a new run clears it away.

    Args:
        name: in an output folder.
        own: what methods add to those of every run, e.g. `search`; see `Method.outputs`.
    Example:
        >>> is_output("checkpoint-8"), is_output("search"), is_output("search", frozenset({"search"}))
        (True, False, True)
    """
    if match := TEMPORARY.fullmatch(name):
        name = match[1]
    prefix, _, number = name.partition("-")
    return (
        name in (*RESULT_FILES, *LOCAL_FILES, *own)
        or re.fullmatch(r"model-\d+-of-\d+\.safetensors", name) is not None
        or (prefix == "checkpoint" and number.isdigit())
    )
