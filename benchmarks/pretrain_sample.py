"""Pre-train the small encoder of the built-in sample: a RoBERTa from random weights, masked language modelling only.

    python benchmarks/pretrain_sample.py --text wikinews.txt.xz --output autolora_trainer/sample/encoder

Text: English Wikinews (CC BY 2.5, see NOTICE), and unlabelled lines of `autolora_trainer.sample.data.generate_text`.
Every step takes rows of both. The tokenizer, a byte-level BPE, is trained on both too. `training.json` records what
was run and what came out. About half an hour on one CPU core.
"""

import argparse
import json
import lzma
import platform
import time
from pathlib import Path

import numpy as np
import tokenizers
import torch
import transformers
from safetensors.torch import save_file
from tokenizers import ByteLevelBPETokenizer
from transformers import RobertaConfig, RobertaForMaskedLM, RobertaTokenizerFast, get_cosine_schedule_with_warmup

from autolora_trainer.sample.data import generate_text

COMMAND = "python benchmarks/pretrain_sample.py --text wikinews.txt.xz --output encoder"
SPECIAL_TOKENS = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
BOS, PAD, EOS, MASK = 0, 1, 2, 4


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, required=True, help="plain text, one paragraph a line, .txt or .txt.xz")
    parser.add_argument("--output", type=Path, required=True, help="folder of the encoder")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--text_rows", type=int, default=8, help="rows of --text in a step, each of --length tokens")
    parser.add_argument("--line_rows", type=int, default=64, help="generated lines in a step")
    parser.add_argument("--num_lines", type=int, default=100_000, help="generated lines in all")
    parser.add_argument("--length", type=int, default=128, help="longest input in tokens")
    parser.add_argument("--vocab_size", type=int, default=4096)
    parser.add_argument("--hidden_size", type=int, default=160)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--heads", type=int, default=5)
    parser.add_argument("--learning_rate", type=float, default=1.5e-3)
    parser.add_argument("--warmup_steps", type=int, default=150)
    parser.add_argument("--masking", type=float, default=0.2, help="share of tokens to predict")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


def read_paragraphs(path: Path) -> list[str]:
    opened = lzma.open(path, "rt", encoding="utf-8") if path.suffix == ".xz" else path.open(encoding="utf-8")
    with opened as file:
        return [line.strip() for line in file if line.strip()]


def train_tokenizer(texts: list[str], arguments) -> RobertaTokenizerFast:
    bpe = ByteLevelBPETokenizer(add_prefix_space=True)
    bpe.train_from_iterator(texts, arguments.vocab_size, min_frequency=2, special_tokens=SPECIAL_TOKENS)
    model = json.loads(bpe._tokenizer.to_str())["model"]
    found = {"vocab": model["vocab"], "merges": [tuple(merge) for merge in model["merges"]]}
    return RobertaTokenizerFast(**found, add_prefix_space=True, model_max_length=arguments.length)


