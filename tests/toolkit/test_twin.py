"""The twin on torch.nn's layer computes what the classifier does, and the order of timing is fair."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from seqcls_fast.classifier import CELLS, POOLINGS, SequenceClassifier
from seqcls_fast.toolkit.timing import MIN_ROUNDS, timed, turns
from seqcls_fast.toolkit.twin import TorchTwin

LENGTHS = torch.tensor([7, 1, 4, 7, 2])


@pytest.mark.parametrize("packed", [True, False], ids=["packed", "padded"])
@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("cell", [name for name, cell in CELLS.items() if not cell.is_option])
def test_twin_computes_the_same(cell: str, pooling: str, packed: bool) -> None:
    torch.manual_seed(0)
    options: dict[str, Any] = {"cell": cell, "pooling": pooling, "num_layers": 2, "dtype": torch.float64}
    ours = SequenceClassifier(5, 6, 3, bidirectional=packed, **options)
    twin = TorchTwin(ours, packed)
    assert type(twin.model.encoder).__module__.startswith("torch.")
    x = torch.randn(5, 7, 5, dtype=torch.float64)
    expected, found = ours(x, LENGTHS), twin(x, LENGTHS)
    torch.testing.assert_close(found, expected)
    expected.square().sum().backward()
    found.square().sum().backward()
    gradients = {name.removeprefix("model."): p.grad for name, p in twin.named_parameters()}
    assert gradients.keys() == {name for name, _ in ours.named_parameters()}
    for name, p in ours.named_parameters():
        torch.testing.assert_close(gradients[name], p.grad, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("cell", [name for name, cell in CELLS.items() if cell.is_option])
def test_cells_that_torch_lacks_have_no_twin(cell: str) -> None:
    with pytest.raises(ValueError, match=f"model: expected a cell that torch.nn has but got {cell}"):
        TorchTwin(SequenceClassifier(5, 6, 3, cell=cell))


def test_twin_drops_out_the_same_values() -> None:
    ours = SequenceClassifier(5, 6, 3, vocab_size=20, dropout=0.5, embedding_dropout=0.5).train()
    ids = torch.randint(1, 20, (5, 7))
    logits = []
    for model in (ours, TorchTwin(ours).train(), TorchTwin(ours, packed=False).train()):
        torch.manual_seed(1)
        logits.append(model(ids, LENGTHS))
    torch.testing.assert_close(logits[1], logits[0])
    torch.testing.assert_close(logits[2], logits[0])
    assert not torch.equal(ours.eval()(ids, LENGTHS), logits[0])


def test_twin_is_independent_of_the_model() -> None:
    ours = SequenceClassifier(5, 6, 3).eval()
    x = torch.randn(5, 7, 5)
    twin, before = TorchTwin(ours), ours(x, LENGTHS)
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.zero_()
    torch.testing.assert_close(twin(x, LENGTHS), before, rtol=1e-4, atol=1e-5)


def test_padding_is_refused_in_two_directions() -> None:
    with pytest.raises(ValueError, match="packed: expected True for a bidirectional model"):
        TorchTwin(SequenceClassifier(5, 6, 3, bidirectional=True), packed=False)


def test_turns_rotate() -> None:
    found = list(turns("abc", 4))
    assert [number for number, _ in found] == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3
    assert "".join(name for _, name in found) == "abc" + "bca" + "cab" + "abc"
    assert list(turns([], 2)) == []


def test_no_round_begins_after_the_deadline_but_the_first() -> None:
    now = iter(range(100))
    assert len(list(turns("ab", 9, deadline=4, clock=lambda: next(now)))) == 2 * (MIN_ROUNDS + 5)
    assert len(list(turns("ab", 9, deadline=-1))) == 2 * MIN_ROUNDS
    assert len(list(turns("ab", 2, deadline=-1))) == 2 * 2


def test_timed() -> None:
    seconds, result = timed(lambda: "result")
    assert result == "result"
    assert 0 <= seconds < 60
