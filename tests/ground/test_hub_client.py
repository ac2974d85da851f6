"""Does one question tell whether the Hub answers?"""

import socket
import threading
import time

import huggingface_hub
import pytest

from autolora_trainer import hub_client


@pytest.mark.parametrize(
    "reply, answers", [(b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n", True), (b"", False)]
)
def test_one_question_tells_whether_thehub_answers(reply, answers, monkeypatch):
    monkeypatch.setattr(hub_client, "HUB_TIMEOUT", 0.5)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:%d" % server.getsockname()[1])

        def serve():
            connection, _ = server.accept()
            connection.recv(4096)
            if reply:
                connection.sendall(reply)
            done.wait(5)
            connection.close()

        done = threading.Event()
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        began = time.monotonic()
        assert hub_client.hub_answers() is answers
        assert time.monotonic() - began < 3
        done.set()
        thread.join(5)


def test_no_token_leaves_for_another_host(monkeypatch):
    """As that of an upload's verification, which the client does not look at."""
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "https://me:word@hub.example")
    hosts = {"hub.example": True, "cdn.hub.example": True, "elsewhere": False, "xhub.example": False}
    with hub_client.bounded_waits():
        client = huggingface_hub.get_session()
        for host, kept in hosts.items():
            request = client.build_request("POST", f"https://{host}/verify", headers={"Authorization": "Bearer x"})
            client.event_hooks["request"][-1](request)
            assert ("authorization" in request.headers) == kept