def text_batches(ids: np.ndarray, rows: int, length: int, rng):
    """Endless batches (rows, length) of consecutive text, in another order at every pass."""
    width = length - 2
    chunks = ids[: len(ids) // width * width].reshape(-1, width)
    while True:
        order = rng.permutation(len(chunks))
        for first in range(0, len(chunks) - rows + 1, rows):
            body = torch.from_numpy(chunks[order[first : first + rows]].astype(np.int64))
            edge = torch.ones(rows, 1, dtype=torch.long)
            yield torch.cat([BOS * edge, body, EOS * edge], dim=1)


def line_batches(lines: list[list[int]], rows: int, rng):
    """Endless batches of lines of about the same length, padded."""
    lengths = np.array([len(line) for line in lines])
    while True:
        by_length = np.argsort(lengths + rng.uniform(-2, 2, len(lengths)), kind="stable")
        for index in rng.permutation(len(lines) // rows):
            chosen = [lines[i] for i in by_length[index * rows : (index + 1) * rows]]
            batch = torch.full((rows, max(map(len, chosen))), PAD)
            for row, line in enumerate(chosen):
                batch[row, : len(line)] = torch.tensor(line)
            yield batch


def mlm_loss(model, ids: torch.Tensor, masking: float, generator: torch.Generator) -> torch.Tensor:
    """BERT's masking: of the chosen tokens 80 % become <mask>, 10 % another token, 10 % stay."""
    chosen = (torch.rand(ids.shape, generator=generator) < masking) & (ids >= len(SPECIAL_TOKENS))
    fate = torch.rand(ids.shape, generator=generator)
    corrupted = torch.where(chosen & (fate < 0.8), MASK, ids)
    other = torch.randint(len(SPECIAL_TOKENS), model.config.vocab_size, ids.shape, generator=generator)
    corrupted = torch.where(chosen & (fate >= 0.9), other, corrupted)
    with torch.autocast("cpu", torch.bfloat16):
        hidden = model.roberta(corrupted, attention_mask=(ids != PAD).long()).last_hidden_state
        logits = model.lm_head(hidden[chosen])  # (chosen, vocabulary)
    return torch.nn.functional.cross_entropy(logits.float(), ids[chosen])


@torch.no_grad()
def held_out_loss(model, batches, masking) -> float:
    model.eval()
    losses = [mlm_loss(model, ids, masking, torch.Generator().manual_seed(i)).item() for i, ids in enumerate(batches)]
    model.train()
    return round(sum(losses) / len(losses), 4)


def save(model, tokenizer, output: Path, record: dict) -> None:
    """The encoder alone, in float16; `from_pretrained` makes float32 of it, as its config says."""
    output.mkdir(parents=True, exist_ok=True)
    encoder = {
        name.removeprefix("roberta."): tensor.detach().half().contiguous()
        for name, tensor in model.state_dict().items()
        if name.startswith("roberta.") and not name.endswith(("position_ids", "token_type_ids"))
    }
    save_file(encoder, output / "model.safetensors", metadata={"format": "pt"})
    config = RobertaConfig(**model.config.to_dict())  # dropout 0: the encoder is too small to overfit its task
    config.architectures, config.dtype = ["RobertaModel"], "float32"
    config.save_pretrained(output)
    tokenizer.save_pretrained(output)
    (output / "training.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    rng, generator = np.random.default_rng(arguments.seed), torch.Generator().manual_seed(arguments.seed)
    paragraphs, lines = read_paragraphs(arguments.text), generate_text(arguments.num_lines, arguments.seed)
    tokenizer = train_tokenizer(paragraphs + lines[: len(lines) // 4], arguments)
    encoded = tokenizer(paragraphs, add_special_tokens=False, verbose=False)["input_ids"]
    text = np.concatenate([np.array([*ids, EOS], dtype=np.int16) for ids in encoded])
    line_ids = tokenizer(lines, truncation=True, max_length=arguments.length)["input_ids"]
    cut = len(text) * 99 // 100
    held_out = {
        "text": [b for b, _ in zip(text_batches(text[cut:], 16, arguments.length, rng), range(8))],
        "lines": [b for b, _ in zip(line_batches(line_ids[:1000], 50, rng), range(16))],
    }
    batches = {
        "text": text_batches(text[:cut], arguments.text_rows, arguments.length, rng),
        "lines": line_batches(line_ids[1000:], arguments.line_rows, rng),
    }
    shape = {"hidden_size": arguments.hidden_size, "intermediate_size": 4 * arguments.hidden_size}
    shape |= {"num_hidden_layers": arguments.layers, "num_attention_heads": arguments.heads, "type_vocab_size": 1}
    shape |= {"vocab_size": len(tokenizer), "max_position_embeddings": arguments.length + 2}
    special = {"bos_token_id": BOS, "pad_token_id": PAD, "eos_token_id": EOS}
    config = RobertaConfig(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, **shape, **special)
    config._attn_implementation = "eager"  # at these lengths faster than sdpa on a CPU
    model = RobertaForMaskedLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=arguments.learning_rate, weight_decay=0.01, betas=(0.9, 0.98))
    scheduler = get_cosine_schedule_with_warmup(optimizer, arguments.warmup_steps, arguments.steps)
    print(f"{model.num_parameters():,} parameters, {len(text):,} tokens of text, {len(line_ids):,} lines", flush=True)
    started, tokens, recent = time.time(), dict.fromkeys(batches, 0), {name: [] for name in batches}
    for step in range(1, arguments.steps + 1):
        for name, source in batches.items():
            ids = next(source)
            loss = mlm_loss(model, ids, arguments.masking, generator)
            loss.backward()
            tokens[name] += int((ids != PAD).sum())
            recent[name] = [*recent[name][-49:], loss.item()]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        means = lambda digits: {name: round(sum(values) / len(values), digits) for name, values in recent.items()}
        if step % 50 == 0:
            print(f"step {step} {time.time() - started:.0f} s {means(3)}", flush=True)
        if step % 300 == 0 or step == arguments.steps:
            settings = {k: v for k, v in vars(arguments).items() if k not in ("text", "output")}
            libraries = {library.__name__: library.__version__ for library in (torch, transformers, tokenizers)}
            record = {
                "command": " ".join([COMMAND, *(f"--{name} {value}" for name, value in settings.items())]),
                **{"parameters": model.num_parameters(), "steps_done": step, "tokens": tokens},
                "training_loss": means(4),
                "held_out_loss": {name: held_out_loss(model, b, arguments.masking) for name, b in held_out.items()},
                "seconds": round(time.time() - started),
                "versions": {"python": platform.python_version(), **libraries},
            }
            save(model, tokenizer, arguments.output, record)
            print(f"saved, held out {record['held_out_loss']}", flush=True)


if __name__ == "__main__":
    main()
