"""The assistant's tokenizer and chat template.

Byte-level BPE over all 256 bytes, with the pre-tokenizer that llama.cpp calls `qwen2`: contractions, words with at most
one leading mark, single digits, runs of marks, line ends, spaces. llama.cpp does no Unicode normalisation, nor do we.
"""

from __future__ import annotations

import itertools
import json
from typing import TYPE_CHECKING, Any

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from .corpus import training
from .home import compact
from .sentences import sentence

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

VOCABULARY = 1536
PAD, START, END, ACTION = SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|action|>")
# llama.cpp, src/llama-vocab.cpp, LLAMA_VOCAB_PRE_TYPE_QWEN2
QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}"
    "{% if schema is defined and schema is not none %}{{ '<|action|>' }}{% endif %}"
    "{% endif %}"
)


def prompt(messages: Sequence[dict[str, str]], *, schema: bool) -> str:
    """Return what `CHAT_TEMPLATE` renders for these messages with the generation prompt."""
    said = "".join(f"{START}{m['role']}\n{m['content']}{END}\n" for m in messages)
    return f"{said}{START}assistant\n{ACTION if schema else ''}"


def _texts(count: int, seed: int) -> Iterator[str]:
    """Yield what the model will read and write: every message and both answers of training examples."""
    for made in itertools.islice(training(seed), count):
        for message in made.messages:
            yield message["role"]
            yield message["content"]
        yield "assistant\n"
        yield compact(made.action)
        yield sentence(made.action)


def train(count: int = 80_000, seed: int = 1) -> Tokenizer:
    """Return a tokenizer trained on `count` training examples; the same seed gives the same tokenizer."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN2), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(count, seed), trainer)
    return tokenizer


def config(context: int) -> dict[str, Any]:
    """Return `tokenizer_config.json` for a model with that many positions."""
    return {
        "add_bos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": {
            str(i): {
                "content": text,
                "lstrip": False,
                "normalized": False,
                "rstrip": False,
                "single_word": False,
                "special": True,
            }
            for i, text in enumerate(SPECIAL)
        },
        "additional_special_tokens": [START, END, ACTION],
        "bos_token": None,
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "eos_token": END,
        "errors": "replace",
        "model_max_length": context,
        "pad_token": PAD,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": None,
    }


def save(tokenizer: Tokenizer, folder: Path, context: int) -> None:
    """Write tokenizer.json, tokenizer_config.json, chat_template.jinja and generation_config.json into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config(context), indent=2) + "\n")
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    generation = {"do_sample": False, "eos_token_id": [2, 0], "pad_token_id": 0}
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")
