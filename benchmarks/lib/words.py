"""What methods and tasks are called where people read of them; the words are in `words.yaml`."""

from pathlib import Path

import yaml

WORDS: dict[str, dict] = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
