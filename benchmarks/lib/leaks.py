"""Ways for a secret to leak, each held against all that a command says and against every byte that it writes; and ways
for a folder to have somebody else's file uploaded; for reliability.py."""

import itertools
import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

import run_glue
from autolora_trainer.commands import cli
from autolora_trainer.runs.record import recorded
from benchmarks.lib.forked import Bench
from benchmarks.lib.hostile import Told, told
from tests.helpers.hub_server import HubServer, use

WORD = "s3cret-w0rd-4711"  # of no form that is known
HUB = "hf_" + "aB3dE6" * 6
SHORT = "hf_aB3dE6aB3d"
KEY = "-----BEGIN OPENSSH PRIVATE KEY-----"


@dataclass
class Leak:
    """One way.

    Attributes:
        argv: what is typed beside a command that works; a function of the bench, where files are needed.
        status: how that ends.
        environment: variables; `{endpoint}` is the address of a Hub on this machine.
        program: run_glue.py, or autolora, whose argv is all of its command line.
        answer: (path, status, text) of that Hub, which otherwise takes everything.
    """

    argv: list[str] | Callable
    status: int = 2
    environment: dict[str, str] = field(default_factory=dict)
    program: str = "run_glue.py"
    answer: tuple[str, int] | None = None


def yaml(text: str, name: str = "c.yaml", first: str = "seed: 1\n"):
    """`--config` with a file of this text."""

    def typed(bench: Bench) -> list[str]:
        bench.path(name).write_text(f"{first}{text}\n", encoding="utf-8")
        return ["--config", str(bench.path(name))]

    return typed


def command(*argv: str) -> Leak:
    return Leak(list(argv), program="autolora")


