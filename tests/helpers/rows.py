"""Tiny data: rows of ids, sentences, restaurants and reviews, and files of them."""

import json
import random

import torch
from datasets import Dataset


def rows(count=64, length=10, classes=2, seed=0):
    """Sequences whose label says which of two token ranges is the more frequent: a task that can be learned."""
    generator = torch.Generator().manual_seed(seed)
    data = []
    for index in range(count):
        label = index % classes
        ids = torch.randint(3, 60, (length,), generator=generator)
        marked = torch.rand(length, generator=generator) < 0.4
        ids = torch.where(marked, torch.full_like(ids, 5 + 10 * label), ids)
        data.append({"input_ids": ids.tolist(), "attention_mask": [1] * length, "labels": label})
    return Dataset.from_list(data)


WORDS = ("good great fine bad poor dull the film plot cast was is a story with and").split()


def sentences(count=20, seed=0):
    """SST-2 in miniature: the first adjective of the sentence is its label."""
    generator = random.Random(seed)
    made = []
    for index in range(count):
        label = index % 2
        adjective = generator.choice(WORDS[:3] if label else WORDS[3:6])
        made.append({"sentence": f"the {generator.choice(WORDS[7:9])} was {adjective}", "label": label, "idx": index})
    return made


def write_rows(path, made):
    path.write_text("".join(json.dumps(row) + "\n" for row in made))
    return str(path)


def write(path, content):
    if isinstance(content, list):
        content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in content)
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
    return path


def pair_rows(*labels):
    return [{"sentence1": "the cat", "sentence2": "the dog", "label": label} for label in labels]


def reviews(count=20, seed=0, longest=3):
    """Sentences of the tiny checkpoint's words: an adjective and the noun after it are praise or blame."""
    generator = random.Random(seed)
    made = []
    for _ in range(count):
        words, tags = [], []
        for _ in range(generator.randint(1, longest)):
            kind = generator.choice(("praise", "blame"))
            words += ["the", generator.choice(("good", "great", "fine") if kind == "praise" else ("bad", "poor"))]
            tags += ["O", f"B-{kind}"]
            if generator.random() < 0.5:
                words.append(generator.choice(("film", "plot-story")))
                tags.append(f"I-{kind}")
            words.append(generator.choice(("was", "is", "and")))
            tags.append("O")
        made.append({"tokens": words, "tags": tags})
    return made


def restaurants(count, start=0):
    made = []
    for index in range(start, start + count):
        name, area = f"Cafe {index}", ("riverside", "city centre")[index % 2]
        reference = f"{name} is by the {area}."
        made.append({"meaning_representation": f"name[{name}], area[{area}]", "human_reference": reference})
    return made
