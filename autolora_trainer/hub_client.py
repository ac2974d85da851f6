"""The Hub's client as this package calls it: every wait has an end, and a failure is one line without a token."""

import functools
import re
import threading
from collections.abc import Callable
from contextlib import contextmanager

import huggingface_hub
from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
from huggingface_hub.utils import _http
from peft import PeftModel

from autolora_trainer.errors import without_secrets

SILENCE_SECONDS = 30.0  # how long the Hub may say nothing
DOWNLOAD_SECONDS = 120.0  # for a small file, altogether


@contextmanager
def bounded_waits():
    """Inside, no request waits longer than `SILENCE_SECONDS` for the next byte, an upload's neither: those have no
    time limit (huggingface_hub 2.4), and a Hub that accepts a connection and is silent would hold a run for ever."""
    factory = _http._GLOBAL_CLIENT_FACTORY  # there is a public way to set it, none to read it; it may be the user's

    def bounded():
        client = factory()
        client.timeout = SILENCE_SECONDS
        return client

    huggingface_hub.set_client_factory(bounded)
    try:
        yield
    finally:
        huggingface_hub.set_client_factory(factory)


def save_without_asking(model) -> None:
    """Let a PEFT model save itself without a request to the Hub.

    PEFT asks at every save, checkpoints included, whether the base model's vocabulary has grown since (0.21), and a
    Hub that is silent then holds up each of them. For models whose vocabulary stays as it is, as the scripts' do.
    """
    if isinstance(model, PeftModel):
        model.save_pretrained = functools.partial(model.save_pretrained, save_embedding_layers=False)


def within(seconds: float, call: Callable, *arguments, **keywords):
    """The result of a call, or a `TimeoutError` after so many seconds; the call then goes on unheard.

    A thread, because the look-up of a host name has no time limit of its own, nor has a download that is cut off and
    begun anew.
    """
    done = {}

    def run():
        try:
            done["result"] = call(*arguments, **keywords)
        except BaseException as error:  # raised again by the thread that waits
            done["error"] = error

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if not done:
        raise TimeoutError(f"no whole answer within {seconds:g} seconds")
    if "error" in done:
        raise done["error"]
    return done["result"]


def download(repo_id: str, filename: str, max_bytes: int, revision: str | None = None, token: str | None = None):
    """A small file of a repository, or its copy in the cache where the Hub does not answer.

    Args:
        max_bytes: a larger file is refused before anything of it is read.
    Returns:
        Its path in the cache.
    Raises:
        TimeoutError, OSError, ValueError or an HTTP error: the first thing that went wrong.
    """

    def fetch():
        url = hf_hub_url(repo_id, filename, revision=revision)
        try:
            size = get_hf_file_metadata(url, token=token, timeout=SILENCE_SECONDS).size
        except Exception:
            # once more from the cache alone: with the network, the client would ask a silent Hub for minutes
            cached = huggingface_hub.try_to_load_from_cache(repo_id, filename, revision=revision)
            if isinstance(cached, str):
                return cached
            raise
        if size is not None and size > max_bytes:
            raise ValueError(f"its {filename} has {size:,} bytes; at most {max_bytes:,} are read")
        return hf_hub_download(repo_id, filename, revision=revision, token=token)

    return within(DOWNLOAD_SECONDS, fetch)


def root_cause(error: BaseException) -> BaseException:
    """The answer of the Hub or the failure of the connection that an error came from: "Error while uploading x to the
    Hub." says less."""
    while getattr(error, "response", None) is None and error.__cause__ is not None:
        error = error.__cause__
    return error


def reason(error: BaseException, token: str | None = None) -> str:
    """What went wrong, on one line of at most 300 characters, with every token left out."""
    root = root_cause(error)
    text = " ".join(re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]", " ", str(root)).split()) or type(root).__name__
    return without_secrets(text.replace(token, "***") if token else text)[:300].rstrip(".")