PUSH = ["--push_to_hub", "--hub_model_id", "me/x", "--base_model_id", "me/tiny"]
DEBUG = {"AUTOLORA_DEBUG": "1"}
FULL = ["--report_to", "tensorboard", "--log_level", "debug", "--do_train", "--do_eval"]
LEAKS = {
    "a name with a letter too few": Leak([f"--tokn={WORD}"]),
    "another, and hyphens": Leak(["--hub-tokn", WORD]),
    "a name cut short": Leak(["--hub_tok", WORD]),
    "one hyphen": Leak(["-token", WORD]),
    "a long dash": Leak([f"\u2014token={WORD}"]),
    "no hyphens": Leak(["hub_token", WORD]),
    "no blank": Leak([f"--token{WORD}"]),
    "no blank before a token of the Hub": Leak([f"--hub_token{HUB}"]),
    "two values": Leak(["--token", "first", WORD]),
    "two values after =": Leak(["--token=first", WORD]),
    "an argument that there is not": Leak(["--wandb_api_key", WORD]),
    "a token where a number belongs": Leak(["--seed", SHORT]),
    "a token for a task": Leak(["--task_name", SHORT]),
    "a token for a repository": Leak([*PUSH, "--hub_model_id", f"me/{HUB}"]),
    "a file: a name that there is not": Leak(yaml(f"tokn: {WORD}")),
    "a file: a list": Leak(yaml(f"token: [{WORD}, x]")),
    "a file: a list of lines": Leak(yaml(f"hub_token:\n- {WORD}\n- x")),
    "a file: an alias": Leak(yaml(f"hub_token: *{WORD}")),
    "a file: a tag": Leak(yaml(f"hub_token: !{WORD} x")),
    "a file: an open quote": Leak(yaml(f'hub_token: "{WORD}')),
    "a file: twice": Leak(yaml(f"hub_token: {WORD}\nhub_token: {WORD}")),
    "a file of JSON": Leak(yaml(f'{{"token": ["{WORD}", "x"]}}', "c.json", "")),
    "blanks inside": Leak(["--token", f"{WORD} x"]),
    "a line break inside": Leak([*PUSH, "--hub_token", f"{WORD}\nx"]),
    "other letters inside": Leak(["--hub_token", f"{WORD}\u00e9"]),
    "a model's address": Leak(["--model_name_or_path", f"https://me:{WORD}@127.0.0.1:9/model"]),
    "a model's address with a token alone": Leak(["--model_name_or_path", f"https://{SHORT}@127.0.0.1:9/model"]),
    "a password with a slash": Leak(["--model_name_or_path", f"https://me:{WORD}/x@127.0.0.1:9/model"]),
    "a file's address": Leak(["--train_file", f"https://me:{WORD}@127.0.0.1:9/rows.jsonl"]),
    "a query": Leak(["--train_file", f"https://127.0.0.1:9/rows.jsonl?token={WORD}"]),
    "a tokenizer's address": Leak(["--tokenizer_name", f"me:{WORD}@127.0.0.1:9/model"]),
    "an address of the Hub": Leak(PUSH, 1, {"HF_ENDPOINT": f"http://me:{WORD}@127.0.0.1:9"}),
    "an address of the Hub that works": Leak(PUSH, 0, {"HF_ENDPOINT": f"http://me:{WORD}@{{host}}"}),
    "a proxy": Leak(PUSH, 1, {"HTTP_PROXY": f"http://me:{WORD}@127.0.0.1:9", "HF_ENDPOINT": "http://hub.invalid"}),
    "a traceback": Leak(["--model_name_or_path", f"https://me:{WORD}@127.0.0.1:9/model"], 2, DEBUG),
    "a variable": Leak(["--task_name", WORD], 2, {"MY_SECRET_KEY": WORD}),
    "a run's name": Leak([*FULL, "--run_name", f"x-{SHORT}"], 0),
    "a run's name, a variable's value": Leak([*FULL, "--run_name", f"x-{WORD}"], 0, {"WANDB_API_KEY": WORD}),
    "a run's name, an address": Leak([*FULL, "--run_name", f"https://me:{WORD}@host/x"], 0),
    "a run's name, a whole token": Leak([*FULL, "--run_name", f"x-{HUB}"]),
    "a folder's name": Leak(lambda bench: ["--output_dir", str(bench.path(f"out-{HUB}"))]),
    "settings of PEFT": Leak(["--method", "ia3", "--peft_kwargs", json.dumps({"revision": HUB})]),
    "typed tokens of a whole run": Leak([*FULL, "--token", WORD, "--hub_token", f"{WORD}\r\n"], 0),
    "typed tokens of a whole run that is pushed": Leak([*FULL, *PUSH, "--hub_token", f" {WORD}\n"], 0),
    "an answer that repeats the token": Leak([*PUSH, "--hub_token", WORD], 1, answer=("/api/repos/create", 400)),
    "the command: a name cut short": command("find", "m", "d", "--hub_tok", WORD, "--output_dir", "o"),
    "the command: before the verb": command("--hub_token", WORD, "find", "m", "d"),
    "the command: a word too many": command("show", "m", WORD),
    "the command: a name that there is not": command("export", "m", f"--tokn={WORD}"),
    "the command: an address": command("show", f"https://me:{WORD}@127.0.0.1:9/x"),
    "the command: a token for a repository": command("show", HUB),
    "the command: a script": command("run", "glue", f"--tokn={WORD}"),
    "the command: blanks inside": command(*"compress m --rank 1 --output_dir o --hub_token".split(), f"{WORD} x"),
}  # fmt: skip


class EchoingServer(HubServer):
    """Says in an error what came in the header."""

    def echo(self, path: str, status: int) -> None:
        handler, answer = self.RequestHandlerClass, self.RequestHandlerClass._respond

        def respond(own):
            if re.search(path, own.path):
                own.rfile.read(int(own.headers.get("Content-Length") or 0))
                message = f"no: {own.headers.get('Authorization')} \x1b[2J\u202e"
                return own._json(status, {"error": message})
            return answer(own)

        self.RequestHandlerClass = type("Echo", (handler,), dict.fromkeys(("do_GET", "do_HEAD", "do_POST"), respond))


