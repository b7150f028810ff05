"""FastAPI + uvicorn: an event loop for each copy of the model, which runs in it.

async def, though a model blocks: its docs (Concurrency and async / await) say so for what has nothing to wait for, one
loop has one model, and through the threads of a plain def the no-op model served half as many.  A model of pydantic for
the answer, which its docs (Custom Response) call the fastest way; orjson for the question, by the class of requests
that its docs (Custom Request and APIRoute class) show; uvicorn[standard], for uvloop and httptools.
"""

from collections.abc import Awaitable, Callable
from typing import Any

import orjson
from fastapi import FastAPI, Request
from fastapi.routing import APIRoute
from pydantic import BaseModel

from bench.peers import models


class OrJSONRequest(Request):
    async def json(self) -> Any:
        return orjson.loads(await self.body())


class OrJSONRoute(APIRoute):
    def get_route_handler(self) -> Callable[[Request], Awaitable[Any]]:
        handle = super().get_route_handler()

        async def read(request: Request) -> Any:
            return await handle(OrJSONRequest(request.scope, request.receive))

        return read


class Question(BaseModel):
    x: list[float]


class Reply(BaseModel):
    y: str | list[float]


app = FastAPI()
app.router.route_class = OrJSONRoute
model = models.load()


@app.post("/predict")
async def predict(question: Question) -> Reply:
    return Reply(y=model.one(question.x))
