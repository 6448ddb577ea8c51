"""Steps of the table of weighted ids, of which a batch needs few rows: a step costs what these rows cost.

AdamW would move every row in every step, and keep two more tables. Plain gradient descent needs neither: the features
of a sequence have the size 1 together, so that one rate suits all tables.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..._wide import WeightedIds
from ...classifier import SequenceClassifier
from ..ranks import Ranks

__all__ = ["Table"]

_ROWS = 32  # of a batch; the sum over more rows is scaled down to so many, as frequent ids occur in each of them


class Table:
    """The table of a model's wide part, whose gradient becomes sparse.

    Args:
        module: the wide part.
        rate: the share of the gradient, summed over up to 32 sequences, that a step takes.
    """

    def __init__(self, module: WeightedIds, rate: float) -> None:
        module.sparse = True
        self.module, self.weight, self.rate = module, module.weight, rate

    def close(self) -> None:
        """Gives the table an ordinary gradient again, for other optimizers."""
        self.module.sparse = False

    @classmethod
    def of(cls, model: SequenceClassifier, rate: float) -> Table | None:
        return cls(model.wide, rate) if isinstance(model.wide, WeightedIds) else None

    def gradient(self, ranks: Ranks) -> tuple[Tensor, Tensor]:
        """The rows that occur in any process's share of the batch, once each, and their gradients."""
        found = self.weight.grad
        if found is None:  # a process may have no rows of this batch
            none = torch.zeros(1, 0, dtype=torch.int64, device=self.weight.device)
            found = torch.sparse_coo_tensor(none, self.weight[none[0]].detach(), self.weight.shape)
        if ranks.world > 1:
            pieces = ranks.all((found._indices().cpu(), found._values().cpu()))
            rows, values = zip(*pieces, strict=True)
            found = torch.sparse_coo_tensor(torch.cat(rows, 1), torch.cat(values), self.weight.shape)
            found = found.to(self.weight.device)
        found = found.coalesce()
        return found.indices()[0], found.values()

    @torch.no_grad()
    def step(self, rows: Tensor, gradient: Tensor, share: float, count: int) -> None:
        """Moves these rows against the gradient of the mean over ``count`` sequences, at this share of the rate."""
        self.weight[rows] -= self.rate * share * min(count, _ROWS) * gradient
