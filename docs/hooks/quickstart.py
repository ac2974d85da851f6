"""The quick start, a program in cells (`docs/quickstart.py`, jupytext's percent format), as a page and a notebook."""

import os

import jupytext
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File

PROGRAM, PAGE, NOTEBOOK = "quickstart.py", "quickstart.md", "quickstart.ipynb"


def as_page(notebook) -> str:
    """Texts as they are, programs in fences."""
    fenced = (
        cell.source if cell.cell_type == "markdown" else f"```python\n{cell.source}\n```" for cell in notebook.cells
    )
    return "\n\n".join(fenced) + "\n"


@event_priority(50)  # before links are looked at
def on_files(files, config):
    """Put the page and the notebook in the place of the program."""
    notebook = jupytext.read(os.path.join(config.docs_dir, PROGRAM), fmt="py:percent")
    files.remove(files.get_file_from_path(PROGRAM))
    files.append(File.generated(config, PAGE, content=as_page(notebook)))
    files.append(File.generated(config, NOTEBOOK, content=jupytext.writes(notebook, fmt="ipynb")))
    return files
