"""Does what is built install and run where there is no clone? Wheel and sdist, each in an environment of its own.

    pip install build
    python benchmarks/installed.py

The libraries are those of this interpreter, lent by a .pth file, so that nothing but the package itself is installed.
Then, in an empty folder: `autolora demo`, cut short, `show` of what it left, and the help of every verb and script.
Exit status 0 if all went well.
"""

import argparse
import os
import subprocess
import sys
import sysconfig
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).parents[1]
SHORT = "--lines 64 --steps 2 --search_steps 5"
COMMANDS = [
    "--version",
    f"demo {SHORT}",
    "show outputs/demo",
    "export outputs/demo --format axolotl",
    *(f"{verb} --help" for verb in ("demo", "find", "compress", "show", "diff", "export", "run")),
    *(f"run {script} --help_all" for script in ("glue", "ner", "nlg")),
]


def run(words, place, **variables) -> None:
    """One command in a folder; its output only where it fails."""
    outside = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(words, cwd=place, env={**outside, **variables}, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, words))} ended with {done.returncode}:\n{done.stdout}{done.stderr}")


def build(place: Path) -> list[Path]:
    """The sdist of this clone, and the wheel that is built of the sdist."""
    run([sys.executable, "-m", "build", "--outdir", place, ROOT], ROOT)
    return sorted(place.iterdir())


def install(package: Path, place: Path) -> Path:
    """A new environment with the package and this interpreter's libraries; its folder of programs."""
    venv.create(place, with_pip=True)
    programs = place / "bin"
    run([programs / "pip", "install", "--quiet", "--no-deps", package], place)
    folders = [path for path in sys.path if path.endswith("-packages")]
    own = Path(sysconfig.get_path("purelib", "venv", {"base": str(place), "platbase": str(place)}))
    (own / "zz_lent.pth").write_text("\n".join(folders), encoding="utf-8")  # behind its own
    code = "import autolora_trainer as package, run_glue, sys\n"
    code += "assert all(file.startswith(sys.prefix) for file in (package.__file__, run_glue.__file__))"
    run([programs / "python", "-c", code], place)
    return programs


def main(argv=None) -> None:
    argparse.ArgumentParser(description=__doc__.partition("\n")[0]).parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        for package in build(Path(folder, "dist")):
            programs = install(package, Path(folder, f"with-{package.suffix[1:]}"))
            place = Path(folder, f"in-{package.suffix[1:]}")
            place.mkdir()
            for command in COMMANDS:
                run([programs / "autolora", *command.split()], place, HF_HOME=str(place / "hub"))
            print(f"{package.name}: {len(COMMANDS)} commands ran", flush=True)


if __name__ == "__main__":
    main()
