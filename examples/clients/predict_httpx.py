"""Asks a server for several predictions at once, on connections that it keeps, and prints the digits.

A server that is busy says when to come back (Retry-After), and is asked again then.

Needs httpx:  python predict_httpx.py models/digits/sample.json [http://127.0.0.1:8080 [COUNT]]
"""

import asyncio
import json
import random
import sys
from pathlib import Path

import httpx

TRIES = 5
# requests that this client has under way
AT_ONCE = 8


async def predict(client: httpx.AsyncClient, row: dict) -> dict:
    for left in reversed(range(TRIES)):
        answer = await client.post("/predict", json=row)
        if answer.status_code != 503 or not left:
            break
        # not all of those that were refused together should come back together
        await asyncio.sleep(float(answer.headers.get("Retry-After", 1)) * random.uniform(1, 1.5))
    if answer.is_error:
        problem = answer.json()
        sys.exit(f"{answer.status_code} {problem['code']}: {problem['detail']} (request {problem['request_id']})")
    return answer.json()


async def main(sample: str, url: str = "http://127.0.0.1:8080", count: str = "1") -> None:
    row = json.loads(Path(sample).read_bytes())
    async with httpx.AsyncClient(base_url=url, timeout=30, limits=httpx.Limits(max_connections=AT_ONCE)) as client:
        answers = await asyncio.gather(*(predict(client, row) for _ in range(int(count))))
    print(*(answer["digit"] for answer in answers), sep="\n")


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
