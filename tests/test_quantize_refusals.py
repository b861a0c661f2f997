"""What is wrong with a checkpoint or a request is said in one typed line, and nothing is left behind."""

from __future__ import annotations

import copy
import json
import random
import shutil
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arenite.quantize import convert, plan
from arenite.quantize.cli import convert as command
from arenite.quantize.weights import read_header
from arenite.runtime import console
from arenite.runtime.errors import BadModel, Error, InvalidRequest, MissingDependency, ModelNotFound, UnsupportedModel

from . import checkpoints

if TYPE_CHECKING:
    from collections.abc import Callable

    Change = Callable[[Path], object]

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


def config(**changes: Any) -> Change:
    return lambda folder: checkpoints.edit(folder / "config.json", **changes)


def weights(**changes: Any) -> Change:
    return lambda folder: checkpoints.edit_weights(folder, **changes)


def remove(name: str) -> Change:
    return lambda folder: (folder / name).unlink()


def put(name: str, data: bytes) -> Change:
    return lambda folder: (folder / name).write_bytes(data)


def cut(size: int) -> Change:
    return lambda folder: (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:size])


def append(data: bytes) -> Change:
    return lambda folder: (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes() + data)


def header(change: Callable[[dict[str, Any]], object]) -> Change:
    """Change the header of the weights file, which stays well-formed."""

    def edit(folder: Path) -> None:
        data = (folder / WEIGHTS).read_bytes()
        end = 8 + int.from_bytes(data[:8], "little")
        entries = json.loads(data[8:end])
        change(entries)
        text = json.dumps(entries).encode()
        (folder / WEIGHTS).write_bytes(len(text).to_bytes(8, "little") + text + data[end:])

    return edit


def entry(name: str, **changes: Any) -> Change:
    return header(lambda entries: entries[name].update(changes))


def tokenizer(change: Callable[[dict[str, Any]], object]) -> Change:
    def edit(folder: Path) -> None:
        values = json.loads((folder / "tokenizer.json").read_text())
        change(values)
        (folder / "tokenizer.json").write_text(json.dumps(values))

    return edit


def index(change: Callable[[dict[str, Any]], object]) -> Change:
    """Split the weights into two files and change the map of the index."""

    def edit(folder: Path) -> None:
        checkpoints.shard(folder, 2)
        values = json.loads((folder / INDEX).read_text())
        change(values["weight_map"])
        (folder / INDEX).write_text(json.dumps(values))

    return edit


