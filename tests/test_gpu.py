"""GPUs: what is asked for and can not be had, and, on a fake GPU, the arena beneath ggml's own CUDA code."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

import arenite
from arenite.runtime.backends import ggml
from arenite.runtime.errors import ConfigError, NoGPU

from . import checkpoints
from .fake_gpu import cli_on_fake_gpu, needs_fake_gpu, run_on_fake_gpu

if TYPE_CHECKING:
    from pathlib import Path

SMALL = {"context": 512, "streams": 4, "threads": 1}
without_gpu = pytest.mark.skipif(bool(ggml.gpus()), reason="this machine has a GPU")


@pytest.fixture(scope="session")
def fake(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fakecuda")


@pytest.fixture(scope="session")
def tiny() -> str:
    return str(checkpoints.gguf_file("tiny", "f16"))


# ---- anywhere ----


@without_gpu
@pytest.mark.parametrize("settings", [
    {"require_gpu": True}, {"gpu_layers": "all"}, {"gpu_layers": 3}, {"gpus": ["CUDA0"]},
])
def test_a_gpu_that_is_asked_for_and_not_there_is_refused_with_advice(tiny: str, settings: dict[str, object]) -> None:
    with arenite.Runtime() as runtime:
        with pytest.raises(NoGPU, match="doctor"):
            runtime.load(tiny, **SMALL, **settings)
        model = runtime.load(tiny, **SMALL)
        assert model.info.device == "cpu"
        assert model.info.gpu_layers == 0
        assert "no GPU" in runtime.status().models[0].memory.note, "and the status says why nothing lies there"
        assert model.generate("hello", max_tokens=3).usage.answer_tokens > 0


@pytest.mark.parametrize("settings", [
    {"gpu_layers": -1}, {"gpu_layers": "some"}, {"gpu_layers": True}, {"gpus": "CUDA0"}, {"gpu_kv": 1},
    {"require_gpu": True, "gpu_layers": 0}, {"require_gpu": "yes"}, {"gpus": None}, {"gpus": 5},
    {"gpus": ["CUDA0", "CUDA0"]}, {"gpu_split": [1, 1]}, {"gpus": ["CUDA0"], "gpu_split": [float("nan")]},
    {"gpus": ["CUDA0"], "gpu_split": [0]}, {"gpu_split": 3},
])
def test_settings_that_mean_nothing_are_refused(tiny: str, settings: dict[str, object]) -> None:
    with arenite.Runtime() as runtime, pytest.raises(ConfigError):
        runtime.load(tiny, **SMALL, **settings)


# ---- on the fake GPU ----

LOAD = """
settings = json.loads(sys.argv[2])
with arenite.Runtime(**settings.pop("runtime", {})) as runtime:
    settings = {"context": 512, "flash_attention": False, **settings}  # CUDA has no kernel of it for so small heads
    prompt = settings.pop("prompt", 3)
    model = runtime.load(sys.argv[1], streams=4, threads=1, **settings)
    before = fake.fake_cuda_allocations()
    tickets = [model.submit([1, 2, 3 + n] + [9] * (prompt - 3), max_tokens=40, ignore_end=True) for n in range(8)]
    tokens = sum(ticket.result().usage.answer_tokens for ticket in tickets)
    serving = fake.fake_cuda_allocations() - before
    status = runtime.status()
    places = {place: [arena.size, arena.leased] for place, arena in status.arenas.items()}
    needs = {}
    for need in status.models[0].plan.needs:
        needs.setdefault(need.place, []).append([need.kind, need.size])
    kinds = {place: [span.kind for span in arena.spans] for place, arena in status.arenas.items()}
    found = dict(
        device=model.info.device, layers=[model.info.gpu_layers, model.info.layers], batch=model.info.batch,
        tokens=tokens, serving=serving, places=places, needs=needs, kinds=kinds, state=status.state,
        sealed=status.allocations_after_seal, note=status.models[0].memory.note,
        outside=status.models[0].memory.outside, free=status.devices[0].free_bytes, taken=fake.fake_cuda_bytes(),
        host=status.arena.leased if status.arena else 0,
    )
