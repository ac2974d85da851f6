"""A Hub on this machine for the real client: repositories in memory, and every way of failing that a test asks for."""

import base64
import contextlib
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

import yaml

LARGE = (".safetensors", ".png", ".bin", ".pt")  # what .gitattributes of the Hub gives to LFS


class HubServer(ThreadingHTTPServer):
    """Repositories in memory, served on a free port of 127.0.0.1; start it with `with`.

    Attributes:
        repositories: {repository: {path: bytes}}, what was committed.
        asked: (method, path) of the requests in their order, less those that the client makes of its own accord.
        tokens: the tokens that came with them.
        private: repositories created as private.
        sent: bytes of bodies without an end.
    """

    daemon_threads, block_on_close = True, False

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.endpoint = f"http://127.0.0.1:{self.server_port}"
        self.repositories, self.asked, self.tokens, self.private = {}, [], set(), set()
        self._large, self._failures, self._stopped, self.sent = {}, [], threading.Event(), 0

    def __enter__(self):
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *error):
        self._stopped.set()
        self.shutdown()
        self.server_close()

    def fail(self, path: str, how, method: str | None = None, headers: dict | None = None) -> None:
        """From now on, fail requests whose path matches the regular expression `path`.

        Args:
            how: a status such as 500; `hang`: accept and say nothing; `cut`: half of the answer's body, then the end;
                `endless`: a body without one.
            method: of those alone.
            headers: of the answer with the status.
        """
        self._failures.append((re.compile(path), how, method, headers or {}))

    def commit_of(self, repository: str) -> str:
        files = self.repositories[repository]
        return hashlib.sha1(
            repr(sorted((p, hashlib.sha1(c).hexdigest()) for p, c in files.items())).encode()
        ).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def _respond(self):
        hub = self.server
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length)
        path = unquote(urlsplit(self.path).path)
        if path != "/api/agent-harnesses":  # how the client is to call itself, once a process
            hub.asked.append((self.command, path))
        if self.headers.get("Authorization"):
            hub.tokens.add(self.headers["Authorization"].removeprefix("Bearer "))
        self.cut = False
        for pattern, how, method, headers in hub._failures:
            if pattern.search(path) and method in (None, self.command):
                if how == "hang":
                    hub._stopped.wait(60)
                    self.close_connection = True
                    return
                if how == "endless":
                    return self._endless()
                if how == "cut":
                    self.cut = True
                else:
                    return self._json(how, {"error": f"answer {how} as asked"}, **headers)
        for method, pattern, answer in ROUTES:
            match = re.fullmatch(pattern, path)
            if match and self.command in method:
                return answer(self, body, *match.groups())
        self._json(404, {"error": f"no {path} here"})

    do_GET = do_HEAD = do_POST = do_PUT = _respond

    def _bytes(self, status, content, **headers):
        self.send_response(status)
        for name, value in {"Content-Type": "application/octet-stream", **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(content)))
        if self.cut:
            self.send_header("Connection", "close")  # or the client's next request could meet the end of this one
            self.close_connection = True
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[: len(content) // 2] if self.cut else content)

    def _endless(self):
        self.close_connection = True
        self.send_response(200)
        self.end_headers()
        with contextlib.suppress(OSError):  # nobody reads any more
            while not self.server._stopped.is_set():
                self.wfile.write(bytes(2**16))
                self.server.sent += 2**16

    def _json(self, status, content, **headers):
        self._bytes(status, json.dumps(content).encode(), **{"Content-Type": "application/json", **headers})

    def _missing(self, code, what):
        self._json(404, {"error": f"{what} not found"}, X_Error_Code=code, X_Error_Message=f"{what} not found")

    # ---- the API, in the order in which an upload asks

    def create(self, body):
        asked = json.loads(body)
        repository = f"{asked.get('organization') or 'me'}/{asked['name']}"
        if asked.get("visibility") == "private" or asked.get("private"):
            self.server.private.add(repository)
        status = 409 if repository in self.server.repositories else 200
        self.server.repositories.setdefault(repository, {})
        self._json(status, {"url": f"{self.server.endpoint}/{repository}", "name": repository})

    def validate(self, body):
        content = json.loads(body)["content"]
        try:
            _, front_matter, _ = re.split(r"^---\s*$", content, maxsplit=2, flags=re.MULTILINE)
            data = yaml.safe_load(front_matter)
            errors = [] if isinstance(data, dict) else [{"message": "the metadata is no mapping"}]
        except (ValueError, yaml.YAMLError) as error:
            errors = [{"message": f"the metadata is no YAML: {error}"}]
        self._json(400 if errors else 200, {"errors": errors, "warnings": []})

    def preupload(self, body, repository, revision):
        if repository not in self.server.repositories:
            return self._missing("RepoNotFound", repository)
        modes = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(LARGE) else "regular",
                "shouldIgnore": False,
            }
            for file in json.loads(body)["files"]
        ]
        self._json(200, {"files": modes})

    def batch(self, body, repository):
        objects = [
            {**entry, "actions": {"upload": {"href": f"{self.server.endpoint}/lfs/{entry['oid']}"}}}
            for entry in json.loads(body)["objects"]
        ]
        self._json(200, {"transfer": "basic", "objects": objects})

    def store(self, body, oid):
        if hashlib.sha256(body).hexdigest() != oid:
            return self._json(400, {"error": "these bytes have another hash"})
        self.server._large[oid] = body
        self._json(200, {})

    def commit(self, body, repository, revision):
        if repository not in self.server.repositories:
            return self._missing("RepoNotFound", repository)
        files = {}
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.server._large[value["oid"]]
        self.server.repositories[repository].update(files)
        oid = self.server.commit_of(repository)
        self._json(200, {"commitUrl": f"{self.server.endpoint}/{repository}/commit/{oid}", "commitOid": oid})

    # ---- and what comes down again

    def info(self, body, repository, revision=None):
        files = self.server.repositories.get(repository)
        if files is None:
            return self._missing("RepoNotFound", repository)
        siblings = [{"rfilename": path} for path in sorted(files)]
        sha = self.server.commit_of(repository)
        self._json(200, {"id": repository, "modelId": repository, "sha": sha, "siblings": siblings, "tags": []})

    def resolve(self, body, repository, revision, path):
        files = self.server.repositories.get(repository)
        if files is None:
            return self._missing("RepoNotFound", repository)
        if path not in files:
            return self._missing("EntryNotFound", path)
        etag = f'"{hashlib.sha256(files[path]).hexdigest()}"'
        self._bytes(200, files[path], ETag=etag, X_Repo_Commit=self.server.commit_of(repository))

    def log_message(self, *arguments):
        pass