NORM = "model.norm.weight"
FAR = np.full(64, 1e5, np.float32)
BAD = [
    ("config is no JSON", put("config.json", b"{"), BadModel, "config.json is not JSON"),
    ("config is not UTF-8", put("config.json", b'{"a": "\xff"}'), BadModel, "config.json is not JSON"),
    ("config is a list", put("config.json", b"[]"), BadModel, "not a JSON object"),
    ("config is deep", put("config.json", b"[" * 200_000), BadModel, "config.json is not JSON"),
    ("no config", remove("config.json"), BadModel, "no config.json"),
    ("no weights", remove(WEIGHTS), BadModel, "safe_serialization"),
    ("no tokenizer", remove("tokenizer.json"), UnsupportedModel, "neither tokenizer.json nor tokenizer.model"),
    ("no architecture", config(architectures=None), UnsupportedModel, "LlamaForCausalLM"),
    ("unknown architecture", config(architectures=["MambaForCausalLM"]), UnsupportedModel, "'MambaForCausalLM'"),
    ("already quantized", config(quantization_config={"bits": 4}), UnsupportedModel, "quantization_config"),
    ("other activation", config(hidden_act="gelu"), UnsupportedModel, "gelu"),
    ("other rope", config(rope_scaling={"type": "yarn", "factor": 2.0}), UnsupportedModel, "'yarn'"),
    ("rope without bounds", config(rope_scaling={"rope_type": "llama3", "factor": 8.0}), BadModel, "is missing"),
    ("heads do not divide", config(num_attention_heads=3), BadModel, "do not fit together"),
    ("size is text", config(hidden_size="64"), BadModel, "hidden_size is '64'"),
    ("size is missing", config(intermediate_size=None), BadModel, "intermediate_size is missing"),
    ("size is huge", config(num_hidden_layers=2**40), BadModel, "num_hidden_layers"),
    ("more layers", config(num_hidden_layers=2**31 - 1), BadModel, "layers.2.input_layernorm.weight is missing"),
    ("fewer layers", config(num_hidden_layers=1), BadModel, "layers.1.input_layernorm.weight (and 8 more)"),
    ("epsilon is not a number", config(rms_norm_eps=float("nan")), BadModel, "rms_norm_eps is nan"),
    ("large vocabulary", config(vocab_size=600), BadModel, "embed_tokens.weight has the shape [512, 64]"),
    ("missing tensor", weights(model__norm__weight=None), BadModel, "model.norm.weight is missing"),
    ("missing output matrix", config(tie_word_embeddings=False), BadModel, "lm_head.weight is missing"),
    ("surplus tensor", weights(model__extra=np.ones(2, np.float32)), BadModel, "model.extra is no tensor of"),
    ("odd shape", weights(model__norm__weight=np.ones(65, np.float32)), BadModel, "norm.weight has the shape [65]"),
    ("integers", weights(model__norm__weight=np.ones(64, np.int32)), UnsupportedModel, "stored as I32"),
    ("not numbers", weights(model__norm__weight=np.full(64, np.nan, np.float32)), BadModel, "not finite"),
    ("infinity", weights(model__norm__weight=np.full(64, -np.inf, np.float32)), BadModel, "not finite"),
    ("empty file", put(WEIGHTS, b""), BadModel, "is empty"),
    ("short file", put(WEIGHTS, b"abc"), BadModel, "not a safetensors file"),
    ("cut in the header", cut(500), BadModel, "not a safetensors file"),
    ("cut in the data", cut(20_000), BadModel, "truncated"),
    ("more data", append(b"1234"), BadModel, "4 bytes that belong"),
    ("header is a list", put(WEIGHTS, (2).to_bytes(8, "little") + b"[]"), BadModel, "not a JSON object"),
    ("overlap", entry(NORM, data_offsets=[0, 256]), BadModel, "overlaps its neighbour"),
    ("out of range", entry(NORM, data_offsets=[10**15, 10**15 + 256]), BadModel, "leaves a hole"),
    ("backwards", entry(NORM, dtype="I8", data_offsets=[256, 0]), BadModel, "overlaps"),
    ("negative", entry(NORM, data_offsets=[-256, 0]), BadModel, "whole numbers"),
    ("size and shape differ", entry(NORM, shape=[65]), BadModel, "does not take 256 bytes"),
    ("shape is text", entry(NORM, shape="64"), BadModel, "not a list"),
    ("no dtype", entry(NORM, dtype=None), BadModel, "dtype is missing"),
    ("shard outside", index(lambda names: names.update({NORM: "../x.safetensors"})), BadModel, "not a file of this"),
    ("shard is missing", index(lambda names: names.update({NORM: "x.safetensors"})), BadModel, "x.safetensors"),
    ("not in its shard", index(lambda names: names.update({"model.more": names[NORM]})), BadModel, "none of its files"),
    ("not in the index", index(lambda names: names.pop(NORM)), BadModel, "expects in None"),
    ("other tokenizer", tokenizer(lambda t: t["model"].update(type="Unigram")), UnsupportedModel, "'Unigram'"),
    ("was SentencePiece", tokenizer(lambda t: t["model"].update(byte_fallback=True)), UnsupportedModel, "original"),
    ("marks words", tokenizer(lambda t: t["model"].update(end_of_word_suffix="_")), UnsupportedModel, "parts of"),
    ("folds case", tokenizer(lambda t: t.update(normalizer={"type": "Lowercase"})), UnsupportedModel, "--pre"),
    ("does not cut", tokenizer(lambda t: t.update(pre_tokenizer=None)), UnsupportedModel, "--pre NAME"),
    ("id outside", tokenizer(lambda t: t["model"]["vocab"].update(zz=512)), BadModel, "'zz' the id 512"),
    ("id is text", tokenizer(lambda t: t["model"]["vocab"].update(zz="1")), BadModel, "id of 'zz'"),
    ("merge of three", tokenizer(lambda t: t["model"]["merges"].append("a b c")), BadModel, "the merge 'a b c'"),
    ("merge of unknown", tokenizer(lambda t: t["model"]["merges"].append(["qq", "zz"])), BadModel, "the merge"),
    ("no merges", tokenizer(lambda t: t["model"].update(merges=[])), BadModel, "no merges"),
    ("added token is a number", tokenizer(lambda t: t["added_tokens"].append(5)), BadModel, "not an added token"),
    ("template is not UTF-8", put("chat_template.jinja", b"\xff"), BadModel, "chat_template.jinja can not be read"),
    ("no SentencePiece model", put("tokenizer.model", b"\x0a\xff"), BadModel, "not a SentencePiece model"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "error", "says"), [case[1:] for case in BAD], ids=[case[0] for case in BAD])
