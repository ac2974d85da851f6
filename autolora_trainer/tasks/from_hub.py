"""Rows from a data set of the Hugging Face Hub: bounded waits, one line for what goes wrong."""

import datasets
from datasets import DatasetDict, load_dataset

from autolora_trainer.hub_client import hub_answers
from autolora_trainer.tasks.files import DataError


def load_from_hub(hub_id: str, config: str | None, splits, *, cache_dir=None, token=None, **arguments) -> DatasetDict:
    """Load a data set of the hub, or its copy in the cache.

    Args:
        hub_id, config: e.g. "nyu-mll/glue", "mrpc"; "parquet" and its like with `data_files=` for raw files.
        splits: pairs (our name, the hub's name); those that the hub does not have are left out.
        cache_dir, token: as in `datasets.load_dataset`.
        **arguments: of `datasets.load_dataset`, e.g. `revision` or `data_files`.
    Raises:
        DataError: If the hub cannot be reached and the data is not in its cache, or loading fails.
    """
    source = f"{hub_id} ({config})" if config else hub_id
    advice = (
        "Give local files with --train_file and --validation_file, or connect to the network once so that the data is "
        "cached."
    )
    offline = datasets.config.HF_HUB_OFFLINE
    reachable = not offline and hub_answers()
    try:
        # load_dataset asks a silent hub six times, with ever longer pauses; offline it goes to its cache at once.
        datasets.config.HF_HUB_OFFLINE = not reachable
        loaded = load_dataset(hub_id, config, cache_dir=cache_dir, token=token, **arguments)
    except Exception as error:  # no connection, a full disk, a broken download: many libraries, many classes
        if not reachable or isinstance(error, (ConnectionError, FileNotFoundError)):
            raise DataError(f"Could not reach the Hugging Face Hub for the data set {source}. {advice}") from error
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise DataError(f"Could not load the data set {source} from the hub: {reason}. {advice}") from error
    finally:
        datasets.config.HF_HUB_OFFLINE = offline
    return DatasetDict({ours: loaded[theirs] for ours, theirs in splits if theirs in loaded})
