"""Models with recurrent layers, written for torch.nn as people write them; none of them knows of seqcls_fast.

Each entry of ARCHITECTURES builds one in evaluation mode and small sizes, with the inputs of one call.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.utils._pytree import tree_flatten

MakeInputs = Callable[[torch.dtype], tuple[Any, ...]]
T, B, VOCAB = 7, 3, 11
# The longest chain of an architecture: 3 layers or 7 steps, forward and back, of at most 2 * 16 + 10 values a step,
# then a gradient's sum over 7 * 3 rows; LayerNorm and softmax add a few dozen roundings.
TERMS = 2 * 3 * 7 * 42 + 21 + 64


def tokens(*shape: int) -> Tensor:
    return torch.randint(1, VOCAB, shape, generator=torch.Generator().manual_seed(5))


def normal(dtype: torch.dtype, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(6), dtype=torch.float64).to(dtype)


class Tagger(nn.Module):
    """Embedding, a bidirectional LSTM over packed rows, a linear layer per token."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCAB, 6, padding_idx=0)
        self.lstm = nn.LSTM(6, 5, num_layers=2, batch_first=True, bidirectional=True, dropout=0.2)
        self.head = nn.Linear(10, 4)

    def forward(self, words: Tensor, lengths: Tensor) -> Tensor:
        packed = pack_padded_sequence(self.embedding(words), lengths, batch_first=True, enforce_sorted=False)
        self.lstm.flatten_parameters()
        output, _ = self.lstm(packed)
        padded, _ = pad_packed_sequence(output, batch_first=True, total_length=words.size(1))
        return self.head(padded)


class Seq2Seq(nn.Module):
    """A GRU encoder, a GRUCell decoder with dot-product attention, teacher forcing."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCAB, 6)
        self.encoder = nn.GRU(6, 4, bidirectional=True)
        self.bridge = nn.Linear(8, 8)
        self.decoder = nn.GRUCell(6 + 8, 8)
        self.out = nn.Linear(16, VOCAB)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        memory, h_n = self.encoder(self.embedding(source))
        hidden = torch.tanh(self.bridge(torch.cat([h_n[-2], h_n[-1]], dim=1)))
        context, logits = torch.zeros_like(hidden), []
        for step in self.embedding(target):
            hidden = self.decoder(torch.cat([step, context], dim=1), hidden)
            scores = torch.einsum("tbh,bh->tb", memory, hidden).softmax(dim=0)
            context = torch.einsum("tb,tbh->bh", scores, memory)
            logits.append(self.out(torch.cat([hidden, context], dim=1)))
        return torch.stack(logits)


class ResidualStack(nn.Module):
    """Bidirectional LSTMs with projections in a ModuleList, each with a residual, dropout and a LayerNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.LSTM(8, 6, proj_size=4, bidirectional=True) for _ in range(3))
        self.norms = nn.ModuleList(nn.LayerNorm(8) for _ in range(3))
        self.dropout = nn.Dropout(0.3)

    def forward(self, x: Tensor) -> Tensor:
        for layer, norm in zip(self.layers, self.norms, strict=True):
            x = norm(x + self.dropout(layer(x)[0]))
        return x


class CRNN(nn.Module):
    """Text recognition: convolutions whose columns a bidirectional LSTM reads, log-probabilities for CTC."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
        self.rnn = nn.LSTM(3 * 4, 5, bidirectional=True)
        self.head = nn.Linear(10, VOCAB)

    def forward(self, image: Tensor) -> Tensor:
        columns = self.features(image).permute(3, 0, 1, 2).flatten(2)  # (B, C, 8, W) to (W, B, C * 4)
        return F.log_softmax(self.head(self.rnn(columns)[0]), dim=-1)


class Policy(nn.Module):
    """Reinforcement learning: a state carried from step to step by the caller, and reset where an episode began."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 8), nn.Tanh())
        self.core = nn.LSTM(8, 8)
        self.critic_cell = nn.LSTMCell(8, 5)
        self.actor, self.critic = nn.Linear(8, 3), nn.Linear(5, 1)

    def step(self, x: Tensor, alive: Tensor, state: Any) -> tuple[Tensor, Tensor, Any]:
        core, cell = ([s * alive.unsqueeze(-1) for s in states] for states in state)
        features = self.body(x)
        output, new_core = self.core(features.unsqueeze(0), tuple(core))
        new_cell = self.critic_cell(features, tuple(cell))
        return self.actor(output[0]), self.critic(new_cell[0]), (new_core, new_cell)

    def forward(self, observations: Tensor, alive: Tensor) -> tuple[Tensor, Tensor]:
        batch = observations.size(1)
        state = tuple((observations.new_zeros(*s), observations.new_zeros(*s)) for s in ((1, batch, 8), (batch, 5)))
        actions, values = [], []
        for x, mask in zip(observations, alive, strict=True):
            action, value, state = self.step(x, mask, state)
            actions.append(action)
            values.append(value)
        return torch.stack(actions), torch.stack(values)


class CharModel(nn.Module):
    """A language model: an Elman RNN, the embedding tied to the output, a caller's hidden state."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCAB, 6)
        self.rnn = nn.RNN(6, 6, num_layers=2, nonlinearity="tanh", batch_first=True)
        self.decoder = nn.Linear(6, VOCAB)
        self.decoder.weight = self.embedding.weight

    def forward(self, characters: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        output, hidden = self.rnn(self.embedding(characters), hidden)
        return self.decoder(output), hidden


ARCHITECTURES: dict[str, tuple[type[nn.Module], MakeInputs]] = {
    "tagger": (Tagger, lambda dtype: (tokens(B, T), torch.tensor([4, T, 2]))),
    "seq2seq": (Seq2Seq, lambda dtype: (tokens(T, B), tokens(4, B))),
    "residual": (ResidualStack, lambda dtype: (normal(dtype, T, B, 8),)),
    "crnn": (CRNN, lambda dtype: (normal(dtype, B, 1, 8, 2 * T),)),
    "policy": (Policy, lambda dtype: (normal(dtype, T, B, 6), (tokens(T, B) > 3).to(dtype))),
    "char": (CharModel, lambda dtype: (tokens(B, T), normal(dtype, 2, B, 6))),
}


def build(name: str, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, tuple[Any, ...]]:
    """The model, the same weights at every call, and the inputs of one call."""
    architecture, make_inputs = ARCHITECTURES[name]
    torch.manual_seed(0)
    return architecture().to(dtype).eval(), make_inputs(dtype)


def results(model: nn.Module, *inputs: Any) -> dict[str, Tensor]:
    """Every output, and the gradients of all parameters for fixed cotangents, which are left in ``grad`` too."""
    outputs, _ = tree_flatten(model(*inputs))
    g = torch.Generator().manual_seed(3)
    cotangents = [torch.randn(out.shape, generator=g, dtype=torch.float64).to(out.dtype) for out in outputs]
    model.zero_grad()
    torch.autograd.backward(outputs, cotangents)
    grads = {f"d_{name}": parameter.grad for name, parameter in model.named_parameters()}
    return {f"output {k}": out.detach() for k, out in enumerate(outputs)} | grads


def kinds(model: nn.Module) -> list[type]:
    return [type(module) for module in model.modules()]
