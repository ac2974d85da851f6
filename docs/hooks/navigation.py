"""The site's navigation: the pages that docs/README.md names, under its headings and in its order.

A page that it does not name is one that the strict build complains of.
"""

import re

from links import in_site, target_of
from mkdocs.plugins import event_priority

INDEX = "README.md"
ENTRY = re.compile(r"\[([^][]+)\]\(([^)\s#]+)\)")


def entries(index: str) -> dict[str, list[tuple[str, str]]]:
    """{heading: [(text, link)]} of the first link of every row of a table.

    Example:
        >>> entries("## Guides\\n| [Find](guides/find.md) | as [said](x.md) |\\n")
        {'Guides': [('Find', 'guides/find.md')]}
    """
    found, heading = {}, ""
    for line in index.splitlines():
        if line.startswith("## "):
            heading = line.removeprefix("## ")
        elif line.startswith("| [") and (entry := ENTRY.search(line)):
            found.setdefault(heading, []).append(entry.groups())
    return found


@event_priority(-50)  # when all pages are there
def on_files(files, config):
    """Set the navigation."""
    index = files.get_file_from_path(INDEX).content_string
    sections = {
        heading: [{text: in_site(target_of(INDEX, link))} for text, link in rows]
        for heading, rows in entries(index).items()
    }
    config.nav = [{"Overview": INDEX}, *({heading: pages} for heading, pages in sections.items())]
    return files