REPOSITORY = r"([\w.-]+/[\w.-]+)"
ROUTES = [
    (("POST",), "/api/repos/create", _Handler.create),
    (("POST",), "/api/validate-yaml", _Handler.validate),
    (("POST",), f"/api/models/{REPOSITORY}/preupload/([^/]+)", _Handler.preupload),
    (("POST",), rf"/{REPOSITORY}\.git/info/lfs/objects/batch", _Handler.batch),
    (("PUT",), "/lfs/([0-9a-f]{64})", _Handler.store),
    (("POST",), f"/api/models/{REPOSITORY}/commit/([^/]+)", _Handler.commit),
    (("GET",), f"/api/models/{REPOSITORY}(?:/revision/([^/]+))?", _Handler.info),
    (("GET", "HEAD"), f"/{REPOSITORY}/resolve/([^/]+)/(.+)", _Handler.resolve),
]


def use(server: HubServer, monkeypatch, cache, silence: float = 0.3) -> list[float]:
    """Let the client of this process talk to the server, and wait for it briefly.

    Args:
        cache: folder for downloads.
        silence: seconds after which a wait ends.
    Returns:
        The pauses between attempts, which are not waited for; filled as they come.
    """
    import time

    import huggingface_hub
    from huggingface_hub import constants, file_download, hf_api

    from autolora_trainer import hub_client

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")  # PEFT reads it itself
    monkeypatch.setattr(constants, "ENDPOINT", server.endpoint)
    monkeypatch.setattr(hf_api.api, "endpoint", server.endpoint)  # of functions such as `file_exists`
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # its store speaks another protocol
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", silence)
    monkeypatch.setattr(file_download, "_ETAG_RETRY_TIMEOUT", silence)
    monkeypatch.setattr(hub_client, "SILENCE_SECONDS", silence)
    monkeypatch.setattr(hub_client, "DOWNLOAD_SECONDS", 10 * silence)
    pauses = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    huggingface_hub.close_session()
    return pauses
