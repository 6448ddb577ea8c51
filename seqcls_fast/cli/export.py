"""`export`: a saved model's network as ONNX, as torch.export's program, or as a file of the runtime."""

from __future__ import annotations

import argparse
import copy
import json
import logging
import warnings
from pathlib import Path
from typing import Any

from ..toolkit._terminal import MESSAGE, escaped, shown
from .shared import UsageError, add_command, check_folder, load, plain, print_json, random_batch, replacing

__all__ = ["add"]

EXAMPLES = """\
The file also holds classes, temperature, threshold, about and, for texts, tokenizer as JSON: metadata of ONNX, or extra
files of torch.export.

examples:
  seqcls-fast export model --out model.onnx  standard ONNX, for onnxruntime and others
  seqcls-fast export model --out model.pt2   torch.export: torch.export.load("model.pt2") after import seqcls_fast
  seqcls-fast export model --out model.sfm   for libseqcls and seqcls_fast.runtime, which need no torch
"""


def add(commands: Any) -> None:
    purpose = "write a saved model's network for other programs: ids or features and lengths in, logits out"
    parser = add_command(commands, "export", purpose, EXAMPLES, _export)
    parser.add_argument("model", help="directory that train wrote")
    words = "a name that ends in .onnx, .pt2 or .sfm"
    parser.add_argument("--out", "--to", dest="to", required=True, metavar="FILE", help=words)


def _export(arguments: argparse.Namespace) -> None:
    path = Path(arguments.to)
    if path.suffix not in (".onnx", ".pt2", ".sfm"):
        raise UsageError(f"--out: expected a name that ends in .onnx, .pt2 or .sfm but got {shown(arguments.to)}")
    check_folder(path)
    estimator, _ = load(arguments.model)
    import torch

    model = copy.deepcopy(estimator.model_).cpu().eval()
    x, lengths, wide = random_batch(model, 2, longest=8)
    batch, time_steps, grams = (torch.export.Dim(name) for name in ("batch", "time", "grams"))
    shapes: dict[str, Any] = {"x": {0: batch, 1: time_steps}, "lengths": {0: batch}}
    inputs, given = ["x", "lengths"], {}
    if wide is not None:
        given["wide"] = wide
        is_ids = model.wide_ids is not None
        shapes["wide"] = ({0: batch, 1: grams},) * 2 if is_ids else {0: batch}
        inputs += ["wide_ids", "wide_weights"] if is_ids else ["wide"]
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it warns of operators that our models lack
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's exporter warns about its own code
        if path.suffix == ".sfm":
            from ..export import to_runtime

            to_runtime(estimator, path)
        elif path.suffix == ".onnx":
            from ..export import to_onnx

            names: dict[str, Any] = {"input_names": inputs, "output_names": ["logits"]}
            onnx = to_onnx(model, (x, lengths), kwargs=given, dynamic_shapes=shapes, **names)
            onnx.model.metadata_props.update(_metadata(estimator))
            with replacing(path) as written:
                onnx.save(written)
        else:
            program = torch.export.export(model, (x, lengths), given, dynamic_shapes=shapes)
            files = {f"{name}.json": text for name, text in _metadata(estimator).items()}
            with replacing(path) as written:
                torch.export.save(program, written, extra_files=files)
    features = "" if model.vocab_size else f", {model.input_size} features"
    answer = {
        "file": arguments.to, "x": f"{str(x.dtype).removeprefix('torch.')} (batch, time{features})",
        "lengths": "int64 (batch)", **_about_wide(model), "logits": f"float32 (batch, {model.num_classes})",
        "classes": estimator.classes_,
    }  # fmt: skip
    if model.vocab_size is not None:
        answer["tokenizer"] = estimator.encoder_.description
    if estimator.temperature_ != 1:
        answer["temperature"] = estimator.temperature_  # the user divides the logits by it
    if estimator.threshold_ is not None:
        answer["threshold"] = estimator.threshold_.to_json() if arguments.json else str(estimator.threshold_)
    if arguments.json:
        print_json(answer)
    else:
        print("\n".join(f"{name:<11} {escaped(value, MESSAGE)}" for name, value in plain(answer).items()))


def _about_wide(model: Any) -> dict[str, str]:
    """The inputs of the wide part, by name."""
    if model.wide_ids is not None:
        return {"wide_ids": f"int64 (batch, grams), below {model.wide_ids}", "wide_weights": "float32 (batch, grams)"}
    return {} if model.wide_features is None else {"wide": f"float32 (batch, {model.wide_features} features)"}


def _metadata(estimator: Any) -> dict[str, str]:
    """What turns the network's logits into labels, and a description of the model; each as JSON."""
    threshold = estimator.threshold_
    found = {
        "classes": estimator.classes_, "temperature": estimator.temperature_,
        "threshold": None if threshold is None else threshold.to_json(), "about": estimator.fitted_.about,
    }  # fmt: skip
    encoder = estimator.encoder_
    if estimator.model_.vocab_size is not None:
        found["tokenizer"] = encoder.description
    if estimator.model_.wide_ids is not None:  # from texts to ids: docs/classifiers.md has the rule
        found["ngrams"] = {name: getattr(encoder, name) for name in ("bits", "lowercase", "normalization")}
    return {name: json.dumps(plain(value)) for name, value in found.items()}
