"""Sends one JSON body to a server and prints its answer.  Needs Python alone.

usage: python examples/client.py FILE [URL]

  FILE   the body, for example models/digits/sample.json or examples/fancy/sample.json
  URL    http://127.0.0.1:8080/predict
"""

import json
import sys
import time
import urllib.error
import urllib.request
import uuid
from pathlib import Path

TRIES = 5


def predict(body: bytes, url: str) -> dict:
    """The server's answer; a server that says "not now" (503) is asked again after as long as it asks for."""
    # the same id in each try: the server's logs show them side by side
    headers = {"Content-Type": "application/json", "X-Request-ID": str(uuid.uuid4())}
    for left in reversed(range(TRIES)):
        try:
            with urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=30) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            with error:
                problem = json.load(error)
                if error.code != 503 or not left:
                    sys.exit(f"{error.code} {problem['code']}: {problem['detail']} (request {problem['request_id']})")
                time.sleep(float(error.headers.get("Retry-After", 1)))
    raise AssertionError("unreachable")


def main(file: str, url: str = "http://127.0.0.1:8080/predict") -> None:
    answer = predict(Path(file).read_bytes(), url)
    for name, value in answer.items():
        print(f"{name}: {json.dumps(value)}")


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    try:
        main(*sys.argv[1:])
    except (OSError, json.JSONDecodeError) as error:
        sys.exit(f"no answer: {error}")