say(**found, left=fake.fake_cuda_bytes())
"""


@needs_fake_gpu
def test_every_buffer_of_cuda_lies_where_it_was_planned_and_serving_allocates_nothing(fake: Path, tiny: str) -> None:
    found = run_on_fake_gpu(fake, LOAD, tiny, "{}")
    layers = found["layers"][1]
    assert found["device"] == f"CUDA0 ({layers} of {layers} layers)"
    assert found["batch"] == 512
    assert (found["state"], found["sealed"], found["serving"], found["left"]) == ("ready", 0, 0, 0)
    assert found["tokens"] == 8 * 40
    for place in ("CUDA0", "CUDA_Host"):
        size, leased = found["places"][place]
        staged = sum(need for kind, need in found["needs"][place] if kind == "staging")
        assert size == sum(-(-need // 4096) * 4096 for _, need in found["needs"][place])
        assert leased == size - -(-staged // 4096) * 4096, "nothing is left free but what only loading needed"
    assert sorted(found["kinds"]["CUDA0"]) == ["kv", "scratch", "weights"]
    assert "outputs" in found["kinds"]["CUDA_Host"]
    assert found["note"] == ""
    outside = found["outside"]["CUDA0 scratch pools and workspaces"]
    assert found["taken"] == pytest.approx(found["places"]["CUDA0"][0] + outside, abs=8192)


@needs_fake_gpu
def test_deep_prompts_allocate_nothing_either(fake: Path, tiny: str) -> None:
    """Without flash attention ggml's scratch pool grows with the depth of a step."""
    found = run_on_fake_gpu(fake, LOAD, tiny, json.dumps({"context": 2048, "batch": 64, "prompt": 200}))
    assert (found["serving"], found["sealed"], found["state"]) == (0, 0, "ready")


@needs_fake_gpu
def test_what_a_gpu_has_no_kernel_for_is_not_silently_left_to_the_cpu(fake: Path, tiny: str) -> None:
    found = run_on_fake_gpu(fake, LOAD, tiny, json.dumps({"flash_attention": True}))
    assert "no kernel" in found["note"]
    assert "flash_attention False" in found["note"]


@needs_fake_gpu
def test_mapped_weights_stay_in_the_page_cache(fake: Path, tiny: str) -> None:
    found = run_on_fake_gpu(fake, LOAD, tiny, json.dumps({"weights": "mapped"}))
    size, leased = found["places"]["CUDA_Host"]
    assert size == leased
    assert found["outside"]["mapped weights"] > 0
    assert (found["serving"], found["left"]) == (0, 0)


@needs_fake_gpu
def test_part_of_a_model_on_the_gpu_and_the_cache_on_the_host(fake: Path, tiny: str) -> None:
    found = run_on_fake_gpu(fake, LOAD, tiny, json.dumps({"gpu_layers": 1, "gpu_kv": False}))
    assert found["layers"][0] == 1
    assert "kv" not in found["kinds"]["CUDA0"]
    assert found["host"] > 0, "what the CPU computes lies in the host's arena"
    assert (found["serving"], found["sealed"], found["left"]) == (0, 0, 0)


@needs_fake_gpu
def test_auto_takes_as_many_layers_as_fit_and_says_what_would_make_the_rest_fit(fake: Path, tiny: str) -> None:
    whole = run_on_fake_gpu(fake, LOAD, tiny, "{}")
    room = (512 << 20) + whole["places"]["CUDA0"][0] - 400_000
    found = run_on_fake_gpu(fake, LOAD, tiny, "{}", FAKE_CUDA_BYTES=str(room))
    assert 0 < found["layers"][0] < found["layers"][1]
    assert "would make it fit" in found["note"]
    assert "CUDA0" in found["note"]
    none = run_on_fake_gpu(fake, LOAD, tiny, "{}", FAKE_CUDA_BYTES=str(512 << 20))
    assert none["device"] == "cpu"
    assert "are free" in none["note"], "never silently"


@needs_fake_gpu
@pytest.mark.parametrize(("settings", "environment"), [
    ({"require_gpu": True}, {"FAKE_CUDA_BYTES": str(513 << 20)}),
    ({"gpu_layers": "all"}, {"FAKE_CUDA_BYTES": str(513 << 20)}),
    ({"require_gpu": True}, {"FAKE_CUDA_NONE": "1"}),
    ({"gpus": ["CUDA7"]}, {}),
    ({"require_gpu": True, "gpu_layers": 1}, {}),
    ({"require_gpu": True, "flash_attention": True}, {}),
])
def test_what_can_not_be_had_is_refused_and_nothing_stays(
    fake: Path, tiny: str, settings: dict[str, object], environment: dict[str, str]
) -> None:
    program = """
from arenite.runtime.errors import NoGPU
with arenite.Runtime() as runtime:
    try:
        settings = {"flash_attention": False, **json.loads(sys.argv[2])}
        runtime.load(sys.argv[1], context=512, streams=4, threads=1, **settings)
        error = ""
    except NoGPU as refused:
        error = str(refused)
    after = runtime.load(sys.argv[1], context=512, streams=4, threads=1, gpu_layers=0).info.device
say(error=error, after=after, left=fake.fake_cuda_bytes())
"""
    found = run_on_fake_gpu(fake, program, tiny, json.dumps(settings), **environment)
    assert "CUDA" in found["error"] or "GPU" in found["error"] or "CPU" in found["error"]
    assert found["after"] == "cpu"
    assert found["left"] == 0


