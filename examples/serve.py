"""Serves a model of to_runtime() over HTTP and WebSocket with FastAPI, without torch. docs/serving.md says how.

MODEL=model.sfm uvicorn --app-dir examples serve:app
"""

from __future__ import annotations

import json
import os
from typing import Any

import numpy as np
from fastapi import FastAPI, HTTPException, Request, WebSocket  # type: ignore[import-not-found, unused-ignore]
from fastapi.concurrency import run_in_threadpool  # type: ignore[import-not-found, unused-ignore]

from seqcls_fast.runtime import Model, Stream

MOST_BYTES, MOST_SEQUENCES, MOST_STEPS, MOST_STREAMS = 4_000_000, 256, 10_000, 1_000
model, app, open_streams = Model.open(os.environ["MODEL"]), FastAPI(), 0


def read(text: str | bytes, name: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name}: expected JSON but got what cannot be read: {error}") from None


def predicted(body: bytes) -> dict[str, Any]:
    given = read(body, "body")
    sequences = given.get("sequences") if isinstance(given, dict) else None
    if not isinstance(sequences, list) or not 1 <= len(sequences) <= MOST_SEQUENCES:
        raise ValueError(f'body: expected {{"sequences": [...]}} with 1 to {MOST_SEQUENCES} of them')
    if any(isinstance(each, list) and len(each) > MOST_STEPS for each in sequences):
        raise ValueError(f"sequences: expected at most {MOST_STEPS} steps in each")
    found = model.predict_proba(sequences)
    if np.isnan(found).any():
        raise ValueError("sequences: expected numbers but got NaN, or null")
    return {"classes": np.asarray(model.classes).tolist(), "probabilities": found.tolist()}


def moved(stream: Stream, text: str) -> dict[str, Any]:
    """The answer to one message of a stream: the next steps, or "reset"."""
    try:
        chunk = read(text, "message")
        if chunk == "reset":
            stream.reset()
            return {"reset": True}
        if not isinstance(chunk, list) or not 1 <= len(chunk) <= MOST_STEPS:
            raise ValueError(f'message: expected a list of 1 to {MOST_STEPS} steps, or "reset"')
        output = stream.push(chunk)
        if np.isnan(output).any():
            stream.reset()  # its state is NaN from here on
            raise ValueError("message: expected numbers but got NaN, or null; the stream begins anew")
        return {"output": output.tolist()}
    except (ValueError, TypeError, OverflowError) as error:
        return {"error": str(error)}


@app.post("/predict")
async def predict(request: Request) -> dict[str, Any]:
    body = b""
    async for part in request.stream():
        if len(body) + len(part) > MOST_BYTES:
            raise HTTPException(413, f"body: expected at most {MOST_BYTES} bytes")
        body += part
    try:
        return await run_in_threadpool(predicted, body)
    except (ValueError, TypeError, OverflowError) as error:
        raise HTTPException(422, str(error)) from None


@app.websocket("/stream")
async def follow(socket: WebSocket) -> None:
    """A connection is a sequence of its own, which ends with it."""
    global open_streams
    await socket.accept()
    if not model.is_streamable or open_streams >= MOST_STREAMS:
        reason = "too many streams" if model.is_streamable else "the model needs whole sequences"
        return await socket.close(1013 if model.is_streamable else 1003, reason)
    open_streams += 1
    try:
        stream = model.stream()
        async for text in socket.iter_text():
            await socket.send_json(await run_in_threadpool(moved, stream, text))
    except KeyError:  # a message of bytes
        await socket.close(1003, "expected messages of text")
    finally:
        open_streams -= 1