def test_bad_checkpoints(tmp_path: Path, change: Change, error: type[Error], says: str) -> None:
    folder, out = checkpoints.copy(tmp_path / "m"), tmp_path / "out"
    out.mkdir()
    change(folder)
    with pytest.raises(error) as caught:
        convert(folder, out / "m.gguf", type="f16")
    assert type(caught.value) is error
    assert says in str(caught.value)
    assert len(console.one_line(str(caught.value))) < 400
    assert list(out.iterdir()) == []


def test_nothing_ends_a_text(tmp_path: Path) -> None:
    folder = checkpoints.copy(tmp_path / "m", eos_token_id=None)
    (folder / "generation_config.json").unlink()
    (folder / "tokenizer_config.json").unlink()
    with pytest.raises(BadModel, match="eos_token_id"):
        plan(folder)


def test_values_too_large_for_f16(tmp_path: Path) -> None:
    folder = checkpoints.copy(tmp_path / "m")
    checkpoints.edit_weights(folder, **{"model.embed_tokens.weight": np.full((512, 64), 1e5, np.float32)})
    with pytest.raises(BadModel, match=r"token_embd.weight holds 1e\+05, too large for f16: convert with --type f32"):
        convert(folder, tmp_path / "m.gguf", type="f16")
    assert convert(folder, tmp_path / "m.gguf", type="f32").tensors == {"f32": 20}


@pytest.mark.parametrize(
    ("source", "error", "says"),
    [
        ("nowhere", ModelNotFound, "there is no folder nowhere: give a local"),
        ("meta-llama/Llama-3.2-1B", ModelNotFound, "later version"),
        (__file__, BadModel, "is a file"),
        ("~nobody-here/x", ModelNotFound, "no folder"),
        ("x" * 300, ModelNotFound, "no folder"),
        ("", BadModel, "config.json"),
    ],
)
def test_what_is_no_folder(tmp_path: Path, source: str, error: type[Error], says: str) -> None:
    with pytest.raises(error, match=says):
        convert(source, tmp_path / "m.gguf")


