"""Serves a model of to_runtime() over HTTP and WebSocket with FastAPI, without torch. docs/serving.md says how.

MODEL=model.sfm uvicorn --app-dir examples serve:app
"""

import json
import os
from collections.abc import Callable
from typing import Any

import numpy as np
from fastapi import FastAPI, HTTPException, Request, WebSocket  # type: ignore[import-not-found, unused-ignore]
from fastapi.concurrency import run_in_threadpool  # type: ignore[import-not-found, unused-ignore]

from seqcls_fast.runtime import Model

MOST_BYTES, MOST_SEQUENCES, MOST_STEPS, MOST_STREAMS = 4_000_000, 256, 10_000, 1_000
model, app, open_streams = Model.open(os.environ["MODEL"]), FastAPI(), 0


def answer(message: str | bytes, most: int, run: Callable[[Any], Any]) -> list[Any]:
    """What `run` makes of a list in JSON. A ValueError is a sentence for the client."""
    try:
        given = json.loads(message)
        if not isinstance(given, list) or not 1 <= len(given) <= most:
            raise ValueError(f"expected a list of 1 to {most}")
        if any(isinstance(each, list | str) and len(each) > MOST_STEPS for each in given):
            raise ValueError(f"expected at most {MOST_STEPS} steps or characters in each")
        if np.isnan(found := run(given)).any():
            raise ValueError("expected numbers but got NaN, or null")
        return found.tolist()
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"the model does not take this JSON: {error}") from None


@app.post("/predict")
async def predict(request: Request) -> dict[str, Any]:
    body = b""
    async for part in request.stream():
        if len(body := body + part) > MOST_BYTES:
            raise HTTPException(413, f"body: expected at most {MOST_BYTES} bytes")
    try:
        found = await run_in_threadpool(answer, body, MOST_SEQUENCES, model.predict_proba)
        return {"classes": model.classes.tolist(), "probabilities": found}
    except ValueError as error:
        raise HTTPException(422, str(error)) from None


@app.websocket("/stream")
async def follow(socket: WebSocket) -> None:
    """A connection is a sequence of its own, which ends with it. After an error it is as before the message."""
    global open_streams
    await socket.accept()
    if not model.is_streamable or open_streams >= MOST_STREAMS:
        return await socket.close(1013, "expected a model that streams, and a free stream")
    open_streams, stream = open_streams + 1, model.stream()
    try:
        async for text in socket.iter_text():
            state = stream.get_state()
            try:
                await socket.send_json({"output": await run_in_threadpool(answer, text, MOST_STEPS, stream.push)})
            except ValueError as error:
                stream.set_state(state)
                await socket.send_json({"error": str(error)})
    except KeyError:  # a message of bytes
        await socket.close(1003, "expected messages of text")
    finally:
        open_streams -= 1
