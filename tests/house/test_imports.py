"""Do imports point down, without a circle, and is every private name of a library in the one place for it?"""

import ast
import graphlib
import inspect
import re
from pathlib import Path

from transformers import Trainer

from autolora_trainer.compat import HOOKS
from autolora_trainer.methods.registry import METHODS

ROOT = Path(__file__).parents[2]
PACKAGE = "autolora_trainer"
# A room imports what stands on a lower floor; rooms on one floor do not import each other. See docs/contributing.md.
FLOORS = [
    set("clean compat drawing errors files floors hub_client machine".split())
    | set("names sample untouched usage values version".split()),
    {"lora"},
    {"ranks"},
    {"training", "report", "tasks"},
    {"heldout"},
    {"search", "runs"},
    {"hub"},
    {"shrink", "find"},
    {"methods"},
    {"scripts"},
    {"commands"},
]
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
EXCEPTIONS: set[tuple[str, str]] = set()  # may only shrink
PATHS = sorted((ROOT / PACKAGE).rglob("*.py"))


def module_of(path: Path) -> str:
    """`…/ranks/grid.py` -> `ranks.grid`, `…/ranks/__init__.py` -> `ranks`."""
    parts = path.relative_to(ROOT / PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in PATHS}


def imported(path: Path) -> list[str]:
    """The modules of the package that a file imports; inside functions too, or a circle only hides."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [name.name for name in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path} imports by dots"
            inner = [f"{node.module}.{name.name}" for name in node.names]
            modules = [name for name in inner if name.removeprefix(PACKAGE + ".") in MODULES]
            found += modules if len(modules) == len(inner) else [node.module, *modules]
    return [name.removeprefix(PACKAGE + ".") for name in found if name.startswith(PACKAGE + ".")]


ARROWS = {name: imported(path) for name, path in MODULES.items() if name}


def test_contributing_names_every_room():
    page = (ROOT / "docs" / "contributing.md").read_text(encoding="utf-8")
    cells = re.findall(r"^\| ([^|]+) \|", page, re.MULTILINE)
    named = {name for cell in cells for name in re.findall(r"[`\[](\w+)[/`]", cell)}
    assert {room for floor in FLOORS for room in floor} - named == set()


def test_every_room_has_a_floor():
    assert {name.split(".")[0] for name in ARROWS} == set(FLOOR)


def test_imports_point_down():
    up = set()
    for name, targets in ARROWS.items():
        room = name.split(".")[0]
        for target in targets:
            other = target.split(".")[0]
            if other != room and not FLOOR[other] < FLOOR[room] and not FLOOR[room] == FLOOR[other] == 0:
                up.add((name, target))
    assert up == EXCEPTIONS


def test_no_circle():
    list(graphlib.TopologicalSorter(ARROWS).static_order())  # raises CycleError, which names it


def test_faces_are_for_users():
    faces = {name for name, path in MODULES.items() if path.name == "__init__.py"} - {"sample"}
    assert {(name, target) for name, targets in ARROWS.items() for target in targets if target in faces} == set()


def test_private_names_of_libraries_are_in_compat():
    private = set()
    for name, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and not node.module.startswith(PACKAGE):
                private |= {(name, alias.name) for alias in node.names if alias.name.startswith("_")}
    assert {name for name, _ in private} <= {"compat"}


def test_private_methods_of_trainer_are_hooks():
    """Those that are overridden or called, by any class of the package."""
    used = set()
    for path in PATHS:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            name = node.name if isinstance(node, ast.FunctionDef) else getattr(node, "attr", "")
            if name.startswith("_") and not name.startswith("__") and inspect.isfunction(getattr(Trainer, name, None)):
                used.add(name)
    assert used == set(HOOKS)


OTHER_MEANINGS = {"methods.grid_space", "methods.peft_types"}  # a sampler is called grid, too, and a PEFT type lora


def test_only_a_method_knows_its_name():
    """No comparison with a method's name anywhere: what differs between methods is an attribute of theirs."""
    found = set()
    for name, path in [*MODULES.items(), *((path.stem, path) for path in ROOT.glob("run_*.py"))]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            inner = list(ast.walk(node)) if isinstance(node, ast.Compare) else ()
            texts = {part.value for part in inner if isinstance(part, ast.Constant) and isinstance(part.value, str)}
            subjects = {getattr(part, "attr", getattr(part, "id", "")) for part in inner}
            if texts & set(METHODS) and {"method", "name", "sampler"} & subjects:
                found.add(name)
    assert found == OTHER_MEANINGS
