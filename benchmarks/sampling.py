"""What choosing a token costs: ours narrowed, ours plain, llama.cpp's chain: ``python -m arenite.benchmarks.sampling``.

All three choose from the same 16 rows of logits, in turn; the quickest of all rounds counts, because a busy
neighbour only ever adds.  llama.cpp's chain is called through ctypes; "its array" is the share of its time that goes
into the array it works on and into the calls.
"""

from __future__ import annotations

import ctypes
import math
import time
from typing import TYPE_CHECKING, Any

import click
import numpy as np
from rich.table import Table

from ..runtime import machine
from ..runtime.backends.ggml import L
from ..runtime.console import print_json, stdout
from ..runtime.request import Sampling
from ..runtime.sampling import Sampler
from . import results

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Rows = NDArray[np.float32]

STREAMS = 16
RULES = {
    "greedy": Sampling(),
    "default": Sampling(temperature=0.8, seed=1),
    "top_p only": Sampling(temperature=0.8, top_k=0, min_p=0.0, seed=1),
    "min_p only": Sampling(temperature=0.8, top_k=0, top_p=1.0, seed=1),
    "no filter": Sampling(temperature=0.8, top_k=0, top_p=1.0, min_p=0.0, seed=1),
    "penalties": Sampling(temperature=0.8, repeat_penalty=1.1, frequency_penalty=0.1, seed=1),
    "logprobs": Sampling(temperature=0.8, logprobs=5, seed=1),  # llama.cpp's chain has none: it does default's work
}
CELL = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])  # llama_token_data


def logits(vocabulary: int) -> Rows:
    """Return rows that fall off as a model's do: a power law over the ranks (Zipf), with noise, in random order."""
    random = np.random.default_rng(vocabulary)
    falls = -1.6 * np.log(np.arange(1, vocabulary + 1))
    rows = 22.0 + falls + random.normal(0.0, 1.0, (STREAMS, vocabulary))
    return random.permuted(rows, axis=1).astype(np.float32)


class Native:
    """llama.cpp's chain in its order, one per stream.

    The chain works on an array of (token, logit, probability) for the whole vocabulary and reorders it, so each call
    needs a fresh one.  ``llama_sampler_sample`` writes it from the context's logits; here a prepared one is copied.
    """

    def __init__(self, rule: Sampling, rows: Rows, recent: list[int]) -> None:
        self.prepared = np.zeros(rows.shape, CELL)
        self.prepared["id"], self.prepared["logit"] = np.arange(rows.shape[1]), rows
        self.cells = np.empty(rows.shape[1], CELL)
        self.data = ctypes.cast(self.cells.ctypes.data, ctypes.POINTER(L.llama_token_data))
        self.chains = [_chain(rule, rows.shape[1]) for _ in range(STREAMS)]
        for chain in self.chains:
            for token in recent:
                L.llama_sampler_accept(chain, token)

    def step(self, chosen: Callable[[Any, Any], object] = L.llama_sampler_apply) -> None:
        """Choose one token per stream; with another function in place of the chain's, do all but that."""
        size = len(self.cells)
        for chain, row in zip(self.chains, self.prepared, strict=True):
            ctypes.memmove(self.data, row.ctypes.data, row.nbytes)
            array = L.llama_token_data_array(data=self.data, size=size, selected=0, sorted=False)
            chosen(chain, ctypes.byref(array))
            L.llama_sampler_accept(chain, self.data[array.selected].id)

    def close(self) -> None:
        """Free the chains."""
        for chain in self.chains:
            L.llama_sampler_free(chain)


