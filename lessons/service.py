"""The digit function as an HTTP service: `POST /digit/probability` and `POST /digit/gradient`.

Both take a picture as JSON, {"picture": [[0.0, ...], ...]}: 28 rows of 28 values from 0 (black) to 1 (white). Anything
else gets status 422 and an error message.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import uvicorn
from digit import Digit, checked, gradient, numerical_gradient, probability
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel


class Body(BaseModel):
    """A picture, as rows of pixel values."""

    picture: list[list[float]]
    finite_differences: bool = False  # for the gradient, instead of a backward pass


def service(digit: Digit) -> FastAPI:
    """The two endpoints around a digit function."""
    app, fp64 = FastAPI(title="The digit function"), Digit().double().eval()
    fp64.load_state_dict(digit.state_dict())

    def read(body: Body) -> torch.Tensor:
        widths = sorted({len(row) for row in body.picture})
        if len(widths) > 1:
            raise ValueError(f"got rows of {' and '.join(map(str, widths))} values, expected 28 rows of 28")
        return checked(torch.tensor(body.picture, dtype=torch.float64)[None])

    @app.post("/digit/probability")
    def probability_of(body: Body) -> dict[str, float]:
        """The probability that the picture is a digit."""
        return {"probability": probability(fp64, read(body)).item()}

    @app.post("/digit/gradient")
    def gradient_of(body: Body) -> dict[str, list[list[float]] | int]:
        """The gradient of the log-probability, and how often the function was evaluated."""
        (picture,) = read(body)
        if body.finite_differences:
            values, evaluations = numerical_gradient(fp64, picture)
        else:
            values, evaluations = gradient(fp64, picture[None])[0], 1
        return {"gradient": values.tolist(), "evaluations": evaluations}

    @app.exception_handler(ValueError)
    def refuse(_: Request, error: ValueError) -> JSONResponse:
        return JSONResponse({"error": f"picture: {error}"}, status_code=422)

    @app.exception_handler(RequestValidationError)
    def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"][1:]) or "the body"
        return JSONResponse({"error": f"{where}: {first['msg']}; expected 28 rows of 28 values"}, status_code=422)

    return app


@contextmanager
def served(app: FastAPI) -> Iterator[str]:
    """Runs a server in this process, and yields its URL."""
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started and thread.is_alive():
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
