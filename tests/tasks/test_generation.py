"""Is a text decoded as it should be, whatever the batch, the beams and the processes?"""

import itertools
import math

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from transformers import GenerationConfig, GPT2LMHeadModel

from autolora_trainer.tasks import nlg
from autolora_trainer.tasks.generation import NoRepeatInText, generate_texts, line_break_tokens
from tests.helpers.models import byte_gpt2, byte_llama, byte_tokenizer, padded


class Scripted(GPT2LMHeadModel):
    """A GPT-2 whose next token depends on the last one alone, by a table of logits."""

    def forward(self, input_ids=None, **kwargs):
        output = super().forward(input_ids=input_ids, **kwargs)
        output.logits = self.table[input_ids][:, -output.logits.shape[1] :]
        return output


def scripted(tokenizer, text, vocabulary=257):
    """Writes `text`, whose letters are all different, whatever the prompt; then ends."""
    model = Scripted(byte_gpt2(vocab_size=vocabulary).config)
    tokens = [tokenizer.bos_token_id, *tokenizer(text)["input_ids"], tokenizer.eos_token_id]
    model.table = torch.zeros(vocabulary, vocabulary)
    for token, following in zip(tokens, tokens[1:]):
        model.table[token] = 0.0
        model.table[token, following] = 9.0
    return model


PROMPTS = [
    "a",
    "name : Blue Spice | Type : pub",
    "xyxyxy",
    "b",
    "name : Café",
    "cd",
    "b",
    "The quick brown fox jumps over it",
]


@pytest.mark.parametrize("num_beams", [1, 4])
@pytest.mark.parametrize("build", [byte_gpt2, byte_llama])
def test_texts_do_not_depend_on_the_batch(build, num_beams):
    tokenizer = padded(byte_tokenizer(llama=build is byte_llama))
    model, prompts = build(), nlg.encode_prompts(PROMPTS, tokenizer)
    settings = {"num_beams": num_beams, "max_new_tokens": 12, "one_line": False, "progress": False}
    alone, together, mixed = (
        generate_texts(model, tokenizer, prompts, batch_size=size, **settings) for size in (1, 8, 3)
    )
    assert alone == together == mixed and len(set(alone)) > 4 and alone[3] == alone[6]
    # and they are what a plain loop writes, without padding, cache or batches
    if num_beams == 1:
        for prompt, text in zip(prompts, alone):
            assert tokenizer.decode(greedy(model, prompt, 12, 4, tokenizer.eos_token_id)).strip() == text


def greedy(model, prompt, count, size, end):
    """`count` most probable tokens, none of which repeats an n-gram of them; up to the end token."""
    text = []
    with torch.no_grad():
        for _ in range(count):
            scores = model(torch.tensor([prompt + text])).logits[0, -1]
            for start in range(len(text) - size + 1):
                if text[start : start + size - 1] == text[len(text) - size + 1 :]:
                    scores[text[start + size - 1]] = -math.inf
            text.append(scores.argmax().item())
            if text[-1] == end:
                return text[:-1]
    return text


def test_beam_search_finds_the_best_text_of_all():
    """Five tokens, texts of up to three, enough beams for all of them: log probability over length ** 0.8."""
    tokenizer, size = padded(byte_tokenizer()), 257
    model = Scripted(byte_gpt2().config)
    letters = tokenizer("abcd")["input_ids"] + [256]
    model.table = torch.full((size, size), -1e4)
    for token in letters:
        model.table[token, letters] = torch.randn(5, generator=torch.Generator().manual_seed(token))
    model.table[256, 256] = -3.0
    log = model.table.log_softmax(-1)
    best, expected = -math.inf, None
    for length in (1, 2, 3):
        for text in itertools.product(letters, repeat=length):
            ends = text[-1] == 256
            if 256 in text[:-1] or (not ends and length < 3):
                continue
            score = sum(log[a, b].item() for a, b in zip((256, *text), text)) / length**0.8
            if score > best:
                best, expected = score, tokenizer.decode(text[:-1] if ends else text)
    settings = {
        "num_beams": 60,
        "no_repeat_ngram_size": 0,
        "max_new_tokens": 3,
        "length_penalty": 0.8,
        "progress": False,
    }
    assert generate_texts(model, tokenizer, [[3, 256]], **settings) == [expected]


def test_only_the_generated_text_is_searched_for_repetitions():
    processor = NoRepeatInText(2, prompt_length=3)
    scores = torch.zeros(2, 6)
    banned = processor(torch.tensor([[1, 2, 1, 2, 3, 2], [1, 2, 1, 4, 5, 4]]), scores).isinf()
    assert banned.nonzero().tolist() == [[0, 3], [1, 5]]  # after 2 came 3, after 4 came 5; the prompt's "1 2" is free
    assert not processor(torch.tensor([[1, 2, 1, 2]]), scores[:1]).isinf().any()
    assert NoRepeatInText(1, 1)(torch.tensor([[1, 2, 2]]), scores[:1]).isinf().nonzero().tolist() == [[0, 2]]
    assert not NoRepeatInText(0, 1)(torch.tensor([[1, 2, 2]]), scores[:1]).isinf().any()


def test_a_name_of_the_prompt_can_be_written():
    tokenizer = padded(byte_tokenizer())
    model, prompts = scripted(tokenizer, "abcdefgh"), nlg.encode_prompts(["abcdefgh abcdefgh"], tokenizer)
    assert generate_texts(model, tokenizer, prompts, num_beams=1, progress=False) == ["abcdefgh"]
    model.table[tokenizer("h")["input_ids"][0]] = model.table[256]  # and then over again: "abcd" must not come twice
    text = generate_texts(model, tokenizer, prompts, num_beams=1, max_new_tokens=14, progress=False)[0]
    assert text.startswith("abcdefghabc") and "abcd" not in text[8:]