@needs_fake_gpu
def test_a_gpu_arena_of_a_given_size_is_taken_at_the_start_and_refuses_what_does_not_fit(fake: Path, tiny: str) -> None:
    found = run_on_fake_gpu(fake, LOAD, tiny, json.dumps({"runtime": {"gpu_arena": "64MiB"}}))
    assert found["places"]["CUDA0"][0] == 64 << 20
    assert found["left"] == 0
    program = """
from arenite.runtime.errors import ArenaTooSmall, NoGPU
errors = []
with arenite.Runtime(gpu_arena="1MiB") as runtime:
    taken = fake.fake_cuda_bytes()
    for settings in ({}, {"gpu_layers": "all"}):
        try:
            errors.append(runtime.load(sys.argv[1], context=512, streams=4, threads=1, **settings).info.device)
        except (NoGPU, ArenaTooSmall) as error:
            errors.append(str(error))
for size in ("900GiB", "99.9%"):
    try:
        arenite.Runtime(gpu_arena=size)
    except ArenaTooSmall as error:
        errors.append(str(error))
say(taken=taken, errors=errors, left=fake.fake_cuda_bytes())
"""
    found = run_on_fake_gpu(fake, program, tiny)
    assert found["taken"] >= 1 << 20
    assert "CUDA0" in found["errors"][1]
    assert "CUDA0" in found["errors"][2]
    assert "less 512.0 MiB for CUDA" in found["errors"][3], "or a scratch pool that grows would end the process"
    assert found["left"] == 0


@needs_fake_gpu
def test_somebody_else_on_the_gpu_makes_the_runtime_degraded(fake: Path, tiny: str) -> None:
    program = """
with arenite.Runtime() as runtime:
    model = runtime.load(sys.argv[1], context=512, streams=4, threads=1)
    before = runtime.status()
    fake.fake_cuda_others(before.devices[0].free_bytes - (10 << 20))
    during = runtime.status()
    fake.fake_cuda_others(0)
    after = runtime.status()
say(states=[before.state, during.state, after.state], reason=during.reason, counted=during.allocations_after_seal)
"""
    found = run_on_fake_gpu(fake, program, tiny)
    assert found["states"] == ["ready", "degraded", "ready"]
    assert "CUDA0" in found["reason"]
    assert "10.0 MiB" in found["reason"]
    assert "another process" in found["reason"]
    assert found["counted"] == 0, "the arena itself is sound"


@needs_fake_gpu
def test_sequences_that_give_way_take_their_cells_off_the_gpu_and_back(fake: Path, tiny: str) -> None:
    program = """
from arenite.runtime.backends.loader import Loader
from arenite.runtime.config import ModelOptions
loader = Loader()
backend = loader.load(ModelOptions(sys.argv[1], context=512, streams=4, threads=1))
batch = backend.batch
for i in range(64):
    batch.tokens[i], batch.positions[i], batch.sequences[i], batch.outputs[i] = i, i, 0, 0
backend.decode(64)
saved = backend.save(0, 0)
backend.drop(0)
restored = backend.restore(0, 0, saved)
again = backend.save(0, 0)
backend.share(0, 1, 64)
backend.close()
loader.close()
say(size=int(saved.nbytes), restored=restored, equal=bool((saved == again).all()), left=fake.fake_cuda_bytes())
"""
    found = run_on_fake_gpu(fake, program, tiny)
    assert found["size"] > 64 * 64
    assert (found["restored"], found["equal"], found["left"]) == (True, True, 0)


