"""Sends one JSON body to a server and prints the digit; urllib3 waits and asks again when it is told to.

Needs requests:  python predict_requests.py models/digits/sample.json [http://127.0.0.1:8080]
"""

import sys
from pathlib import Path

import requests
from requests.adapters import HTTPAdapter
from urllib3.util import Retry

# "not now": Retry-After says when; a prediction may be asked for twice
RETRIES = Retry(5, status_forcelist=[503], allowed_methods=None, respect_retry_after_header=True, raise_on_status=False)


def main(sample: str, url: str = "http://127.0.0.1:8080") -> None:
    with requests.Session() as session:
        session.mount(url, HTTPAdapter(max_retries=RETRIES))
        body = Path(sample).read_bytes()
        answer = session.post(f"{url}/predict", body, headers={"Content-Type": "application/json"}, timeout=30)
    told = answer.json()
    if not answer.ok:
        sys.exit(f"{answer.status_code} {told['code']}: {told['detail']} (request {told['request_id']})")
    print(told["digit"])


if __name__ == "__main__":
    main(*sys.argv[1:])
