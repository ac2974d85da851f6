"""What every test has: a seed, and a network that is closed. No test needs a download.

Nothing is imported here that takes long: pytest-xdist's first process reads this file before it starts the others.
"""

import gc
import os
import socket

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["CUDA_VISIBLE_DEVICES"] = ""
os.environ["OMP_NUM_THREADS"] = "1"  # tiny models: threads would only wait for each other
for name in ("COLUMNS", "LINES"):  # argparse wraps by them, and older versions of tqdm cut their bars
    os.environ.pop(name, None)

HERE = ("127.0.0.1", "localhost", "::1")
FOLDER = os.path.dirname(os.path.abspath(__file__))


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Any connection beyond this machine fails the test that tries it, also where the code catches the error."""
    tried = []

    def closed(original):
        def connect(self, address, *args):
            if self.family not in (socket.AF_INET, socket.AF_INET6) or address[0] in HERE:
                return original(self, address, *args)
            tried.append(address)
            raise OSError(f"a test tried to reach {address}")

        return connect

    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, closed(getattr(socket.socket, name)))
    yield
    assert not tried, f"the test tried to reach {tried}"


@pytest.fixture(autouse=True)
def environment_of_accelerate():
    """accelerate and transformers write into the environment what a training has asked for, FSDP among it, and leave
    it there; the next test is another process's, as it were."""
    before = {key: value for key, value in os.environ.items() if key.startswith(("ACCELERATE_", "FSDP_"))}
    yield
    for key in [key for key in os.environ if key.startswith(("ACCELERATE_", "FSDP_"))]:
        if key not in before:
            del os.environ[key]
    os.environ.update(before)


# Files that take longest first: a worker that gets one of them last lets the others wait.
LONGEST = """
    scripts/test_distributed scripts/test_bad_input scripts/test_settings scripts/test_resume training/test_finite
    scripts/test_termination methods/test_grid hub/test_hub_server search/test_trainer search/test_state
    training/test_loss commands/test_demo benchmarks/test_paper_plans methods/test_matrix scripts/test_offline
""".split()


def pytest_collection_modifyitems(items):
    place = {os.path.join(FOLDER, *name.split("/")) + ".py": index for index, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(str(item.path), len(place)))


@pytest.fixture(autouse=True)
def seeded():
    import torch

    torch.manual_seed(0)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a checkpoint and rows, of a test file that does not make its own."""
    from tests.helpers.commands import write_sst2

    return write_sst2(tmp_path_factory.mktemp("place"))


def pytest_collection_finish():
    """What was imported is no garbage, and every Trainer looks through it when it begins: a third of a second."""
    gc.collect()
    gc.freeze()
