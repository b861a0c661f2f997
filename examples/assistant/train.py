"""Train the assistant: `python -m arenite.examples.assistant.train`.

Everything a run needs is generated: examples on the fly, the tokenizer from them. The state of a run (weights,
optimizer, average, position) is saved every few minutes and picked up again by the same command. Development only:
needs PyTorch.
"""

from __future__ import annotations

import argparse
import itertools
import math
import os
import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # idle OpenMP threads must not spin: other work shares the cores

import torch
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional

from . import tokenizer as words
from .corpus import KINDS, SEED, examples, held_out, training
from .export import export, load
from .home import compact
from .net import Llama, Shape
from .sentences import sentence

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .corpus import Example

FOLDER = Path(__file__).parent / "model"
BATCH_TOKENS = 4096
AVERAGE = 0.998
SHOW, SAVE = 15, 180  # seconds between progress lines, and between saves
LONGEST_STEP = 5.0  # seconds; what a step takes longer, the machine or the process was asleep


@dataclass(frozen=True, slots=True)
class Batch:
    """Token ids [rows, length], where the answer is predicted [rows, length], and the answer's ids [n]."""

    tokens: Tensor
    at: Tensor
    wanted: Tensor


class Encoder:
    """Turns examples into token ids, now and then with merges left out, so that no spelling is a surprise."""

    def __init__(self, path: Path) -> None:
        self.plain = Tokenizer.from_file(str(path))
        self.loose = Tokenizer.from_file(str(path))
        self.loose.model.dropout = 0.1

    def pairs(self, made: list[Example], rng: random.Random | None) -> list[tuple[list[int], list[int]]]:
        """Return prompt and answer ids of each example; without `rng` first all JSON answers, then all sentences."""
        asked = (
            [(e, s) for s in (True, False) for e in made] if rng is None else [(e, rng.random() < 0.6) for e in made]
        )
        prompts = [words.prompt(e.messages, schema=s) for e, s in asked]
        answers = [(compact(e.action) if s else sentence(e.action)) + words.END for e, s in asked]
        loose = rng is not None and rng.random() < 0.12
        heads = (self.loose if loose else self.plain).encode_batch(prompts)
        return [(a.ids, b.ids) for a, b in zip(heads, self.plain.encode_batch(answers), strict=True)]


def batched(pairs: list[tuple[list[int], list[int]]], budget: int) -> Iterator[Batch]:
    """Yield batches of similar length with at most `budget` tokens, padding included."""
    pairs = sorted(pairs, key=lambda p: len(p[0]) + len(p[1]))
    while pairs:
        longest = next(n for n in range(len(pairs), 0, -1) if n * sum(map(len, pairs[n - 1])) <= budget or n == 1)
        rows, pairs = pairs[:longest], pairs[longest:]
        length = sum(map(len, rows[-1])) - 1
        tokens = torch.zeros(len(rows), length, dtype=torch.long)
        at = torch.zeros(len(rows), length, dtype=torch.bool)
        for i, (head, tail) in enumerate(rows):
            tokens[i, : len(head) + len(tail) - 1] = torch.tensor((head + tail)[:-1])
            at[i, len(head) - 1 : len(head) + len(tail) - 1] = True
        yield Batch(tokens, at, torch.tensor([token for _, tail in rows for token in tail]))


def batches(encoder: Encoder, seed: int) -> Iterator[Batch]:
    """Yield training batches for ever, from examples made on the fly."""
    stream, rng = training(seed), random.Random(seed + 1)
    while True:
        pairs = [pair for _ in range(24) for pair in encoder.pairs(list(itertools.islice(stream, 96)), rng)]
        made = list(batched(pairs, BATCH_TOKENS))[:-1]
        rng.shuffle(made)
        yield from made


