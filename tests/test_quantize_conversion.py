"""What a converted model computes: against numpy, against ggml's quantizers, against a third party's checkpoint."""

from __future__ import annotations

import ctypes
import os
import tracemalloc
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gguf
import llama_cpp
import numpy as np
import pytest

from arenite.benchmarks import shapes
from arenite.quantize import convert, plan

from . import checkpoints
from .llama_reference import libllama, numpy_logits

if TYPE_CHECKING:
    from numpy.typing import NDArray

TOKENS = [5, 300, 42, 42, 7, 511, 100, 0, 256, 301, 17]


def agree(folder: Path, out: Path) -> None:
    """Convert to f32 and compare the logits of libllama with numpy's."""
    ours, wanted = convert(folder, out, type="f32").path, numpy_logits(folder, TOKENS)
    with libllama(ours) as model:
        difference = np.abs(model.logits(TOKENS) - wanted).max() / np.abs(wanted).max()
    assert difference < 1e-3


def read(path: Path) -> dict[str, Any]:
    return {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}


@pytest.mark.parametrize("kind", ["f32", "f16", "q8_0", "q4_0"])
def test_every_type_loads_and_stays_near_the_checkpoint(kind: str) -> None:
    wanted = numpy_logits(checkpoints.checkpoint(), TOKENS)
    with libllama(checkpoints.gguf_file(kind=kind)) as model:
        logits = model.logits(TOKENS)
    error = np.linalg.norm(logits - wanted) / np.linalg.norm(wanted)
    assert error < {"f32": 1e-5, "f16": 1e-3, "q8_0": 0.02, "q4_0": 0.2}[kind]


