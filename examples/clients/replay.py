"""Asks a server again for what a prediction log has, and tells how many of its rows are answered otherwise.

Needs requests and pyarrow:  python replay.py run/predictions [http://127.0.0.1:8080]
"""

import base64
import json
import math
import sys
from itertools import groupby
from pathlib import Path
from typing import Any

import pyarrow.parquet
import requests


def main(folder: str, url: str = "http://127.0.0.1:8080") -> None:
    asked = other = 0
    with requests.Session() as session:
        for file in sorted(Path(folder).glob("*.parquet")):
            rows = pyarrow.parquet.read_table(file).to_pylist()
            # the rows of a request stand one after the other
            for _, request in groupby(rows, key=lambda row: (row["time"], row["request_id"])):
                some = list(request)
                told = ask(session, url, some)
                asked += len(some)
                other += sum(not same(side(row, "outputs."), answer) for row, answer in zip(some, told, strict=True))
    print(f"{asked} rows, {other} of them answered otherwise")


def ask(session: requests.Session, url: str, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The answers to the rows of a request, with their names."""
    body = {"instances": [side(row, "inputs.") for row in rows]}
    if rows[0]["signature"]:
        body["signature_name"] = rows[0]["signature"]
    answer = session.post(f"{url}/predict", json.dumps(body, default=in_base64), timeout=30)
    answer.raise_for_status()
    names = list(side(rows[0], "outputs."))
    predictions = answer.json()["predictions"]
    # of one output, its name is left out
    return predictions if len(names) > 1 else [{names[0]: prediction} for prediction in predictions]


def side(row: dict[str, Any], prefix: str) -> dict[str, Any]:
    return {name.removeprefix(prefix): value for name, value in row.items() if name.startswith(prefix)}


def in_base64(value: bytes) -> dict[str, str]:
    """A string that is no text."""
    return {"b64": base64.b64encode(value).decode()}


def same(one: Any, other: Any) -> bool:
    """Whether both are the same but for the last digits of their numbers."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[name], other[name]) for name in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, float) and isinstance(other, float | int):
        return math.isclose(one, other, rel_tol=1e-4, abs_tol=1e-6) or (math.isnan(one) and math.isnan(other))
    return bool((in_base64(one) if isinstance(one, bytes) else one) == other)


if __name__ == "__main__":
    main(*sys.argv[1:])