@pytest.mark.parametrize("num_beams", [1, 3])
def test_a_text_ends_at_its_end_or_at_a_line_break(num_beams):
    tokenizer = padded(byte_tokenizer())
    model, settings = scripted(tokenizer, " ab\ncd"), {"num_beams": num_beams, "progress": False}
    prompts = nlg.encode_prompts(["x", "longer"], tokenizer)
    assert generate_texts(model, tokenizer, prompts, **settings) == ["ab", "ab"]
    assert generate_texts(model, tokenizer, prompts, one_line=False, **settings) == ["ab\ncd", "ab\ncd"]
    assert generate_texts(model, tokenizer, prompts, max_new_tokens=2, **settings) == ["a", "a"]
    model = scripted(tokenizer, " \tab\ncd\r")
    assert generate_texts(model, tokenizer, prompts, one_line=False, **settings) == ["ab\ncd"] * 2
    settings["verbatim"] = True  # but for the blank that training puts before a text
    assert generate_texts(model, tokenizer, prompts, one_line=False, **settings) == ["\tab\ncd\r"] * 2
    assert generate_texts(model, tokenizer, prompts, **settings) == ["\tab"] * 2
    assert generate_texts(model, tokenizer, [], **settings) == []
    assert [tokenizer.decode([token]) for token in line_break_tokens(tokenizer)] == ["\n"]


def test_a_line_break_within_a_token_ends_the_text_after_what_stands_before_it():
    tokenizer = padded(byte_tokenizer())
    tokenizer.add_tokens(["b.\n"])  # as in Llama 3's vocabulary
    model = scripted(tokenizer, "ab.\ncd", vocabulary=258)
    assert line_break_tokens(tokenizer)[-1] == 257
    assert generate_texts(model, tokenizer, [[5, 256]], num_beams=1, progress=False) == ["ab."]


def test_texts_stop_where_the_positions_of_the_model_end():
    tokenizer = padded(byte_tokenizer())
    model = byte_gpt2(n_positions=12)
    prompts = [[7] * length for length in (3, 9, 10, 11, 11)]
    settings = {"num_beams": 1, "max_new_tokens": 6, "one_line": False, "progress": False}
    generate = lambda size: generate_texts(model, tokenizer, prompts, batch_size=size, **settings)  # noqa: E731
    assert generate(1) == generate(8)
    for prompt in ([7] * 12, []):
        with pytest.raises(ValueError, match=f"between 1 and 11 tokens, got {len(prompt)}"):
            generate_texts(model, tokenizer, [prompt], progress=False)


def test_decoding_leaves_the_model_as_it_was_and_takes_nothing_from_its_checkpoint():
    tokenizer = padded(byte_tokenizer())
    model = scripted(tokenizer, "abc")
    settings = GenerationConfig(
        do_sample=True, temperature=9.0, repetition_penalty=50.0, max_length=3, eos_token_id=66
    )
    model.generation_config = settings
    adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", target_modules=["c_attn"], fan_in_fan_out=True))
    adapted.train()
    model.transformer.h[0].eval()
    modes = [module.training for module in adapted.modules()]
    assert generate_texts(adapted, tokenizer, [[1, 256]], num_beams=1, progress=False) == ["abc"]
    assert [module.training for module in adapted.modules()] == modes and model.generation_config is settings
    assert torch.is_grad_enabled()


@pytest.mark.filterwarnings("error:Position ids are not supported")
def test_virtual_tokens_of_prompt_tuning_take_positions_and_no_padding():
    tokenizer = padded(byte_tokenizer())
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    model, prompts = get_peft_model(byte_gpt2(n_positions=40), config), nlg.encode_prompts(PROMPTS, tokenizer)
    settings = {"num_beams": 1, "max_new_tokens": 9, "one_line": False, "progress": False}
    alone, together = (generate_texts(model, tokenizer, prompts, batch_size=size, **settings) for size in (1, 8))
    assert alone == together and len(set(alone)) > 4


def test_processes_share_the_work_and_all_have_all_texts(monkeypatch):
    tokenizer = padded(byte_tokenizer())
    model, prompts = byte_gpt2(), nlg.encode_prompts(PROMPTS, tokenizer)
    settings = {"num_beams": 2, "max_new_tokens": 5, "progress": False, "one_line": False, "batch_size": 2}
    expected, shares, done = generate_texts(model, tokenizer, prompts, **settings), {}, {}
    for turn in range(2):  # the first turn collects the shares, the second hands them out
        for rank in (0, 1, 2):

            def gather(output, mine, rank=rank):
                shares[rank] = mine
                output[:] = [shares.get(other, {}) for other in (0, 1, 2)]

            with monkeypatch.context() as patch:
                patch.setattr(torch.distributed, "is_initialized", lambda: True)
                patch.setattr(torch.distributed, "get_rank", lambda rank=rank: rank)
                patch.setattr(torch.distributed, "get_world_size", lambda: 3)
                patch.setattr(torch.distributed, "all_gather_object", gather)
                try:
                    done[rank] = generate_texts(model, tokenizer, prompts, **settings)
                except KeyError:
                    assert turn == 0
    assert done == {0: expected, 1: expected, 2: expected}
    assert sorted(map(len, shares.values())) == [2, 3, 3]
