"""The wide part of sequences on its way from the encoder to the model: batches, training, resuming, tracing."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from seqcls_fast.classifier import SequenceClassifier
from seqcls_fast.toolkit.data.datasets import Examples
from seqcls_fast.toolkit.data.leakage import Fingerprints
from seqcls_fast.toolkit.data.ragged import Arrays, Bags, Ragged
from seqcls_fast.toolkit.data.stream import Stream
from seqcls_fast.toolkit.data.text import TextEncoder
from seqcls_fast.toolkit.fitted import Fitted
from seqcls_fast.toolkit.inputs import TextInputs
from seqcls_fast.toolkit.ranks import ALONE
from seqcls_fast.toolkit.trace import trace
from seqcls_fast.toolkit.training.checkpoint import Checkpoints
from seqcls_fast.toolkit.training.logits import logits_of
from seqcls_fast.toolkit.training.threads import work_of
from support import two_ranks
from support.interruptions import Killed, kill_after

IDS = Bags(Ragged.of([[3, 4], [5], [6, 7, 8]]), Ragged.of([[0.5, 1.0], [2.0], [1.0, 1.0, 3.0]]))
ROWS = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])


def ragged(wide: Any) -> Ragged:
    return Ragged(torch.arange(1, 5), torch.tensor([2, 1, 1]), wide)


@pytest.mark.parametrize("wide", [IDS, ROWS, None], ids=["ids", "rows", "none"])
def test_it_goes_where_its_sequence_goes(wide: Any) -> None:
    whole = ragged(wide)
    taken = whole.take([2, 0])
    there = pickle.loads(pickle.dumps(taken.arrays()))
    assert isinstance(there, Arrays)
    for found in (taken.inputs([0, 1]), whole.inputs(torch.tensor([2, 0])), Ragged.from_arrays(there).inputs([0, 1])):
        assert (found.x.tolist(), found.lengths.tolist()) == ([[4, 0], [1, 2]], [1, 2])
        if wide is IDS:
            assert found.wide[0].tolist() == [[6, 7, 8], [3, 4, 0]]
            assert found.wide[1].tolist() == [[1.0, 1.0, 3.0], [0.5, 1.0, 0.0]]
        else:
            assert (found.wide if wide is None else found.wide.tolist()) == (wide if wide is None else [[5, 6], [1, 2]])


def test_as_many_as_sequences() -> None:
    for wide in (ROWS[:2], Bags(IDS.ids.take([0]), IDS.weights.take([0]))):
        with pytest.raises(ValueError, match="wide: expected 3 rows, as there are sequences, but got others"):
            ragged(wide)


def test_the_digest_knows_it() -> None:
    parts = [None, ROWS, ROWS + 1, IDS, Bags(IDS.weights, IDS.ids)]
    digests = {Examples(ragged(wide), torch.tensor([0, 1, 0])).digest() for wide in parts}
    assert len(digests) == len(parts)


@pytest.mark.parametrize("case", two_ranks.WIDE)
def test_training_learns_it(case: str) -> None:
    """The targets are what the wide part says, and nothing else says it."""
    data = two_ranks.examples(1, 33, False, case)
    wide = data.sequences.wide
    says = (wide.ids.inputs(range(33)).x[:, 0] if isinstance(wide, Bags) else (wide[:, 0] > 0).long()) % 3
    net, history = two_ranks.model(case), []
    two_ranks.train(
        net, Examples(data.sequences, says), two_ranks.Options(60, 8, 1e-2, verbose=False), torch.device("cpu"), None,
        history,
    )  # fmt: skip
    assert history[-1]["accuracy"] > 0.8
    assert net.wide.weight.abs().sum() > 1


def test_a_step_moves_only_the_rows_that_occur() -> None:
    net = two_ranks.model("wide-ids")
    data = two_ranks.examples(1, 33, False, "wide-ids")
    used = data.sequences.wide.ids.values.unique()
    two_ranks.train(net, data, two_ranks.OPTIONS, torch.device("cpu"), None, [])
    moved = net.wide.weight.abs().sum(1).nonzero().squeeze(1)
    assert moved.tolist() == used.tolist()
    assert len(used) < 40


@pytest.mark.parametrize("case", two_ranks.WIDE)
@pytest.mark.parametrize("steps", [2, 7])
def test_a_killed_training_ends_with_the_same_bits(case: str, steps: int, tmp_path: Path) -> None:
    expected, history = two_ranks.trained(case, ALONE)
    with pytest.MonkeyPatch.context() as patch:
        kill_after(steps, patch)
        with pytest.raises(Killed):
            two_ranks.trained(case, ALONE, checkpoints=Checkpoints(tmp_path, 0))
    found, again = two_ranks.trained(case, ALONE, saved=Checkpoints(tmp_path, 0).newest()["state"])
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert [each["loss"] for each in again] == [each["loss"] for each in history]


def test_logits_in_small_batches_have_the_same_bits() -> None:
    torch.manual_seed(0)
    model = SequenceClassifier(3, 5, 3, wide_ids=40).eval()
    torch.nn.init.normal_(model.wide.weight)
    sequences = two_ranks.examples(1, 33, False, "wide-ids").sequences
    narrow = Bags(sequences.wide.ids, Ragged(sequences.wide.weights.values.float(), sequences.wide.weights.lengths))
    sequences = Ragged(sequences.values.float(), sequences.lengths, narrow)
    found = [logits_of(model, sequences, size, torch.device("cpu")) for size in (33, 1, 8)]
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_a_table_is_no_work_for_threads() -> None:
    plain, wide = (SequenceClassifier(3, 5, 3, **more) for more in ({}, {"wide_ids": 1 << 20}))
    assert work_of(wide, 100, True) == work_of(plain, 100, True)


@pytest.mark.parametrize("kind", ["word", "char", "bpe"])
def test_prefixes_have_the_ids_of_the_tokens_before(kind: str) -> None:
    text = " It isn't  naïve; 中文 ok… "
    encoder = TextEncoder(kind, max_vocab=400).fit([text, "other"])
    ids = encoder.encode([text]).values.tolist()
    prefixes = encoder.prefixes(text, range(len(ids) + 1))
    assert prefixes[0] == ""
    if kind != "bpe":  # a prefix may end within a character's bytes
        assert [each.tolist() for each in encoder.encode(prefixes).split()] == [ids[:k] for k in range(len(ids) + 1)]
    assert [len(each) for each in prefixes] == sorted(len(each) for each in prefixes)
    assert prefixes[-1].strip() == text.strip().lower()


class WithLengths(TextEncoder):
    """Adds a wide part: how many characters a text has, and as weighted ids its first and last character."""

    dense = True

    def encode(self, texts: Any) -> Ragged:
        found = super().encode(texts)
        ids = Ragged.of([[ord(each) for each in text[:1] + text[-1:]] for text in texts])
        dense = torch.tensor([[float(len(text))] for text in texts]).reshape(-1, 1)
        return Ragged(
            found.values, found.lengths, dense if self.dense else Bags(ids, Ragged(ids.values.double(), ids.lengths))
        )


@pytest.mark.parametrize("dense", [True, False])
@pytest.mark.parametrize("workers", [0, 1])
def test_streams_carry_it(dense: bool, workers: int, tmp_path: Path) -> None:
    texts = [f"{chr(97 + k % 26)}{'x' * (k % 7)} word{k % 5}" for k in range(100)]
    (tmp_path / "a.csv").write_text("text,label\n" + "".join(f"{text},{len(text) % 3}\n" for text in texts))
    stream, encoder = Stream(tmp_path), WithLengths()
    encoder.dense = dense
    stream.survey(encoder)
    [piece] = stream.pieces(encoder, workers=workers)
    assert [each.tolist() for each in piece.sequences.tensors()] == [
        each.tolist() for each in encoder.encode(texts).tensors()
    ]
    for batch in stream.epoch(encoder, 16, 0, 0, workers=workers):
        wide = batch.sequences.inputs(batch.rows).wide
        lengths = wide[:, 0] if dense else wide[0].sum(1)
        assert len(lengths) == len(batch.rows)
        if dense:
            assert (lengths.long() % 3).tolist() == batch.targets[batch.rows].tolist()


def test_trace_gives_each_prefix_its_own(tmp_path: Path) -> None:
    encoder = WithLengths().fit(["good film", "bad"])
    model = SequenceClassifier(4, 5, 2, vocab_size=encoder.vocab_size, wide_features=1).eval()
    torch.nn.init.normal_(model.wide.weight)
    seen = Fingerprints(frozenset(), frozenset())
    fitted = Fitted(TextInputs(), {}, encoder, np.array(["a", "b"]), model, seen, [], 1, seed=0, data=None)
    text = "good bad  film!"
    found = trace(fitted, text)
    assert found.steps == [0, 1, 2, 3, 4]
    with torch.no_grad():
        for row, prefix in enumerate(["", "good", "good bad", "good bad  film", text]):
            wide = torch.tensor([[float(len(prefix))]])
            expected = Ragged(encoder.encode([prefix or " "]).values, torch.tensor([row]), wide)
            logits = expected.inputs([0]).through(model)
            torch.testing.assert_close(found.probabilities[row].float(), logits.softmax(1)[0])
    [wide] = [stage.values for stage in found.stages if stage.name == "wide"]
    torch.testing.assert_close(wide, len(text) * model.wide.weight.detach().T)
