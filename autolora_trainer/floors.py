"""Are the installed libraries as new as this package needs? setup.cfg has the oldest of each."""

from importlib import metadata

from packaging.requirements import Requirement


def check_floors(distribution: str = "autolora_trainer") -> None:
    """Raise `ImportError`, in one line, for libraries that are older than what was run: a run's numbers, or what it
    resumes from, could change unseen. Silent where the package is not installed, and so has no list."""
    try:
        wanted = [Requirement(line) for line in metadata.requires(distribution) or ()]
    except metadata.PackageNotFoundError:
        return
    old = [own for own in wanted if own.marker is None and not _holds(own)]
    if old:
        found = ", ".join(f"{own.name} {metadata.version(own.name)}" for own in old)
        needed = " ".join(f'"{own.name}{own.specifier}"' for own in old)
        raise ImportError(f"{distribution} has not been run with {found}. Type: pip install --upgrade {needed}")


def _holds(wanted: Requirement) -> bool:
    """Of what is not there at all, its own import says so."""
    try:
        return wanted.specifier.contains(metadata.version(wanted.name), prereleases=True)
    except metadata.PackageNotFoundError:
        return True
