"""uWSGI mules as one would first write them: Flask pushes JSON on the queue, and looks into the cache for the answer.

It looks again and again, without a pause.  The other half is naive_mule.py.  Four HTTP processes.
"""

import json
import uuid

import uwsgi
from flask import Flask, Response, request

app = Flask(__name__)


@app.post("/predict")
def predict() -> Response:
    key = uuid.uuid4().hex
    uwsgi.queue_push(json.dumps({"key": key, "x": request.get_json()["x"]}).encode())
    uwsgi.mule_msg(b"wake up")
    while not uwsgi.cache_exists(key):
        pass
    answer = uwsgi.cache_get(key)
    uwsgi.cache_del(key)
    return Response(answer, mimetype="application/json")
