"""gunicorn + Flask: processes of threads.

gthread, because it keeps connections (the default, sync, closes each: nginx would connect anew for every request); 4
threads a process, of the 2 to 4 for each core that gunicorn's docs/design names.  Flask's docs (JSON support) say how
to replace its JSON by a faster one; we use orjson, so do they.
"""

from typing import Any

import orjson
from flask import Flask, request
from flask.json.provider import JSONProvider

from bench.peers import models


class OrJSON(JSONProvider):
    def dumps(self, obj: Any, **kwargs: Any) -> str:
        return orjson.dumps(obj).decode()

    def loads(self, s: str | bytes, **kwargs: Any) -> Any:
        return orjson.loads(s)


class App(Flask):
    json_provider_class = OrJSON


app = App(__name__)
model = models.load()


@app.post("/predict")
def predict() -> dict[str, models.Answer]:
    return {"y": model.one(request.get_json()["x"])}