@torch.no_grad()
def exact(net: Llama, encoder: Encoder, made: list[Example]) -> tuple[float, float]:
    """Return the shares of examples whose JSON and whose sentence greedy decoding gets exactly right.

    Greedy decoding gives the expected answer if and only if each of its tokens is the most likely one after the tokens
    before it, so one forward pass over the expected answer decides.
    """
    pairs = encoder.pairs(made, None)
    actions, sentences = right(net, pairs[: len(made)]), right(net, pairs[len(made) :])
    return sum(actions) / len(made), sum(sentences) / len(made)


@torch.no_grad()
def right(net: Llama, pairs: list[tuple[list[int], list[int]]]) -> list[bool]:
    """Return for each (prompt, answer), in order, whether greedy decoding gives the answer."""
    order = sorted(range(len(pairs)), key=lambda i: len(pairs[i][0]) + len(pairs[i][1]))
    hits: list[bool] = []
    for batch in batched([pairs[i] for i in order], 8192):
        good = net(batch.tokens, batch.at).argmax(-1) == batch.wanted
        rows = batch.at.nonzero()[:, 0]
        wrong = torch.zeros(len(batch.tokens)).index_add_(0, rows, (~good).float())
        hits += (wrong == 0).tolist()
    placed = dict(zip(order, hits, strict=True))
    return [placed[i] for i in range(len(pairs))]


