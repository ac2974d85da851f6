"""The Hub's client as this package calls it: every wait has an end, and a failure is one line without a token."""

import logging
import re
import threading
from collections.abc import Callable
from contextlib import contextmanager
from urllib.parse import urlsplit

import huggingface_hub
from huggingface_hub import constants, get_hf_file_metadata, hf_hub_download, hf_hub_url

from autolora_trainer.clean import CONTROL, usable_token, without_secrets
from autolora_trainer.compat import ByteStream, client_factory

SILENCE_SECONDS = 30.0  # how long the Hub may say nothing
DOWNLOAD_SECONDS = 120.0  # for a small file, altogether
PATIENCE_SECONDS = 300.0  # for all waits together that a server asks for
ENDLESS_BYTES = 500_000_000  # of an answer that does not say how long it is, as those of the Hub's text files
logger = logging.getLogger("autolora_trainer")


@contextmanager
def bounded_waits(endpoint: str | None = None, most_bytes: int | None = None):
    """Inside, no request waits longer than `SILENCE_SECONDS` for the next byte, an upload's neither: those have no
    time limit (huggingface_hub 2.4), and a Hub that accepts a connection and is silent would hold a run for ever. Nor
    is a wait taken on that a server asks for (`Retry-After`) once they are `PATIENCE_SECONDS` together, and the body
    of an answer has an end. And no token leaves for another host than the Hub's: the client sends it wherever the
    answer of an upload says that the upload is to be verified (2.4).

    Args:
        endpoint: of the Hub. Default: that of the client.
        most_bytes: of any answer. Default: `ENDLESS_BYTES` of one that does not say how long it is.
    """
    factory, left = client_factory(), PATIENCE_SECONDS
    home = urlsplit(endpoint or constants.ENDPOINT).netloc.rpartition("@")[2]

    def stay_at_home(request):
        host = request.url.netloc.decode("ascii", "ignore")
        if host != home and not host.endswith(f".{home}"):
            request.headers.pop("authorization", None)

    def bound(answer):
        nonlocal left
        asked, host = asked_wait(answer.headers) if answer.status_code >= 400 else 0, answer.url.host
        if asked > left:
            logger.warning(f"{host} asks to wait {asked:,} seconds; it is asked a few times more, and then given up")
            for name in WAIT_HEADERS:
                answer.headers.pop(name, None)
        else:
            left -= asked
        if most_bytes is not None or "content-length" not in answer.headers:
            answer.stream = _Ending(answer.stream, most_bytes or ENDLESS_BYTES, host)

    def bounded():
        client = factory()
        client.timeout = SILENCE_SECONDS
        hooks = client.event_hooks
        own = {"request": stay_at_home, "response": bound}
        client.event_hooks = {**hooks, **{name: [*hooks.get(name, ()), hook] for name, hook in own.items()}}
        return client

    huggingface_hub.set_client_factory(bounded)
    try:
        yield
    finally:
        huggingface_hub.set_client_factory(factory)


WAIT_HEADERS = ("retry-after", "ratelimit")  # that the client obeys, for whatever time


def asked_wait(headers) -> int:
    """Seconds that a server asks a client to wait; 0 where it does not.

    Example:
        >>> asked_wait({"retry-after": "86400"}), asked_wait({"ratelimit": '"api";r=0;t=55'}), asked_wait({})
        (86400, 55, 0)
    """
    after = headers.get("retry-after", "").strip()
    reset = re.search(r";\s*t\s*=\s*(\d+)", headers.get("ratelimit", ""))
    return max(int(after) if after.isdecimal() else 0, int(reset[1]) if reset else 0)


class _Ending(ByteStream):
    """The body of an answer, up to a length."""

    def __init__(self, stream, most: int, host: str):
        self._stream, self._most, self._host = stream, most, host

    def __iter__(self):
        read = 0
        for part in self._stream:
            read += len(part)
            if read > self._most:
                raise ValueError(
                    f"{self._host} sent more than {self._most:,} bytes, and did not say how many there are"
                )
            yield part

    def close(self):
        self._stream.close()


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

    with bounded_waits(most_bytes=max_bytes):
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
