"""Token ids of converted models in libllama against those of ``tokenizers`` and ``sentencepiece``."""

from __future__ import annotations

import io
import json
import os
import random
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import sentencepiece
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

import arenite.examples.assistant
from arenite.benchmarks import shapes
from arenite.quantize import convert, plan
from arenite.quantize.pretokenizers import KNOWN, LLAMA3, QWEN2, QWEN35
from arenite.quantize.vocabulary import END_IDS
from arenite.runtime.errors import BadModel, UnsupportedModel

from . import checkpoints
from .llama_reference import Libllama, libllama

if TYPE_CHECKING:
    from collections.abc import Callable

TEXTS = [
    "Hello world", " leading and trailing ", "  two  spaces   three    four", "\ttabs\t\tand\r\nline\n\n\nbreaks \n ",
    "I'll say we've HE'D they'Re o'clock 'tis", "3 33 333 3333 33333 3.14159 1,000,000 -5 2nd",
    'x=1;y[2]={\'a\':"b"}//!?#$%&*()', "caf\xe9 na\xefve \xfcber \xc5ngstr\xf6m stra\xdfe",
    "\u041f\u0440\u0438\u0432\u0435\u0442, \u043c\u0438\u0440!",
    "\u0393\u03b5\u03b9\u03ac \u03c3\u03bf\u03c5 \u039a\u03cc\u03c3\u03bc\u03b5",
    "\u4f60\u597d\uff0c\u4e16\u754c\u3002\u6211\u60f3\u5728apple\u5de5\u4f5c1314151\u5929\uff5e",
    "\u3053\u3093\u306b\u3061\u306f\u4e16\u754c", "\uc548\ub155\ud558\uc138\uc694",
    "\u0645\u0631\u062d\u0628\u0627 \u0628\u0627\u0644\u0639\u0627\u0644\u0645",
    "\u0928\u092e\u0938\u094d\u0924\u0947 \u0926\u0941\u0928\u093f\u092f\u093e",
    "\U0001f680 (normal) \U0001f636\u200d\U0001f32b\ufe0f \u2705 \U0001f999\U0001f999 \U0001f1e9\U0001f1ea",
    "\u1780\u17b6\u1793\u17cb\u178f\u17c2\u1796\u17b7\u179f\u17c1\u179f", "\xb2\xbd\u2167 \u0661\u0662\u0663",
    "a\xa0b\u2003c\u3000d", '------======= ``````` """"......!!!!!!??????',
    "<|im_start|>user\nturn on the light<|im_end|>\n<|im_start|>assistant\n",
    "the quick brown fox jumps over the lazy dog", '{"action": "set", "device": "kitchen.light", "value": 0.5}',
]

ASSISTANT = Path(arenite.examples.assistant.__file__).parent / "model"
SIMPLE = [text for text in TEXTS if text.isascii() and "<|" not in text]