def test_untied_output_biases_and_head_size(tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    folder = checkpoints.copy(tmp_path / "m", tie_word_embeddings=False, head_dim=32)

    def some(*shape: int) -> NDArray[np.float32]:
        return random.standard_normal(shape, np.float32) * np.float32(0.1)

    changes = {"lm_head.weight": some(512, 64)}
    for layer in range(2):
        at = f"model.layers.{layer}."
        for name, rows in (("q", 128), ("k", 64), ("v", 64)):
            changes[f"{at}self_attn.{name}_proj.weight"] = some(rows, 64)
            changes[f"{at}self_attn.{name}_proj.bias"] = some(rows)
        changes |= {f"{at}self_attn.o_proj.weight": some(64, 128), f"{at}self_attn.o_proj.bias": some(64)}
        sizes = {"gate": 128, "up": 128, "down": 64}
        changes |= {f"{at}mlp.{name}_proj.bias": some(rows) for name, rows in sizes.items()}
    checkpoints.edit_weights(folder, **changes)
    agree(folder, tmp_path / "m.gguf")


@pytest.mark.parametrize("key", ["rope_scaling", "rope_parameters"])
def test_llama3_rope(tmp_path: Path, key: str) -> None:
    scaling = {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    folder = checkpoints.copy(tmp_path / "m", rope_scaling=scaling)
    for layer in range(2):  # strong keys and queries, so that positions matter
        at = f"model.layers.{layer}.self_attn."
        strong = np.random.default_rng(layer).standard_normal((96, 64), np.float32)
        checkpoints.edit_weights(folder, **{at + "q_proj.weight": strong[:64], at + "k_proj.weight": strong[64:]})
    wanted = numpy_logits(folder, TOKENS)
    if key == "rope_parameters":  # as transformers 5 writes it
        both = scaling | {"rope_theta": 10000.0}
        checkpoints.edit(folder / "config.json", rope_scaling=None, rope_theta=None, rope_parameters=both)
    with libllama(convert(folder, tmp_path / "m.gguf", type="f32").path) as model:
        assert np.abs(model.logits(TOKENS) - wanted).max() < 1e-4 * np.abs(wanted).max()
    checkpoints.edit(folder / "config.json", rope_scaling=None, rope_parameters=None, rope_theta=10000.0)
    assert np.abs(numpy_logits(folder, TOKENS) - wanted).max() > 1e-2 * np.abs(wanted).max()


@pytest.mark.parametrize("kind", ["q8_0", "q4_0"])
def test_quantized_bytes_are_those_of_ggml(kind: str) -> None:
    quantize = llama_cpp.llama_cpp._lib.ggml_quantize_chunk
    quantize.restype = ctypes.c_size_t
    quantize.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, *[ctypes.c_int64] * 3, ctypes.c_void_p]
    shape = shapes.Shape(hidden=288, layers=1, heads=6, kv_heads=6, ffn=768, vocab=512, context=256)
    plain = read(checkpoints.gguf_file(shape, "f32"))
    tensors = read(checkpoints.gguf_file(shape, kind))
    seen = set()
    for name, tensor in tensors.items():
        seen.add(tensor.tensor_type.name.lower())
        if tensor.tensor_type.name in ("Q8_0", "Q4_0"):
            values = np.ascontiguousarray(plain[name].data)
            wanted = np.zeros(tensor.n_bytes, np.uint8)
            size = quantize(int(tensor.tensor_type), values.ctypes.data, wanted.ctypes.data, 0, *values.shape, None)
            assert size == tensor.n_bytes
            assert bytes(tensor.data.tobytes()) == wanted.tobytes(), name
    assert seen == {"f32", "q8_0"} | {kind}


def test_bfloat16_and_float16_sources() -> None:
    exact = read(checkpoints.gguf_file(kind="f32"))
    for dtype in ("bf16", "f16"):
        for name, tensor in read(checkpoints.gguf_file(kind="f32", dtype=dtype)).items():
            values = exact[name].data
            if dtype == "f16":
                wanted = values.astype(np.float16).astype(np.float32)
            else:
                wanted = ((values.view(np.uint32) + 0x8000) & 0xFFFF0000).astype(np.uint32).view(np.float32)
            assert np.array_equal(tensor.data, wanted)


def test_shards_make_the_same_file(tmp_path: Path) -> None:
    whole, parts = checkpoints.copy(tmp_path / "a" / "m"), checkpoints.copy(tmp_path / "b" / "m")
    checkpoints.shard(parts, 3)
    first, second = (convert(folder, folder.parent / "m.gguf").path for folder in (whole, parts))
    assert first.read_bytes() == second.read_bytes()


def test_what_is_reported_is_what_was_written(tmp_path: Path) -> None:
    heard: list[int] = []
    source = checkpoints.checkpoint(checkpoints.ODD)
    done = convert(source, tmp_path / "m.gguf", type="q4_0", progress=heard.append)
    assert done.path == tmp_path / "m.gguf"
    assert done.bytes == done.path.stat().st_size
    assert done.tensors == {"q8_0": 1, "q4_0": 12, "f16": 2, "f32": 5}
    assert done.warnings == (
        "blk.0.ffn_down.weight and 1 more have rows that are no multiple of 32 values: stored as f16",
    )
    assert sum(heard) == plan(source, "q4_0").bytes
    assert [path.name for path in tmp_path.iterdir()] == ["m.gguf"]
    with libllama(done.path) as model:
        assert model.metadata("general.file_type") == "2"


def test_metadata(tmp_path: Path) -> None:
    folder = checkpoints.copy(tmp_path / "some-model")
    (folder / "README.md").write_text("---\nlanguage: en\nlicense: apache-2.0\n---\n# A model\n")
    with libllama(convert(folder, tmp_path / "m.gguf").path) as model:
        assert model.metadata("general.name") == "some-model"
        assert model.metadata("general.license") == "apache-2.0"
        assert model.metadata("general.file_type") == "7"
        assert model.metadata("general.quantization_version") == "2"
        assert model.metadata("llama.context_length") == "256"
        assert model.metadata("tokenizer.chat_template") == shapes.CHATML


def test_unused_and_tied_tensors_are_dropped(tmp_path: Path) -> None:
    folder = checkpoints.copy(tmp_path / "random")
    checkpoints.edit_weights(folder, lm_head__weight=np.ones((512, 64), np.float32))
    checkpoints.edit_weights(folder, **{"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(8, np.float32)})
    assert convert(folder, tmp_path / "m.gguf", type="f32").path.read_bytes() == checkpoints.gguf_file().read_bytes()


def test_memory_is_bounded_by_slabs_not_by_tensors(tmp_path: Path) -> None:
    shape = shapes.Shape(hidden=2048, layers=1, heads=16, kv_heads=4, ffn=4096, vocab=12000, context=256)
    source = shapes.make(shape, tmp_path / "wide")
    plan(source)  # imports
    tracemalloc.start()
    try:
        convert(source, tmp_path / "m.gguf", type="q4_0")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 48 << 20  # the embedding alone is 94 MiB as float32, 47 MiB as stored


def test_blocks_of_zeros_and_tiny_values(tmp_path: Path) -> None:
    folder = checkpoints.copy(tmp_path / "m")
    values = np.zeros((512, 64), np.float32)
    values[:, 40] = np.float32(1e-42)
    checkpoints.edit_weights(folder, **{"model.embed_tokens.weight": values})
    for kind in ("q8_0", "q4_0"):
        convert(folder, tmp_path / f"{kind}.gguf", type=kind)


@pytest.mark.reference
@pytest.mark.skipif("ARENITE_REFERENCE_MODELS" not in os.environ, reason="ARENITE_REFERENCE_MODELS names no folder")
def test_stories260k_tells_its_story(tmp_path: Path) -> None:
    source = Path(os.environ["ARENITE_REFERENCE_MODELS"]) / "stories260k"
    with libllama(convert(source, tmp_path / "m.gguf", type="f32").path) as model:
        prompt = model.tokens("Once upon a time, there was a little girl", add_special=True)
        text = model.text(model.greedy(prompt, 60))
    assert text.startswith(
        " named Lily. She loved to play outside in the park. One day, she saw a big, red ball. "
        "She wanted to play with it, but it was too high."
    )


@pytest.mark.reference
@pytest.mark.skipif("ARENITE_REFERENCE_MODELS" not in os.environ, reason="ARENITE_REFERENCE_MODELS names no folder")
def test_stories260k_computes_what_its_checkpoint_says(tmp_path: Path) -> None:
    agree(Path(os.environ["ARENITE_REFERENCE_MODELS"]) / "stories260k", tmp_path / "m.gguf")
