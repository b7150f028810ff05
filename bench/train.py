"""Trains the two networks of the workloads digits and cnn, on real handwritten digits, into build/models.

usage: python -m bench.train [NAME…]

Each is a SavedModel with one input, x (rows, numbers) float32, and one output, y (rows, 10) float32; beside it lie a
sample, and in examples.json INPUTS inputs with their answers, of which any two are APART or more.

The data: see examples/digits/train.py.
"""

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import numpy.typing as npt

from bench.work import ROOT

FOLDER = ROOT / "build" / "models"
SEED = 7
INPUTS = 50
# the largest difference of two answers, so that one that went to the wrong request is seen
APART = 0.01

Array = npt.NDArray[Any]


def digits() -> tuple[Any, Array, list[Any]]:
    """64 numbers from 0 to 1, three dense layers."""
    import tensorflow as tf

    images, labels = _data()
    layers = tf.keras.layers
    inputs = (images.reshape(-1, 64) / 16).round(4).astype(np.float32)
    network = tf.keras.Sequential(
        [
            tf.keras.Input((64,)),
            layers.Dense(128, activation="relu"),
            layers.Dense(64, activation="relu"),
            layers.Dense(10, activation="softmax"),
        ]
    )
    _fit(network, inputs, labels, epochs=12)
    return network, inputs, (images.reshape(-1, 64) / 16).round(4).tolist()


def cnn() -> tuple[Any, Array, list[Any]]:
    """An image of 32 x 32 x 3 numbers from 0 to 255, as they come in one list; three convolutions."""
    import tensorflow as tf

    images, labels = _data()
    layers = tf.keras.layers
    large = np.kron(images / 16, np.ones((4, 4)))
    inputs = (np.repeat(large[..., None], 3, axis=3) * 255).astype(np.uint8).reshape(len(images), -1)
    network = tf.keras.Sequential(
        [
            tf.keras.Input((3072,)),
            layers.Reshape((32, 32, 3)),
            layers.Rescaling(1 / 255),
            layers.Conv2D(32, 3, activation="relu", padding="same"),
            layers.Conv2D(96, 3, activation="relu", padding="same"),
            layers.MaxPooling2D(),
            layers.Conv2D(96, 3, activation="relu", padding="same"),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dense(10, activation="softmax"),
        ]
    )
    some = slice(0, 600)
    _fit(network, inputs[some].astype(np.float32), labels[some], epochs=4)
    return network, inputs[some].astype(np.float32), inputs[some].tolist()


NETWORKS: dict[str, Callable[[], tuple[Any, Array, list[Any]]]] = {"digits": digits, "cnn": cnn}


def make(name: str) -> Path:
    """The folder of a network, trained unless it is there already."""
    folder = FOLDER / name
    if folder.exists():
        return folder
    import tensorflow as tf

    tf.keras.utils.set_random_seed(SEED)
    tf.config.experimental.enable_op_determinism()
    network, inputs, values = NETWORKS[name]()
    numbers = inputs.shape[1]

    @tf.function(input_signature=[tf.TensorSpec((None, numbers), tf.float32, name="x")])
    def serve(x):  # type: ignore[no-untyped-def]
        return {"y": network(x, training=False)}

    module = tf.Module()
    module.network = network
    module.serve = serve
    # all or nothing
    unfinished = folder.with_name(folder.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    tf.saved_model.save(module, str(unfinished / "1"), signatures={"serving_default": serve})
    answers = np.concatenate([serve(tf.constant(part))["y"].numpy() for part in np.array_split(inputs, 20)])
    chosen = _different(answers)
    examples = [{"x": values[place], "y": answers[place].tolist()} for place in chosen]
    (unfinished / "examples.json").write_text(json.dumps(examples) + "\n")
    (unfinished / "sample.json").write_text(json.dumps({"x": examples[0]["x"]}) + "\n")
    unfinished.rename(folder)
    return folder


def _data() -> tuple[Array, Array]:
    from sklearn.datasets import load_digits

    found = load_digits()
    return found.images, found.target


def _fit(network: Any, inputs: Array, labels: Array, epochs: int) -> None:
    network.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    network.fit(inputs, labels, epochs=epochs, batch_size=32, verbose=0)


def _different(answers: Array) -> list[int]:
    """The first INPUTS places, in a fixed disorder, whose answers are APART from each other."""
    chosen: list[int] = []
    for place in np.random.default_rng(SEED).permutation(len(answers)).tolist():
        if all(np.abs(answers[place] - answers[other]).max() > APART for other in chosen):
            chosen.append(place)
        if len(chosen) == INPUTS:
            return chosen
    raise ValueError(f"{len(chosen)} answers differ; {INPUTS} are needed")


def main() -> None:
    """Train what is missing, of all or of some."""
    for name in sys.argv[1:] or NETWORKS:
        print(make(name), flush=True)


if __name__ == "__main__":
    main()
