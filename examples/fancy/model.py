"""The stand-in for any slow model of which nothing is known: loads for 50 ms, predicts one text in 5 ms."""

import time


class Model:
    inputs = {"text": "string"}
    outputs = {"res": "string"}
    batched = False

    def __init__(self, path: str) -> None:
        time.sleep(0.05)

    def predict(self, inputs: dict[str, str]) -> dict[str, str]:
        time.sleep(0.005)
        return {"res": f"Can't tell anything smart about: {inputs['text']}"}