class Run:
    """A training run: the network, its running average, the optimizer, and how far it has come."""

    def __init__(self, options: argparse.Namespace) -> None:
        torch.manual_seed(options.seed)
        self.options = options
        self.net, self.average = Llama(Shape()), Llama(Shape())
        for layer in self.net.layers:  # twice as fast: what stands between two matrix products becomes one loop
            layer.compile(dynamic=True)
        self.average.load_state_dict(self.net.state_dict())
        matrices = [p for n, p in self.net.named_parameters() if p.dim() == 2 and "embed" not in n]
        rest = [p for n, p in self.net.named_parameters() if p.dim() == 1 or "embed" in n]
        # Muon (Jordan et al. 2024) for the matrices: measured here, the loss of 200 steps of AdamW after 110.
        self.optimizers: tuple[torch.optim.Optimizer, ...] = (
            torch.optim.Muon(matrices, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(rest, betas=(0.9, 0.98), weight_decay=0.0, fused=True),
        )
        self.step, self.seconds = 0, 0.0

    @property
    def share(self) -> float:
        """How much of the planned time is used, 0 to 1."""
        return min(1.0, self.seconds / (60 * self.options.minutes))

    def rate(self) -> float:
        """Return the factor on the learning rates: a short climb, then a cosine down to 2 % over the planned time."""
        return min(1.0, (self.step + 1) / 100) * (0.02 + 0.49 * (1 + math.cos(math.pi * self.share)))

    def learn(self, batch: Batch) -> float:
        """Take one step on a batch and return the loss per token."""
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self.options.rate * self.rate()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = self.net(batch.tokens, batch.at)
        loss = functional.cross_entropy(logits.float(), batch.wanted)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        self.step += 1
        self.follow()
        return loss.item()

    @torch.no_grad()
    def follow(self) -> None:
        """Move the running average towards the weights."""
        keep = min(AVERAGE, (1 + self.step) / (10 + self.step))
        torch._foreach_lerp_(list(self.average.parameters()), list(self.net.parameters()), 1 - keep)

    def save(self, path: Path) -> None:
        """Write the state beside its old copy and move it there in one step."""
        state = {
            "net": self.net.state_dict(),
            "average": self.average.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "step": self.step,
            "seconds": self.seconds,
            "random": torch.get_rng_state(),
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_suffix(".new")
        torch.save(state, fresh)
        fresh.replace(path)

    def load(self, path: Path) -> None:
        """Pick up the state that `save` wrote; the examples go on with a seed that depends on the step."""
        state = torch.load(path, weights_only=True)
        self.net.load_state_dict(state["net"])
        self.average.load_state_dict(state["average"])
        for optimizer, kept in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(kept)
        self.step, self.seconds = state["step"], state["seconds"]
        torch.set_rng_state(state["random"])


class Watch:
    """What happens beside learning: the progress bar, validation on the running average, saving."""

    def __init__(self, run: Run, encoder: Encoder, bar: Progress) -> None:
        self.run, self.encoder, self.bar = run, encoder, bar
        self.tests = {kind: examples(kind, 200, "validation") for kind in KINDS}
        self.task = bar.add_task("training", total=60 * run.options.minutes, completed=int(run.seconds))
        self.shown = self.checked = self.saved = run.seconds
        self.loss, self.tokens = 0.0, 0

    def note(self, loss: float, tokens: int) -> None:
        """Take note of a step's loss and tokens, and do what is due: always everything at the end."""
        self.loss = 0.98 * self.loss + 0.02 * loss if self.loss else loss
        self.tokens += tokens
        now, end = self.run.seconds, self.run.share >= 1
        if end or now - self.shown > SHOW:
            self.show()
        if end or now - self.checked > 60 * self.run.options.check:
            self.check()
        if end or now - self.saved > SAVE:
            self.run.save(self.run.options.state)
            export(self.run.average, self.run.options.folder)
            self.saved = now

    def show(self) -> None:
        """Bring the bar up to date; where there is no terminal, print a line."""
        now = self.run.seconds
        text = f"step {self.run.step} loss {self.loss:.4f} {self.tokens / (now - self.shown + 1e-9):.0f} tokens/s"
        self.bar.update(self.task, completed=now, description=text)
        if not self.bar.console.is_terminal:
            self.bar.console.print(f"{now / 60:6.1f} min  {text}")
        self.shown, self.tokens = now, 0

    def check(self) -> None:
        """Print the exact shares of actions and sentences on examples that are neither training nor held-out."""
        scores = {kind: exact(self.run.average, self.encoder, made) for kind, made in self.tests.items()}
        self.bar.console.print("validation " + "  ".join(f"{k} {a:.1%}/{s:.1%}" for k, (a, s) in scores.items()))
        self.checked = self.run.seconds


def train(run: Run, encoder: Encoder) -> None:
    """Train until the planned minutes are used; only time spent learning counts."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeRemainingColumn(),
    )
    stream = batches(encoder, run.options.seed + 1000 * run.step + 1)
    with Progress(*columns, refresh_per_second=0.2) as bar:
        watch = Watch(run, encoder, bar)
        while run.share < 1:
            start = time.monotonic()
            batch = next(stream)
            loss = run.learn(batch)
            run.seconds += min(time.monotonic() - start, LONGEST_STEP)
            watch.note(loss, batch.tokens.numel())


def parse() -> argparse.Namespace:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--minutes", type=float, default=60.0, help="training time in all, earlier parts of the run included"
    )
    parser.add_argument("--check", type=float, default=5.0, help="minutes between validations")
    parser.add_argument("--rate", type=float, default=2e-3, help="highest learning rate")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--state", type=Path, default=Path("build/assistant/state.pt"), help="where the run's state is kept"
    )
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where the model is written")
    parser.add_argument(
        "--judge", action="store_true", help="do not train: score the written model on the held-out sets"
    )
    parser.add_argument("--fresh", action="store_true", help="start again even if there is a state to go on from")
    return parser.parse_args()


def judge(folder: Path) -> None:
    """Print how much of the held-out sets the written model gets exactly right, actions and sentences."""
    net, encoder = load(folder), Encoder(folder / "tokenizer.json")
    for kind, made in held_out().items():
        action, spoken = exact(net, encoder, list(made))
        print(f"{kind:10} {len(made):5}  exact action {action:.2%}  exact sentence {spoken:.2%}")


def main() -> None:
    """Train the tokenizer if there is none, then the network, from the state if there is one."""
    options = parse()
    torch.set_num_threads(options.threads)
    if options.judge:
        judge(options.folder)
        return
    if not (options.folder / "tokenizer.json").exists() or options.fresh:
        words.save(words.train(), options.folder, Shape().context)
    run = Run(options)
    if options.state.exists() and not options.fresh:
        run.load(options.state)
    train(run, Encoder(options.folder / "tokenizer.json"))


if __name__ == "__main__":
    main()