def test_outputs_that_can_not_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, existing = checkpoints.checkpoint(), tmp_path / "m.gguf"
    existing.write_text("mine")
    refused = {existing: "exists already", tmp_path: "is a folder", tmp_path / "no" / "m.gguf": "no folder"}
    for out, says in refused.items():
        with pytest.raises(InvalidRequest, match=says):
            convert(source, out)
    with pytest.raises(InvalidRequest, match="not a type"):
        convert(source, tmp_path / "n.gguf", type="q9")
    for length in (250, 300):  # with .partial the first one is too long for a file name, too
        with pytest.raises(InvalidRequest, match="can not be written: File name too long"):
            convert(source, tmp_path / ("n" * length))
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 1))
        with pytest.raises(InvalidRequest, match="1 B free"):
            convert(source, tmp_path / "n.gguf")
    assert existing.read_text() == "mine"
    assert list(tmp_path.iterdir()) == [existing]
    assert convert(source, existing, force=True).bytes == existing.stat().st_size > 4


@pytest.mark.parametrize("trouble", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_nothing_is_left_when_it_stops_half_way(tmp_path: Path, trouble: BaseException) -> None:
    existing = tmp_path / "m.gguf"
    existing.write_text("mine")
    heard = []

    def stop(done: int) -> None:
        heard.append(done)
        if len(heard) == 5:
            assert (tmp_path / "m.gguf.partial").exists()
            raise trouble

    with pytest.raises(KeyboardInterrupt if isinstance(trouble, KeyboardInterrupt) else InvalidRequest):
        convert(checkpoints.checkpoint(), existing, force=True, progress=stop)
    assert [path.name for path in tmp_path.iterdir()] == ["m.gguf"]
    assert existing.read_text() == "mine"


def test_without_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(MissingDependency, match=r"pip install 'arenite\[convert\]'"):
        convert(checkpoints.checkpoint(), tmp_path / "m.gguf")
    assert list(tmp_path.iterdir()) == []


def test_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    source = str(checkpoints.checkpoint(checkpoints.ODD))
    assert console.run(command, [source]) == 0
    said = capsys.readouterr()
    assert said.out.startswith("random-q8_0.gguf: ")
    assert "13 q8_0" in said.out
    assert said.err.count("stored as f16") == 1
    assert console.run(command, [source]) == 1
    assert capsys.readouterr().err.count("\n") == 1
    assert console.run(command, [source, "--to", "gguf", "--type", "q4_0", "--out", "q.gguf", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["path"] == "q.gguf"
    assert answer["bytes"] == (tmp_path / "q.gguf").stat().st_size
    assert console.run(command, [source, "--type", "q9"]) == console.USAGE
    assert console.run(command, ["org/name"]) == 1
    assert "later version" in capsys.readouterr().err


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2300), st.integers(0, 255)), min_size=1, max_size=6))
def test_flipped_bytes_of_a_weights_file(flips: list[tuple[int, int]]) -> None:
    data = bytearray((checkpoints.checkpoint() / WEIGHTS).read_bytes())
    for at, value in flips:
        data[at] = value
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / WEIGHTS
        path.write_bytes(data)
        with suppress(BadModel):
            read_header(path)


ODDITIES = [None, True, -1, 0, 3, 1e300, float("inf"), "x", "\ud800", [], [1], {}, {"a": 1}]


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json"])
def test_odd_values_in_a_json_file(tmp_path: Path, name: str) -> None:
    choose = random.Random(name)
    folder = checkpoints.copy(tmp_path / "m")
    whole = json.loads((folder / name).read_text())
    for _ in range(100):
        values = copy.deepcopy(whole)
        at, key = _somewhere(values, choose)
        at[key] = choose.choice(ODDITIES)
        (folder / name).write_text(json.dumps(values))
        try:
            convert(folder, tmp_path / "m.gguf", force=True)
        except Error:
            assert not (tmp_path / "m.gguf.partial").exists()


def _somewhere(values: Any, choose: random.Random) -> tuple[Any, Any]:
    while True:
        key = choose.choice(list(values)) if isinstance(values, dict) else choose.randrange(len(values))
        if not (isinstance(values[key], dict | list) and values[key] and choose.random() < 0.8):
            return values, key
        values = values[key]
