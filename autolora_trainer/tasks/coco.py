"""Metrics of pycocoevalcap, some of which are Java programs: METEOR, ROUGE-L, CIDEr, and the PTB tokenizer."""

import importlib
import re
import shutil
import subprocess
import tempfile
import threading
from contextlib import contextmanager, suppress
from pathlib import Path

NUMBERS = re.compile(r"[-.\dE]+( [-.\dE]+)*")  # as Java writes them
INSTALL = 'pip install ".[nlg]"'
JAVA_TIMEOUT = 300.0  # seconds without an answer; METEOR's start takes 8 s of CPU, 100 s on a busy machine


class Unavailable(RuntimeError):
    """Why a metric that needs Java cannot be computed, and what to do."""


def _coco(name: str):
    # Never `pycocoevalcap.eval`: it imports SPICE.
    try:
        return importlib.import_module(f"pycocoevalcap.{name}")
    except ImportError as error:
        raise Unavailable(f"pycocoevalcap is not installed. {INSTALL}") from error


def _java() -> str:
    java = shutil.which("java")
    if java is None:
        raise Unavailable("there is no `java` on PATH. Install one, e.g. apt-get install default-jre-headless")
    return java


def ptb_tokens(predictions, references):
    """Tokenize as COCO's scripts do: Penn Treebank tokens in lower case, then without punctuation.

    It is pycocoevalcap's jar and list of punctuation, but not its wrapper: that one writes into the installed package
    and waits for ever.
    """
    module = _coco("tokenizer.ptbtokenizer")
    texts = [*predictions, *(reference for row in references for reference in row)]
    given = "".join(text + "\n" for text in texts).encode("utf-8", "replace")
    command = [_java(), "-cp", module.STANFORD_CORENLP_3_4_1_JAR, "edu.stanford.nlp.process.PTBTokenizer"]
    command += ["-preserveLines", "-lowerCase"]
    try:
        folder = Path(module.__file__).parent
        done = subprocess.run(command, cwd=folder, input=given, capture_output=True, timeout=JAVA_TIMEOUT)
    except subprocess.TimeoutExpired:
        raise Unavailable(f"the PTB tokenizer gave no answer in {JAVA_TIMEOUT:g} s. Is the machine busy?") from None
    except OSError as error:
        raise Unavailable(f"java cannot be started: {error}") from error
    lines = done.stdout.decode("utf-8", "replace").split("\n")[:-1]
    if done.returncode or len(lines) != len(texts):
        raise Unavailable(f"the PTB tokenizer failed{_reason(done.stderr)}. Does `java -version` work?")
    tokenized = iter(" ".join(w for w in line.rstrip().split(" ") if w not in module.PUNCTUATIONS) for line in lines)
    return [next(tokenized) for _ in predictions], [[next(tokenized) for _ in row] for row in references]


def rouge_l(predictions, references) -> float:
    return 100 * _coco("rouge.rouge").Rouge().compute_score(*_coco_form(predictions, references))[0]


def cider(predictions, references) -> float:
    # Its idf is log(rows / rows with the n-gram in a reference): one row has no information, and so scores 0.
    if not any(reference for row in references for reference in row):  # only punctuation; the library would fail
        return 0.0
    return _coco("cider.cider").Cider().compute_score(*_coco_form(predictions, references))[0]


def _coco_form(predictions, references):
    return dict(enumerate(references)), {row: [prediction] for row, prediction in enumerate(predictions)}


def meteor(predictions, references, groups) -> dict[str, float]:
    """METEOR in points for every group, from one process: its start is what takes time."""
    with meteor_process() as ask:
        statistics = []
        for prediction, row in zip(predictions, references):
            fields = [text.replace("|||", "") for text in (*row, prediction)]
            statistics += ask(" ||| ".join(["SCORE", *fields]), answers=1)
        scores = {}
        for suffix, rows in groups.items():  # the answer: the score of each row, then that of their sum
            line = " ||| ".join(["EVAL", *(statistics[row] for row in rows)])
            scores[suffix] = 100 * float(ask(line, answers=len(rows) + 1)[-1])
    return scores


@contextmanager
def meteor_process():
    """Start METEOR 1.5 and give a function that puts a line to it and returns its answers; it is gone afterwards.

    pycocoevalcap's own wrapper would wait for ever for a process that hangs, and leaves it behind after an exception.
    """
    module = _coco("meteor.meteor")
    command = [_java(), "-Xmx2G", "-XX:+UseSerialGC"]  # 0.6 GB; with the default collector 1.3 GB
    command += ["-jar", module.METEOR_JAR, "-", "-", "-stdio", "-l", "en", "-norm"]
    command += ["-a", "data/paraphrase-en.gz"]  # its default; but it does not find it where the path has a blank or é
    folder, pipe = Path(module.__file__).parent, subprocess.PIPE
    with tempfile.TemporaryFile() as errors:  # a pipe that nobody reads would block it once full
        try:
            process = subprocess.Popen(command, cwd=folder, stdin=pipe, stdout=pipe, stderr=errors)
        except OSError as error:
            raise Unavailable(f"java cannot be started: {error}") from error

        def ask(line: str, answers: int) -> list[str]:
            hung = threading.Event()
            watchdog = threading.Timer(JAVA_TIMEOUT, lambda: (hung.set(), process.kill()))
            watchdog.start()
            try:
                process.stdin.write(line.encode("utf-8", "replace") + b"\n")
                process.stdin.flush()
                lines = [process.stdout.readline().decode().strip() for _ in range(answers)]
            except OSError:  # it ended before it read the line
                lines = [""]
            finally:
                watchdog.cancel()
            if not all(map(NUMBERS.fullmatch, lines)):  # nothing, an error's text, or NaN
                if hung.is_set():
                    raise Unavailable(f"METEOR gave no answer in {JAVA_TIMEOUT:g} s. Is the machine busy?")
                errors.seek(0)
                raise Unavailable(f"METEOR failed{_reason(errors.read())}. Does `java -version` work?")
            return lines

        try:
            yield ask
        finally:
            process.kill()
            process.wait()
            process.stdout.close()
            with suppress(OSError):  # what was not yet written has no reader any more
                process.stdin.close()


def _reason(errors: bytes) -> str:
    lines = map(str.strip, errors.decode("utf-8", "replace").splitlines())
    lines = [line for line in lines if line and not line.startswith("at ")]  # the stack's frames
    return f": {lines[-1][:120]}" if lines else ""
