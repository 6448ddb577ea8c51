"""Trains a small GRU classifier on ragged noisy series made on the spot, and times its training step beside torch.nn's.

The class is which of three close frequencies all channels of a series share, under noise stronger than the tone, with
phases and loudness drawn per channel: no single step tells it, the last state has to have gathered it. Both libraries
start the timed steps from the same weights, and their first losses must agree before anything is timed. torch.nn gets
the better of its two ways to handle ragged input: packed, and padded with each row's last output picked out.

    python examples/demo.py            about half a minute on two cores
    python examples/demo.py --small    a few seconds, for tests
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median, quantiles

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

import seqcls_fast as sf

FREQUENCIES = (0.06, 0.09, 0.13)  # cycles per step


@dataclass(frozen=True)
class Settings:
    train_series: int = 4096
    test_series: int = 1000
    longest: int = 128
    channels: int = 6
    hidden: int = 64
    batch: int = 64
    epochs: int = 10
    tone: float = 0.7  # mean amplitude; the noise has standard deviation 1
    rounds: int = 40  # of the timing


SMALL = Settings(train_series=1536, test_series=500, longest=48, hidden=32, epochs=6, tone=1.5, rounds=8)


@dataclass(frozen=True)
class Series:
    x: Tensor  # (N, T, C), zero beyond each length
    lengths: Tensor  # (N,)
    label: Tensor  # (N,)

    def rows(self, index: Tensor) -> Series:
        return Series(self.x[index], self.lengths[index], self.label[index])


def make_series(count: int, settings: Settings, generator: torch.Generator) -> Series:
    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator)

    longest, channels = settings.longest, settings.channels
    lengths = torch.randint(longest // 4, longest + 1, (count,), generator=generator)
    label = torch.randint(len(FREQUENCIES), (count,), generator=generator)
    cycles = torch.tensor(FREQUENCIES)[label, None, None] * torch.arange(longest)[:, None]  # (N, T, 1)
    loudness = settings.tone * (0.5 + uniform(count, 1, channels))
    tone = loudness * torch.sin(2 * torch.pi * (cycles + uniform(count, 1, channels)))
    x = tone + torch.randn(count, longest, channels, generator=generator)
    x[torch.arange(longest) >= lengths[:, None]] = 0
    return Series(x, lengths, label)


class Classifier(nn.Module):
    """The encoder's last state, then a linear head; only `last_state` differs between the libraries."""

    def __init__(self, encoder: nn.Module, last_state: Callable[[nn.Module, Tensor, Tensor], Tensor], head: nn.Linear):
        super().__init__()
        self.encoder, self.last_state, self.head = encoder, last_state, head

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        return self.head(self.last_state(self.encoder, x, lengths))


def ours(gru: nn.Module, x: Tensor, lengths: Tensor) -> Tensor:
    return gru(x, lengths=lengths, want_output=False)[1][-1]


def torch_packed(gru: nn.Module, x: Tensor, lengths: Tensor) -> Tensor:
    return gru(pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False))[1][-1]


def torch_padded(gru: nn.Module, x: Tensor, lengths: Tensor) -> Tensor:
    return gru(x)[0][torch.arange(len(lengths)), lengths - 1]


class Trainer:
    def __init__(self, model: Classifier):
        self.model, self.optimizer = model, torch.optim.Adam(model.parameters(), lr=5e-3)

    def step(self, batch: Series) -> float:
        self.optimizer.zero_grad()
        loss = nn.functional.cross_entropy(self.model(batch.x, batch.lengths), batch.label)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        return loss.item()

    @torch.inference_mode()
    def accuracy(self, data: Series) -> float:
        return (self.model(data.x, data.lengths).argmax(1) == data.label).float().mean().item()


def train(model: Classifier, train_set: Series, test_set: Series, settings: Settings) -> None:
    trainer = Trainer(model)
    majority = test_set.label.bincount().max().item() / len(test_set.label)
    for epoch in range(1, settings.epochs + 1):
        start = time.perf_counter()
        batches = torch.randperm(len(train_set.label)).split(settings.batch)
        loss = sum(trainer.step(train_set.rows(batch)) * len(batch) for batch in batches) / len(train_set.label)
        accuracy = trainer.accuracy(test_set)
        seconds = time.perf_counter() - start
        print(f"epoch {epoch:2d}  loss {loss:.4f}  held-out accuracy {accuracy:.3f}  {seconds:.1f} s", flush=True)
    print(f"held-out accuracy {accuracy:.3f} on {len(test_set.label)} series (majority class {majority:.3f})")


def compare(trainers: dict[str, Trainer], batch: Series, rounds: int) -> None:
    """Times one training step of each, interleaved, so that a busy machine slows all of them alike."""
    losses = {name: trainer.step(batch) for name, trainer in trainers.items()}  # also warms up
    print("first loss: " + ", ".join(f"{name} {loss:.6f}" for name, loss in losses.items()))
    if max(losses.values()) - min(losses.values()) > 1e-4:
        sys.exit("the first losses differ: the steps are not the same computation, so no timing is shown")
    seconds: dict[str, list[float]] = {name: [] for name in trainers}
    for _ in range(rounds):
        for name, trainer in trainers.items():
            start = time.perf_counter()
            trainer.step(batch)
            seconds[name].append(time.perf_counter() - start)
    print("training step: " + ", ".join(f"{name} {1e3 * median(times):.2f} ms" for name, times in seconds.items()))
    own, *others = trainers
    best = min(others, key=lambda name: median(seconds[name]))
    low, middle, high = quantiles((b / a for a, b in zip(seconds[own], seconds[best], strict=True)), n=4)
    print(f"speed: {middle:.2f}x that of {best} (half of the rounds lie in {low:.2f}x to {high:.2f}x)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="fewer and shorter series, for tests")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, help="torch's intra-op threads (default: torch's choice)")
    arguments = parser.parse_args()
    settings = SMALL if arguments.small else Settings()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    generator = torch.Generator().manual_seed(arguments.seed)
    train_set = make_series(settings.train_series, settings, generator)
    test_set = make_series(settings.test_series, settings, generator)
    print(
        f"seqcls_fast {sf.__version__} ({', '.join(sf.available_impls())}), torch {torch.__version__}, "
        f"{torch.get_num_threads()} threads; GRU({settings.channels}, {settings.hidden}), "
        f"batches of {settings.batch}, lengths {settings.longest // 4} to {settings.longest}"
    )

    encoder = sf.GRU(settings.channels, settings.hidden, batch_first=True)
    head = nn.Linear(settings.hidden, len(FREQUENCIES))
    peer = nn.GRU(settings.channels, settings.hidden, batch_first=True)
    peer.load_state_dict(encoder.state_dict())
    ways = {
        "seqcls_fast": (encoder, ours),
        "torch.nn packed": (peer, torch_packed),
        "torch.nn padded": (peer, torch_padded),
    }
    trainers = {
        name: Trainer(copy.deepcopy(Classifier(gru, last_state, head))) for name, (gru, last_state) in ways.items()
    }
    train(Classifier(encoder, ours, head), train_set, test_set, settings)
    compare(trainers, train_set.rows(torch.arange(settings.batch)), settings.rounds)


if __name__ == "__main__":
    main()