@needs_fake_gpu
def test_tensors_are_copied_between_pieces_on_the_device(fake: Path) -> None:
    program = """
import ctypes as C
from arenite.runtime.backends import ggml
from arenite.runtime.backends.slab import OWNER
ggml.start()
slab = OWNER.acquire(1 << 20, "CUDA0")
ggml.lib.ggml_backend_tensor_copy.argtypes, ggml.lib.ggml_backend_tensor_copy.restype = [C.c_void_p] * 2, None
with slab.loading("m"):
    kind = ggml.buffer_type("CUDA0")
    buffers = [ggml.lib.ggml_backend_buft_alloc_buffer(kind, 4096) for _ in range(2)]
    tensors = []
    for value, buffer in enumerate(buffers):
        ggml.lib.ggml_backend_buffer_clear(buffer, 7 + value)
        tensor = ggml.Tensor(type=ggml.I8, buffer=buffer, data=ggml.lib.ggml_backend_buffer_get_base(buffer))
        tensor.ne[:], tensor.nb[:] = (4096, 1, 1, 1), (1, 4096, 4096, 4096)
        tensors.append(tensor)
    before = fake.fake_cuda_copies()
    ggml.lib.ggml_backend_tensor_copy(C.addressof(tensors[0]), C.addressof(tensors[1]))
    out = C.create_string_buffer(4096)
    ggml.lib.ggml_backend_tensor_get(C.addressof(tensors[1]), C.addressof(out), 0, 4096)
    copies = fake.fake_cuda_copies() - before
    for buffer in buffers:
        ggml.lib.ggml_backend_buffer_free(buffer)
OWNER.release(slab)
say(copies=copies, right=out.raw == bytes([7]) * 4096, left=fake.fake_cuda_bytes())
"""
    found = run_on_fake_gpu(fake, program)
    assert found == {"copies": 1, "right": True, "left": 0}


@needs_fake_gpu
def test_the_reserve_stays_when_models_come_and_go(fake: Path, tiny: str) -> None:
    program = """
settings = dict(streams=4, threads=1, flash_attention=False)
with arenite.Runtime("128MiB") as runtime:
    first = runtime.load(sys.argv[1], context=512, **settings)
    second = runtime.load(sys.argv[1], name="second", context=512, **settings)
    note = runtime.status().models[1].memory.note
    first.close()
    second.close()
    third = runtime.load(sys.argv[1], name="third", context=16384, **settings).info.device
say(second=second.info.device, note=note, third=third)
"""
    room = (512 << 20) + (60 << 20)
    found = run_on_fake_gpu(fake, program, tiny, FAKE_CUDA_BYTES=str(room))
    assert found["second"] == "cpu"
    assert "gpu_arena" in found["note"], "the arena was made for the first model, and the note says so"
    assert found["third"] != "CUDA0 (3 of 3 layers)", "4 MiB of cache do not fit beside the reserve"


@needs_fake_gpu
def test_memory_comes_back_after_many_loads(fake: Path, tiny: str) -> None:
    program = """
free = []
with arenite.Runtime(gpu_arena="64MiB") as runtime:
    for _ in range(12):
        model = runtime.load(sys.argv[1], context=512, streams=4, threads=1)
        model.generate([1, 2, 3], max_tokens=4, ignore_end=True)
        model.close()
        free.append(fake.fake_cuda_bytes())
say(free=free, left=fake.fake_cuda_bytes())
"""
    found = run_on_fake_gpu(fake, program, tiny)
    assert len(set(found["free"])) == 1
    assert found["left"] == 0


@needs_fake_gpu
def test_commands_say_what_lies_on_the_gpu(fake: Path, tiny: str) -> None:
    planned = cli_on_fake_gpu(fake, "plan", tiny, "--context", "512", "--json")
    needs = json.loads(planned.stdout)["needs"]
    assert {need["memory"] for need in needs} >= {"CUDA0", "CUDA_Host"}
    drawn = cli_on_fake_gpu(fake, "plan", tiny, "--context", "512").stdout
    assert "CUDA0" in drawn
    doctor = json.loads(cli_on_fake_gpu(fake, "doctor", "--json").stdout)["findings"]
    found = {finding["what"]: finding for finding in doctor}
    assert found["GPU"]["state"] == "ok"
    assert "fake GPU" in found["GPU"]["detail"]
    none = json.loads(cli_on_fake_gpu(fake, "doctor", "--json", FAKE_CUDA_NONE="1").stdout)["findings"]
    (gpu,) = (finding for finding in none if finding["what"] == "GPU")
    assert gpu["state"] == "note"
    assert "driver" in gpu["detail"] + gpu["advice"]
    refused = cli_on_fake_gpu(fake, "run", tiny, "hi", "--require-gpu", FAKE_CUDA_NONE="1")
    assert refused.returncode == 1
    assert "no GPU" in refused.stderr
