"""What the load asks, and what the right answers are.

fancy    a function of the text, compared byte by byte
digits   images whose answers differ, computed by TensorFlow in a process of its own, compared within TOLERANCE
"""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
FANCY = ROOT / "examples" / "fancy"
DIGITS = ROOT / "models" / "digits"
# a batch of another size may sum in another order
TOLERANCE = 1e-5
# between any two answers: one that went to the wrong request is seen
APART = 1e-3

_ANSWERS = """
import json, sys
import numpy as np
import tensorflow as tf
from sklearn.datasets import load_digits
folder, apart = sys.argv[1], float(sys.argv[2])
images = load_digits().images.astype(np.float32)
answers = {name: tensor.numpy() for name, tensor in
           tf.saved_model.load(folder).signatures["serving_default"](image=tf.constant(images)).items()}
chosen = []
for place, found in enumerate(answers["probabilities"]):
    if not chosen or np.abs(answers["probabilities"][chosen] - found).max(axis=1).min() > apart:
        chosen.append(place)
for place in chosen:
    print(json.dumps([images[place].astype(int).tolist(), int(answers["digit"][place]),
                      answers["probabilities"][place].tolist()]))
"""


class Fancy:
    """A text that never comes twice, and the sentence that examples/fancy makes of it."""

    def __init__(self, name: str) -> None:
        self._name = name.encode()

    def body(self, number: int) -> bytes:
        return b'{"text":"%s %d"}' % (self._name, number)

    def is_right(self, number: int, answer: bytes) -> bool:
        return answer == b'{"res":"Can\'t tell anything smart about: %s %d"}' % (self._name, number)


class Digits:
    """Images of digits, one after the other."""

    def __init__(self, folder: Path = DIGITS) -> None:
        version = max((path for path in folder.iterdir() if path.name.isdecimal()), key=lambda path: int(path.name))
        told = subprocess.run(
            [sys.executable, "-c", _ANSWERS, version, str(APART)], capture_output=True, text=True, check=True
        )
        rows = [json.loads(line) for line in told.stdout.splitlines()]
        self._bodies = [json.dumps({"image": image}).encode() for image, _, _ in rows]
        self._answers: list[tuple[int, list[float]]] = [(digit, probabilities) for _, digit, probabilities in rows]
        # the bytes that were right the last time, for most answers are the same again
        self._seen = [b""] * len(rows)

    def __len__(self) -> int:
        return len(self._bodies)

    def body(self, number: int) -> bytes:
        return self._bodies[number % len(self._bodies)]

    def is_right(self, number: int, answer: bytes) -> bool:
        place = number % len(self._bodies)
        if answer == self._seen[place]:
            return True
        try:
            found = json.loads(answer)
            digit, probabilities = self._answers[place]
            right = found["digit"] == digit and all(
                abs(one - other) <= TOLERANCE for one, other in zip(found["probabilities"], probabilities, strict=True)
            )
        except (ValueError, KeyError, TypeError):
            return False
        if right:
            self._seen[place] = answer
        return right
