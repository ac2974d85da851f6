"""The Hub's client as this package calls it: every wait has an end, and a failure is one line without a token."""

import threading
from collections.abc import Callable
from contextlib import contextmanager
from urllib.parse import urlsplit

import huggingface_hub
from huggingface_hub import constants, get_hf_file_metadata, hf_hub_download, hf_hub_url

from autolora_trainer.clean import CONTROL, usable_token, without_secrets
from autolora_trainer.compat import client_factory

SILENCE_SECONDS = 30.0  # how long the Hub may say nothing
DOWNLOAD_SECONDS = 120.0  # for a small file, altogether


@contextmanager
def bounded_waits(endpoint: str | None = None):
    """Inside, no request waits longer than `SILENCE_SECONDS` for the next byte, an upload's neither: those have no
    time limit (huggingface_hub 2.4), and a Hub that accepts a connection and is silent would hold a run for ever.
    And no token leaves for another host than the Hub's: the client sends it wherever the answer of an upload says that
    the upload is to be verified (2.4)."""
    factory, home = client_factory(), urlsplit(endpoint or constants.ENDPOINT).netloc.rpartition("@")[2]

    def stay_at_home(request):
        host = request.url.netloc.decode("ascii", "ignore")
        if host != home and not host.endswith(f".{home}"):
            request.headers.pop("authorization", None)

    def bounded():
        client = factory()
        client.timeout = SILENCE_SECONDS
        hooks = client.event_hooks
        client.event_hooks = {**hooks, "request": [*hooks.get("request", ()), stay_at_home]}
        return client

    huggingface_hub.set_client_factory(bounded)
    try:
        yield
    finally:
        huggingface_hub.set_client_factory(factory)


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
    """The path in the cache of a small file of a repository; where the Hub does not answer, of the copy there.

    Args:
        max_bytes: a larger file is refused before anything of it is read.
    Raises:
        TimeoutError, OSError, ValueError or an HTTP error: the first thing that went wrong.
    """

    token = usable_token(token)

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
    text = str(root)[:10_000]
    if isinstance(token, str) and token.strip():
        text = text.replace(token.strip(), "***")
    text = without_secrets(text)
    return (" ".join(CONTROL.sub(" ", text).split()) or type(root).__name__)[:300].rstrip(".")


HUB_TIMEOUT = 10.0  # seconds in which the hub must answer at all; a download may then take as long as it takes


def hub_answers() -> bool:
    """Whether the hub answers one request (any status) in time."""

    def ask():
        from huggingface_hub import get_session  # its session knows the user's proxies and certificates

        get_session().head(constants.ENDPOINT, timeout=HUB_TIMEOUT)

    try:
        within(HUB_TIMEOUT + 2.0, ask)
    except Exception:  # offline mode, no route, no such host, refused, timed out
        return False
    return True