def probes() -> list[str]:
    """Return more than a hundred texts: those above, and seeded mixtures of their pieces."""
    choose = random.Random(7)
    pieces = [piece for text in TEXTS for piece in (text, *text.split(" "), text[: len(text) // 2])]
    gaps = ("", " ", "\n", "  ")
    mixed = ("".join(choose.choice(gaps) + choose.choice(pieces) for _ in range(6)) for _ in range(120))
    return [*TEXTS, *mixed]


def compare(model: Libllama, encode: Callable[[str], list[int]], without: str = "\0") -> None:
    texts = [text for text in probes() if without not in text]
    assert len(texts) >= 100
    assert [text for text in texts if model.tokens(text) != encode(text)] == []


def split(regex: str) -> Any:
    cut = pre_tokenizers.Split(tokenizers.Regex(regex), "isolated")
    return pre_tokenizers.Sequence([cut, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def words(*before: Any) -> Any:
    return pre_tokenizers.Sequence([*before, pre_tokenizers.ByteLevel(add_prefix_space=False)])


CUTS: dict[str, Callable[[], Any]] = {
    "qwen2": lambda: split(QWEN2), "llama-bpe": lambda: split(LLAMA3), "qwen35": lambda: split(QWEN35),
    "gpt-2": words, "smollm": lambda: words(pre_tokenizers.Digits(individual_digits=True)),
}


def trained(folder: Path, cut: Any, *, ignore_merges: bool = False) -> tokenizers.Tokenizer:
    """Put a tokenizer that was trained on the probes into a checkpoint: fewer tokens than its embedding has rows."""
    made = tokenizers.Tokenizer(models.BPE(ignore_merges=ignore_merges))
    made.pre_tokenizer, made.decoder = cut, decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=480, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=list(shapes.SPECIAL), show_progress=False,
    )
    made.train_from_iterator(TEXTS * 3, trainer)
    made.add_tokens(["<light>"])
    made.save(str(folder / "tokenizer.json"))
    checkpoints.edit(folder / "config.json", bos_token_id=0, eos_token_id=2)
    (folder / "generation_config.json").unlink()
    return made


def test_a_generated_vocabulary(tmp_path: Path) -> None:
    folder = checkpoints.checkpoint("tiny")
    reference = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    with libllama(checkpoints.gguf_file(), vocab_only=True) as model:
        compare(model, lambda text: reference.encode(text, add_special_tokens=False).ids)
    big = shapes.make(shapes.Shape(64, 1, 4, 2, 64, 32000, 256), tmp_path / "big", dtype="f16")
    reference = tokenizers.Tokenizer.from_file(str(big / "tokenizer.json"))
    assert reference.get_vocab_size() == 32000
    with libllama(convert(big, tmp_path / "big.gguf").path, vocab_only=True) as model:
        compare(model, lambda text: reference.encode(text, add_special_tokens=False).ids)


@pytest.mark.parametrize("name", CUTS)
def test_every_known_cut(tmp_path: Path, name: str) -> None:
    assert set(CUTS) == set(KNOWN.values())
    folder = checkpoints.copy(tmp_path / "m")
    reference = trained(folder, CUTS[name](), ignore_merges=name == "llama-bpe")
    with libllama(convert(folder, tmp_path / "m.gguf").path, vocab_only=True) as model:
        assert model.metadata("tokenizer.ggml.pre") == name
        compare(model, lambda text: reference.encode(text, add_special_tokens=False).ids)
        text = "a<light>b<|im_end|>"
        assert model.tokens(text) == reference.encode(text, add_special_tokens=False).ids


def test_merges_as_pairs_and_as_strings_make_the_same_file(tmp_path: Path) -> None:
    first, second = checkpoints.copy(tmp_path / "a" / "m"), checkpoints.copy(tmp_path / "b" / "m")
    document = json.loads((first / "tokenizer.json").read_text())
    assert isinstance(document["model"]["merges"][0], str)
    document["model"]["merges"] = [merge.split(" ") for merge in document["model"]["merges"]]
    (second / "tokenizer.json").write_text(json.dumps(document))
    files = [convert(folder, folder.parent / "m.gguf").path.read_bytes() for folder in (first, second)]
    assert files[0] == files[1]


def test_an_unknown_cut_is_refused_and_can_be_named(tmp_path: Path) -> None:
    folder = checkpoints.copy(tmp_path / "m")
    trained(folder, split(QWEN2 + r"|\p{Han}"))
    with pytest.raises(UnsupportedModel, match="--pre NAME"):
        convert(folder, tmp_path / "m.gguf")
    with libllama(convert(folder, tmp_path / "m.gguf", pre="qwen2").path, vocab_only=True) as model:
        assert model.metadata("tokenizer.ggml.pre") == "qwen2"


def test_every_end_is_known(tmp_path: Path) -> None:
    folder = checkpoints.copy(tmp_path / "m")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [300, 509, 301, 302]}))
    done = convert(folder, tmp_path / "m.gguf")
    assert done.warnings == ("llama.cpp does not stop at 'ev'",)
    with libllama(done.path, vocab_only=True) as model:
        assert [token for token in range(512) if model.ends(token)] == [300, 301, 509, 511]
        assert model.metadata("tokenizer.ggml.eos_token_id") == "511"
        assert model.metadata(END_IDS) == "[511, 300, 509, 301, 302]"


@pytest.mark.parametrize(
    ("files", "added"),
    [
        ({}, False),
        ({"tokenizer_config.json": {"add_bos_token": True}}, True),
        ({"tokenizer.json": {"post_processor": {"type": "Sequence", "processors": [
            {"type": "ByteLevel"},
            {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<|endoftext|>"}}]},
        ]}}}, True),
    ],
)
def test_whether_bos_is_added(tmp_path: Path, files: dict[str, dict[str, Any]], added: bool) -> None:
    folder = checkpoints.copy(tmp_path / "m")
    for name, changes in files.items():
        checkpoints.edit(folder / name, **changes)
    with libllama(convert(folder, tmp_path / "m.gguf").path, vocab_only=True) as model:
        assert (model.tokens("a", add_special=True) == [509, *model.tokens("a")]) is added


@pytest.mark.parametrize("form", ["list", "jinja"])
def test_where_chat_templates_come_from(tmp_path: Path, form: str) -> None:
    folder = checkpoints.copy(tmp_path / "m")
    several = [{"name": "tools", "template": "no"}, {"name": "default", "template": "list"}]
    checkpoints.edit(folder / "tokenizer_config.json", chat_template=several)
    if form == "jinja":
        (folder / "chat_template.jinja").write_text("jinja")
    with libllama(convert(folder, tmp_path / "m.gguf").path, vocab_only=True) as model:
        assert model.metadata("tokenizer.chat_template") == form


def sentencepiece_checkpoint(folder: Path, **options: Any) -> sentencepiece.SentencePieceProcessor:
    """Put a SentencePiece model that was trained on the probes into a checkpoint, in place of its tokenizer."""
    made = io.BytesIO()
    settings: dict[str, Any] = {
        "model_type": "bpe", "vocab_size": 480, "byte_fallback": True, "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False, "allow_whitespace_only_pieces": True, "character_coverage": 0.98,
        "split_digits": True, "num_threads": 1, "minloglevel": 2, "hard_vocab_limit": False,
    }
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(SIMPLE), model_writer=made, **(settings | options))
    (folder / "tokenizer.json").unlink()
    (folder / "generation_config.json").unlink()
    (folder / "tokenizer.model").write_bytes(made.getvalue())
    (folder / "tokenizer_config.json").write_text("{}")
    checkpoints.edit(folder / "config.json", bos_token_id=1, eos_token_id=2)
    return sentencepiece.SentencePieceProcessor(model_proto=made.getvalue())


@pytest.mark.parametrize("prefix", [True, False])
def test_sentencepiece(tmp_path: Path, prefix: bool) -> None:
    folder = checkpoints.copy(tmp_path / "m")
    reference = sentencepiece_checkpoint(folder, add_dummy_prefix=prefix, user_defined_symbols=["<light>"])
    done = convert(folder, tmp_path / "m.gguf")
    assert done.warnings == ()
    with libllama(done.path, vocab_only=True) as model:
        compare(model, reference.encode)
        assert model.tokens("on <light>") == reference.encode("on <light>")
        assert model.tokens("a", add_special=True)[0] == reference.bos_id()
        assert model.ends(reference.eos_id())


def test_added_tokens_of_sentencepiece(tmp_path: Path) -> None:
    folder = checkpoints.copy(tmp_path / "m")
    reference = sentencepiece_checkpoint(folder)
    (folder / "added_tokens.json").write_text(json.dumps({"<|im_start|>": 480, "<beep>": 481, "<lost>": 512}))
    end = {"content": "<|im_end|>", "special": True}
    checkpoints.edit(folder / "tokenizer_config.json", added_tokens_decoder={"482": end}, eos_token=end)
    done = convert(folder, tmp_path / "m.gguf")
    assert done.warnings == ("added token '<lost>' has the id 512, outside of the embedding: left out",)
    with libllama(done.path, vocab_only=True) as model:
        assert model.tokens("<|im_start|>") == [480]
        assert model.tokens("a<beep>")[-1] == 481
        assert model.ends(482)
        assert model.metadata("tokenizer.ggml.eos_token_id") == "482"
        compare(model, reference.encode, without="<|im")


def test_what_normalises_is_warned_about(tmp_path: Path) -> None:
    folder = checkpoints.copy(tmp_path / "m")
    sentencepiece_checkpoint(folder, normalization_rule_name="nmt_nfkc", remove_extra_whitespaces=True)
    warnings = convert(folder, tmp_path / "m.gguf").warnings
    assert [warning.split(" ")[1] for warning in warnings] == ["normalises", "removes"]


@pytest.mark.parametrize("options", [{"model_type": "unigram"}, {"byte_fallback": False}])
def test_other_sentencepiece_models_are_refused(tmp_path: Path, options: dict[str, Any]) -> None:
    folder = checkpoints.copy(tmp_path / "m")
    sentencepiece_checkpoint(folder, **options)
    with pytest.raises(UnsupportedModel, match=r"tokenizer\.model"):
        convert(folder, tmp_path / "m.gguf")


def test_flipped_bytes_of_a_sentencepiece_model(tmp_path: Path) -> None:
    folder, choose = checkpoints.copy(tmp_path / "m"), random.Random(3)
    sentencepiece_checkpoint(folder)
    whole = (folder / "tokenizer.model").read_bytes()
    for _ in range(100):
        data = bytearray(whole)
        data[choose.randrange(len(data))] = choose.randrange(256)
        (folder / "tokenizer.model").write_bytes(data[: choose.choice((None, None, choose.randrange(len(data))))])
        with suppress(BadModel, UnsupportedModel):
            plan(folder)


def test_two_tokens_of_one_text_are_refused(tmp_path: Path) -> None:
    folder = checkpoints.copy(tmp_path / "m")
    document = json.loads((folder / "tokenizer.json").read_text())
    document["added_tokens"][0]["content"] = "a"
    checkpoints.edit(folder / "tokenizer.json", added_tokens=document["added_tokens"])
    with pytest.raises(BadModel, match="two tokens with the text 'a'"):
        convert(folder, tmp_path / "m.gguf")


@pytest.mark.reference
@pytest.mark.skipif("ARENITE_REFERENCE_MODELS" not in os.environ, reason="ARENITE_REFERENCE_MODELS names no folder")
def test_stories260k(tmp_path: Path) -> None:
    folder = Path(os.environ["ARENITE_REFERENCE_MODELS"]) / "stories260k"
    reference = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    with libllama(convert(folder, tmp_path / "m.gguf").path, vocab_only=True) as model:
        compare(model, reference.encode)


def test_the_assistant(tmp_path: Path) -> None:
    reference = tokenizers.Tokenizer.from_file(str(ASSISTANT / "tokenizer.json"))
    with libllama(convert(ASSISTANT, tmp_path / "m.gguf").path, vocab_only=True) as model:
        compare(model, lambda text: reference.encode(text, add_special_tokens=False).ids)
