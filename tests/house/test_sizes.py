"""Is a file one idea, and a function one screen?"""

import ast
import statistics
from pathlib import Path

ROOT = Path(__file__).parents[2]
PATHS = sorted((ROOT / "autolora_trainer").rglob("*.py"))
LONGEST_FILE, LONGEST_TASK, LONGEST_FUNCTION = 300, 400, 50


def lines_of(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def test_files_are_short():
    limits = {path: LONGEST_TASK if path.parent.name == "tasks" else LONGEST_FILE for path in PATHS}
    assert {path.name: lines_of(path) for path in PATHS if lines_of(path) > limits[path]} == {}


def test_the_median_file_is_neither_a_scrap_nor_a_heap():
    assert 100 <= statistics.median(lines_of(path) for path in PATHS if path.name != "__init__.py") <= 180


def test_functions_are_short():
    """From the end of the signature and the docstring."""
    long = {}
    for path in PATHS:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                body = node.body[1:] if ast.get_docstring(node) is not None else node.body
                length = node.end_lineno - body[0].lineno + 1 if body else 0
                if length > LONGEST_FUNCTION:
                    long[f"{path.name}: {node.name}"] = length
    assert long == {}