def _tell(bench: Bench, leak: Leak, server: HubServer) -> Told:
    argv = leak.argv(bench) if callable(leak.argv) else leak.argv
    is_script = leak.program == "run_glue.py"
    if is_script:
        run = {"method": "lora", "max_steps": 2, "save_strategy": "steps", "save_steps": 1, "report_to": "none"}
        named = {word[2:].replace("-", "_") for word in argv if word.startswith("--")}
        argv = bench.argv("out", **{name: None if name in named else value for name, value in run.items()}) + argv

    def before():
        host = server.endpoint.removeprefix("http://")
        os.environ |= {name: value.format(host=host) for name, value in leak.environment.items()}
        os.chdir(bench.path("here"))
        use(server, pytest.MonkeyPatch(), bench.path("here", "cache"))
        if endpoint := os.environ.get("HF_ENDPOINT"):
            from huggingface_hub import constants, hf_api

            constants.ENDPOINT = hf_api.api.endpoint = endpoint

    return told(bench, run_glue.main if is_script else cli.main, argv, leak.program, before)


def _found(folder: Path, words) -> list[str]:
    files = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    return [f"{word[:4]}… in {path.name}" for path in files for word in words if word.encode() in path.read_bytes()]


def secrets(bench: Bench, count: int):
    """Every leak, then every folder that would have a private key uploaded; `count` leaks, and as many folders."""
    for what, leak in bench.left(list(LEAKS.items())[: count or None]):
        for name in ("out", "here"):
            shutil.rmtree(bench.path(name), ignore_errors=True)
        bench.path("here").mkdir()
        with EchoingServer() as server:
            if leak.answer:
                server.echo(*leak.answer)
            said = _tell(bench, leak, server)
            sent = b"".join(content for files in server.repositories.values() for content in files.values())
        words = (WORD, HUB, SHORT)
        shown = said.out + said.err
        leaks = [f"{word[:4]}… is said: {shown[-300:]}" for word in words if word in shown]
        leaks += ["it is uploaded"] if any(word.encode() in sent for word in words) else []
        leaks += _found(bench.path("out"), words) + _found(bench.path("here"), words)
        leaks += [] if said.status == leak.status else [f"status {said.status}, not {leak.status}: {said.err[-300:]}"]
        leaks += ["a terminal is moved"] if re.search("[\x1b\x07\u202e]", shown) else []
        yield f"{what}: {'; '.join(leaks)}" if leaks else None
    yield from itertools.islice(_uploads(bench), count or None)


# ---- files of others


def _link(path: Path, key: Path) -> None:
    path.symlink_to(key)


def _forged(path: Path, key: Path) -> None:
    """The record says what a stranger can guess: size and name."""
    record = path.parent / "written.json"
    files = {**recorded(path.parent), path.name: {"bytes": key.stat().st_size, "sha256": "0" * 64}}
    record.write_text(json.dumps({"files": files}))
    path.symlink_to(key)


HOW = {"a link": _link, "a hard link": lambda path, key: os.link(key, path), "a forged record": _forged}
NAMES = ("labels.json", "README.md", "tokenizer.json", "all_results.json", "adapter_config.json", "ranks.json")


def _uploads(bench: Bench):
    """`--do_eval --push_to_hub` of a run's folder in which a name leads to a private key, or to private JSON."""
    good = bench.argv("good", method="lora", max_steps=1, save_strategy="no")
    if bench.run(good):
        raise RuntimeError(bench.log())
    for content in (KEY, '{"private_key": "%s"}' % KEY):
        bench.path("key").write_text(content)
        for how, make in HOW.items():
            for name in NAMES:
                shutil.rmtree(bench.path("out"), ignore_errors=True)
                shutil.copytree(bench.path("good"), bench.path("out"))
                bench.path("out", name).unlink(missing_ok=True)
                make(bench.path("out", name), bench.path("key"))
                bench.path("here").mkdir(exist_ok=True)
                with EchoingServer() as server:
                    said = _tell(bench, Leak(["--do_eval", *PUSH]), server)
                    sent = b"".join(own for files in server.repositories.values() for own in files.values())
                leaks = ["the key is uploaded"] if KEY.encode() in sent else []
                leaks += ["the key is changed"] if bench.path("key").read_text() != content else []
                leaks += [f"{len(said.err.splitlines())} lines"] if said.status and said.err.count("\n") > 1 else []
                yield f"{name}, {how}: {'; '.join(leaks)}" if leaks else None
