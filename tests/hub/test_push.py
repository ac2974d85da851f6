"""Does a push send the adapter and nothing else, and is a failed one a line?"""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import huggingface_hub
import pytest

from autolora_trainer.hub.push import PushError, push_to_hub
from autolora_trainer.runs.record import write_record
from tests.helpers.cards import write_card


class Hub(BaseHTTPRequestHandler):
    """The four requests of an upload of small files."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        self.server.seen.append(self.path)
        if self.path in self.server.failing:
            return self.answer(500, {"error": "out of order"})
        if self.path == "/api/repos/create":
            return self.answer(200, {"url": f"{self.server.endpoint}/me/adapter", "name": "me/adapter"})
        if "/preupload/" in self.path:
            files = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in json.loads(body)["files"]
            ]
            return self.answer(200, {"files": files})
        if "/commit/" in self.path:
            lines = [json.loads(line) for line in body.splitlines()]
            self.server.files += [line["value"]["path"] for line in lines if line["key"] == "file"]
            return self.answer(
                200, {"commitUrl": f"{self.server.endpoint}/me/adapter/commit/{'0' * 40}", "commitOid": "0" * 40}
            )
        return self.answer(200, {"errors": [], "warnings": []})

    def answer(self, status, content):
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)  # its store speaks another protocol
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.endpoint, server.seen, server.files, server.failing = f"http://127.0.0.1:{server.server_port}", [], [], ()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def run_folder(tmp_path):
    write_card(tmp_path)
    for name in ("adapter_config.json", "adapter_model.safetensors", "cost.json", "training_args.bin", "my_notes.txt"):
        (tmp_path / name).write_text("{}")
    (tmp_path / "search" / "checkpoint-4").mkdir(parents=True)
    (tmp_path / "search" / "checkpoint-4" / "adapter_model.safetensors").write_text("x")
    write_record(tmp_path, {})
    return tmp_path


def test_push_sends_the_adapter_and_nothing_else(tmp_path, server):
    url = push_to_hub(run_folder(tmp_path), "me/adapter", token="hf_secret", endpoint=server.endpoint)
    assert url == f"{server.endpoint}/me/adapter"
    assert sorted(server.files) == ["README.md", "adapter_config.json", "adapter_model.safetensors", "cost.json"]


def test_push_goes_to_the_branch_that_is_asked_for(tmp_path, server, monkeypatch):
    folder = run_folder(tmp_path)
    push_to_hub(folder, "me/adapter", endpoint=server.endpoint, revision="dev")
    changing = [path for path in server.seen if "/branch/" in path or "/commit/" in path]
    assert changing == ["/api/models/me/adapter/branch/dev", "/api/models/me/adapter/commit/dev"]
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    server.failing = ("/api/models/me/adapter/branch/dev",)
    with pytest.raises(PushError, match="type: python -c .*revision=.*dev"):
        push_to_hub(folder, "me/adapter", endpoint=server.endpoint, revision="dev")


@pytest.mark.parametrize("path", ["/api/repos/create", "/api/validate-yaml", "/api/models/me/adapter/commit/main"])
def test_failed_push_is_one_line_and_loses_nothing(tmp_path, server, path, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    folder = run_folder(tmp_path)
    before = sorted(p.name for p in folder.rglob("*"))
    server.failing = (path,)
    with pytest.raises(
        PushError, match="Could not push to me/adapter: .*500.* is finished, in .* type: python -c"
    ) as caught:
        push_to_hub(folder, "me/adapter", token="hf_secret", endpoint=server.endpoint)
    assert "\n" not in str(caught.value) and "hf_secret" not in str(caught.value)
    assert sorted(p.name for p in folder.rglob("*")) == before


def test_push_without_a_network_says_so(tmp_path):
    with pytest.raises(PushError, match="Unset HF_HUB_OFFLINE"):
        push_to_hub(run_folder(tmp_path), "me/adapter", endpoint="http://127.0.0.1:9")


@pytest.mark.parametrize("repo_id", ["a/b/c", "", "a b", "-x", "a--b"])
def test_name_that_no_repository_can_have_is_refused_before_anything_is_sent(tmp_path, repo_id):
    with pytest.raises(ValueError, match="hub_model_id must be a repository's name"):
        push_to_hub(tmp_path, repo_id)
