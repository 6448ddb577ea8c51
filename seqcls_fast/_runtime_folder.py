"""A folder that save() wrote, as a file of the runtime in memory. It needs numpy alone, and runs no code from there.

What the library cannot see is checked here: that the files belong together and were not changed. It checks all else.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from ._files import digest, open_regular
from ._runtime_format import Tensors, add_classifier, packed_file

__all__ = ["NoFolderError", "file_of"]

CONFIG, WEIGHTS, FORMAT = "config.json", "model.safetensors", 1  # as toolkit/store.py has them
_MODEL = "model."  # what the names of the model's tensors begin with; others are for the estimator alone


class NoFolderError(ValueError):
    """A folder that the runtime cannot run."""


def file_of(folder: str | os.PathLike[str]) -> tuple[bytes, dict[str, Any]]:
    """The bytes of the file, and the content of config.json."""
    import hashlib

    config = os.path.join(folder, CONFIG)
    try:
        with open_regular(config) as file:
            saved = json.loads(file.read())
        with open_regular(os.path.join(folder, WEIGHTS)) as file:
            content = file.read()
        if not isinstance(saved, dict) or saved.get("format") != FORMAT:
            raise NoFolderError(f"expected format {FORMAT} of save() but got another")
        if hashlib.sha256(content).hexdigest() != saved["sha256"]:
            raise NoFolderError(f"expected the {WEIGHTS} that was saved with it, but it is truncated or changed")
        encoder = json.loads(saved["encoder"])
        if encoder.pop("sha256") != digest(encoder):
            raise NoFolderError("expected an encoder that fits its checksum, but it was changed")
        tensors = _tensors(content)
        about = {"dtype": "float32"} | _network(saved, tensors)
        add_classifier(about, tensors, saved)
        return packed_file(about, tensors), saved
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"path: expected a file of to_runtime() or a folder of save() but there is no {error.filename or folder}"
        ) from None
    except NoFolderError as error:
        raise NoFolderError(f"{config}: {error}") from None
    except (LookupError, TypeError, ValueError, AttributeError, RecursionError) as error:
        words = f"{type(error).__name__}: {error}"
        raise NoFolderError(f"{config}: expected what save() writes but got {words:.200}") from None


def _tensors(content: bytes) -> Tensors:
    """The tensors of the model in a file of safetensors."""
    size = int.from_bytes(content[:8], "little")
    header, found = json.loads(content[8 : 8 + size]), {}
    for name, entry in header.items():
        if not name.startswith(_MODEL):
            continue
        if entry["dtype"] != "F32":
            raise NoFolderError(f"expected weights in float32 but got {entry['dtype']!r:.40}")
        begin, end = entry["data_offsets"]
        data = memoryview(content)[8 + size + begin : 8 + size + end]
        found[name.removeprefix(_MODEL)] = np.frombuffer(data, "<f4").reshape(entry["shape"])
    return found


def _network(saved: Mapping[str, Any], tensors: Tensors) -> dict[str, Any]:
    """The description of the network."""
    parameters, w_ih = saved["parameters"], tensors["encoder.weight_ih_l0"]
    embedding = tensors.get("embedding.weight")
    given = {"features": w_ih.shape[1]} if embedding is None else {"vocabulary": len(embedding), "padding": 0}
    encoder = {
        "cell": parameters["cell"], "inputs": w_ih.shape[1], "hidden": parameters["hidden_size"],
        "layers": parameters["num_layers"], "directions": 1 + bool(parameters["bidirectional"]), "projection": 0,
        "bias": True,
    }  # fmt: skip
    head = {"classes": len(saved["classes"])}
    return {"input": given, "encoder": encoder, "pooling": parameters["pooling"], "head": head}
