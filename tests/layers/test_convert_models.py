"""convert() and revert() on whole models: results, training and copies.

All are compared with the same model with torch's layers, before it is converted. All run for both kinds of classes that
a layer may get: ours alone, and ours and torch's at once.
"""

import copy
import io
import pickle

import pytest
import torch
from torch import Tensor, nn

from seqcls_fast import convert, revert
from support.architectures import ARCHITECTURES, TERMS, build, kinds, results
from support.tolerances import assert_close_by_name

pytestmark = pytest.mark.usefixtures("kept")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_architectures_stay_the_same(name: str, dtype: torch.dtype) -> None:
    model, inputs = build(name, dtype)
    before, classes = results(model, *inputs), kinds(model)
    report = convert(model)
    assert report.left == ()
    assert len(report.swapped) == sum(kind.__module__ == "torch.nn.modules.rnn" for kind in classes) > 0
    assert not any(kind.__module__ == "torch.nn.modules.rnn" for kind in kinds(model))
    assert_close_by_name(results(model, *inputs), before, TERMS)
    assert revert(model).swapped.keys() == report.swapped.keys()
    assert kinds(model) == classes
    after = results(model, *inputs)
    assert all(torch.equal(after[key], want) for key, want in before.items())


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_an_optimizer_built_before_goes_on(name: str) -> None:
    def trained(converts: bool) -> dict[str, Tensor]:
        model, inputs = build(name, torch.float64)
        for module in model.modules():  # the two libraries may draw different numbers for dropout, so it is off
            if isinstance(module, nn.Dropout | nn.RNNBase):
                setattr(module, "p" if isinstance(module, nn.Dropout) else "dropout", 0.0)
        optimizer = torch.optim.SGD(model.train().parameters(), lr=0.05, momentum=0.9)
        for step in range(4):
            if step == 1 and converts:
                convert(model)
            results(model, *inputs)
            optimizer.step()
        return dict(model.named_parameters())

    assert_close_by_name(trained(True), trained(False), 4 * TERMS)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_copies_of_a_converted_model(name: str) -> None:
    model, inputs = build(name)
    state = copy.deepcopy(model.state_dict())
    convert(model)
    assert model.state_dict().keys() == state.keys()
    want = results(model, *inputs)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    fresh, _ = build(name)
    for parameter in fresh.parameters():
        nn.init.zeros_(parameter)
    convert(fresh)
    fresh.load_state_dict(state)
    copies = copy.deepcopy(model), pickle.loads(pickle.dumps(model)), torch.load(file, weights_only=False), fresh
    for other in copies:
        assert kinds(other) == kinds(model)
        assert all(torch.equal(got, want[key]) for key, got in results(other, *inputs).items())
        assert len(revert(other).swapped) > 0
        assert_close_by_name(results(other, *inputs), want, TERMS)
    assert type(model) is ARCHITECTURES[name][0]


@pytest.mark.parametrize("name", ["tagger", "residual"])
def test_dropout_follows_train_and_eval(name: str) -> None:
    model, inputs = build(name)
    model.train()
    convert(model)
    assert all(module.training for module in model.modules())
    assert not torch.equal(model(*inputs), model(*inputs))
    model.eval()
    assert torch.equal(model(*inputs), model(*inputs))