def _chain(rule: Sampling, vocabulary: int) -> Any:
    chain = L.llama_sampler_chain_init(L.llama_sampler_chain_default_params())
    if rule.penalised:
        L.llama_sampler_chain_add(chain, L.llama_sampler_init_penalties(
            vocabulary, rule.penalty_window, rule.repeat_penalty, rule.frequency_penalty, rule.presence_penalty))
    if rule.greedy:
        L.llama_sampler_chain_add(chain, L.llama_sampler_init_greedy())
        return chain
    if rule.top_k:
        L.llama_sampler_chain_add(chain, L.llama_sampler_init_top_k(rule.top_k))
    if rule.top_p < 1.0:
        L.llama_sampler_chain_add(chain, L.llama_sampler_init_top_p(rule.top_p, 1))
    if rule.min_p:
        L.llama_sampler_chain_add(chain, L.llama_sampler_init_min_p(rule.min_p, 1))
    L.llama_sampler_chain_add(chain, L.llama_sampler_init_temp(rule.temperature))
    L.llama_sampler_chain_add(chain, L.llama_sampler_init_dist(rule.seed))
    return chain


def measure(name: str, vocabulary: int, repeats: int) -> dict[str, Any]:
    """Return the cost of one rule at one vocabulary: microseconds per token, milliseconds per step of 16 streams."""
    rule, rows = RULES[name], logits(vocabulary)
    recent = np.random.default_rng(1).integers(0, vocabulary, 200).tolist()
    narrowed = [Sampler(rule) for _ in range(STREAMS)]
    plain = [Sampler(rule, narrow_from=1 << 31) for _ in range(STREAMS)]
    native = Native(rule, rows, recent)
    best = dict.fromkeys(("narrowed", "plain", "native", "native_array"), math.inf)
    work = rows.copy()

    def ours(samplers: list[Sampler]) -> None:
        for sampler, row in zip(samplers, work, strict=True):
            sampler.pick(row, recent)

    def clock(key: str, step: Callable[[], None]) -> None:
        work[:] = rows  # penalties change them in place
        start = time.perf_counter()
        step()
        best[key] = min(best[key], time.perf_counter() - start)

    for _ in range(repeats):
        clock("narrowed", lambda: ours(narrowed))
        clock("plain", lambda: ours(plain))
        clock("native", native.step)
        clock("native_array", lambda: native.step(lambda *_: None))
    native.close()
    per_token = {f"{key}_us": round(1e6 * seconds / STREAMS, 1) for key, seconds in best.items()}
    return {
        "vocabulary": vocabulary, "rule": name, **per_token,
        "step_ms": round(1e3 * best["narrowed"], 3), "native_step_ms": round(1e3 * best["native"], 3),
        "plain_to_narrowed": round(best["plain"] / best["narrowed"], 2),
        "native_to_narrowed": round(best["native"] / best["narrowed"], 2),
    }


@click.command()
@click.option("--vocabularies", default="512,32000,151936", show_default=True)
@click.option("--repeats", default=30, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--csv", "folder", type=click.Path(file_okay=False), help="Append the rows to sampling.csv in here.")
def main(vocabularies: str, repeats: int, folder: str | None, as_json: bool) -> None:
    """Compare our sampler with llama.cpp's chain."""
    rows = [measure(name, int(size), repeats) for size in vocabularies.split(",") for name in RULES]
    if folder is not None:
        results.append(folder, "sampling", [{"repeats": repeats, **row} for row in rows])
    if as_json:
        print_json({"machine": machine.describe(), "streams": STREAMS, "rows": rows})
    else:
        _show(rows)


def _show(rows: list[dict[str, Any]]) -> None:
    table = Table(title=f"microseconds per token, {machine.describe()}", title_justify="left")
    for name in ("vocabulary", "rule", "narrowed", "plain", "llama.cpp", "its array", "16 streams", "llama.cpp / ours"):
        table.add_column(name, justify="left" if name == "rule" else "right")
    for row in rows:
        table.add_row(
            f"{row['vocabulary']:,}", row["rule"], *(f"{row[f'{key}_us']:.1f}" for key in
                                                     ("narrowed", "plain", "native", "native_array")),
            f"{row['step_ms']:.2f} ms", f"{row['native_to_narrowed']:.2f}",
        )
    stdout.print(table)


if __name__ == "__main__":
    main()
