"""Links that leave docs/: what they lead to comes into the site, under `repository/`.

README.md, RESULTS.md and their like become pages, a program a file of text, a picture itself. A folder has no page, so
its link becomes its text.
"""

import os
import posixpath
import re

from mkdocs.structure.files import File, InclusionLevel
from quickstart import PAGE, PROGRAM

OUTSIDE = "repository/"  # in the site: what lies beside docs/ in the repository
AS_THEY_ARE = (".md", ".png", ".svg")  # the rest is text, to be looked at
LINK = re.compile(r"(\]\(|\bsrc(?:set)?=\")(?!https?:|#)([^)\"\s#]+)(#[^)\"\s]*)?(?=[)\"])")


def in_repository(uri: str) -> str:
    """The path in the repository of a page of the site."""
    return uri.removeprefix(OUTSIDE) if uri.startswith(OUTSIDE) else f"docs/{uri}"


def is_inside(path: str) -> bool:
    """Whether a path of the repository is a page or a picture of docs/ itself."""
    return path.startswith("docs/") and not path.startswith("docs/hooks")


def in_site(path: str) -> str:
    """Where a path of the repository stands in the site.

    Example:
        >>> in_site("docs/guides/find.md"), in_site("RESULTS.md"), in_site("examples/sft.py")
        ('guides/find.md', 'repository/RESULTS.md', 'repository/examples/sft.py.txt')
    """
    if is_inside(path):
        return PAGE if path == f"docs/{PROGRAM}" else path.removeprefix("docs/")
    return OUTSIDE + path + ("" if path.endswith(AS_THEY_ARE) else ".txt")


def target_of(uri: str, link: str) -> str:
    """The path in the repository that a page's link leads to."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(in_repository(uri)), link))


def on_files(files, config):
    """Bring in whatever pages link to outside docs/, and what those link to."""
    root = os.path.dirname(config.config_file_path)
    pages = list(files.documentation_pages())
    for page in pages:  # which grows on the way
        for _, link, _ in LINK.findall(page.content_string):
            path = target_of(page.src_uri, link)
            source = os.path.join(root, path)
            if is_inside(path) or not os.path.isfile(source) or files.get_file_from_path(in_site(path)) is not None:
                continue
            made = File.generated(config, in_site(path), abs_src_path=source, inclusion=InclusionLevel.NOT_IN_NAV)
            files.append(made)
            pages += [made] if made.is_documentation_page() else []
    return files


def on_page_markdown(markdown, page, config, files):
    """Let the links of a page lead to where their targets stand in the site."""
    root, here = os.path.dirname(config.config_file_path), page.file.src_uri

    def led(match) -> str:
        target = target_of(here, match[2])
        if os.path.isdir(os.path.join(root, target)):
            return match[1]
        return f"{match[1]}{posixpath.relpath(in_site(target), posixpath.dirname(here) or '.')}{match[3] or ''}"

    return re.sub(r"\[([^][]*)\]\(\)", r"\1", LINK.sub(led, markdown))
