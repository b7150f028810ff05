"""Trains a small network on real handwritten digits and exports it as a SavedModel.

usage: python examples/digits/train.py [FOLDER]        (models/digits)

The data: 1,797 images of 8 x 8 pixels, the test part of "Optical Recognition of Handwritten Digits", E. Alpaydin and
C. Kaynak, UCI Machine Learning Repository, 1998, CC BY 4.0, as it ships inside scikit-learn.

Input   image          (rows, 8, 8) float32, 0 (white) to 16 (black)
Outputs probabilities  (rows, 10) float32
        digit          (rows,) int64
"""

import json
import os
import shutil
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import numpy.typing as npt
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

SEED = 7
EPOCHS = 30
MIN_ACCURACY = 0.97

Array = npt.NDArray[np.generic]


def split() -> tuple[Array, Array, Array, Array]:
    """Images and digits to train on, images and digits held out (a fifth); always the same."""
    data = load_digits()
    images, held_out, digits, held_out_digits = train_test_split(
        data.images.astype(np.float32), data.target, test_size=0.2, random_state=SEED, stratify=data.target
    )
    return images, digits, held_out, held_out_digits


def main(folder: Path) -> None:
    """Train, check, export to folder/1 with a sample and its answer beside it."""
    print(f"training the digits example (about half a minute) → {folder}", flush=True)
    import tensorflow as tf

    tf.keras.utils.set_random_seed(SEED)
    tf.config.experimental.enable_op_determinism()
    images, digits, held_out, held_out_digits = split()
    layers = tf.keras.layers
    network = tf.keras.Sequential(
        [
            tf.keras.Input((8, 8)),
            layers.Rescaling(1 / 16),
            layers.Flatten(),
            layers.Dense(128, activation="relu"),
            layers.Dense(64, activation="relu"),
            layers.Dense(10, activation="softmax"),
        ]
    )
    network.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    for epoch in range(1, EPOCHS + 1):
        history = network.fit(images, digits, batch_size=32, verbose=0)
        if epoch % 10 == 0:
            print(f"  epoch {epoch} of {EPOCHS}, loss {history.history['loss'][0]:.4f}", flush=True)
    accuracy = network.evaluate(held_out, held_out_digits, verbose=0)[1]
    print(f"  accuracy on {len(held_out)} held-out images: {accuracy:.4f}", flush=True)
    if accuracy < MIN_ACCURACY:
        sys.exit(f"the accuracy should be at least {MIN_ACCURACY}; nothing was exported")

    @tf.function(input_signature=[tf.TensorSpec((None, 8, 8), tf.float32, name="image")])
    def serve(image):  # type: ignore[no-untyped-def]
        probabilities = network(image, training=False)
        return {"probabilities": probabilities, "digit": tf.argmax(probabilities, axis=1)}

    module = tf.Module()
    module.network = network
    module.serve = serve
    # all or nothing: a training that was interrupted leaves no half of a model
    unfinished = folder.with_name(folder.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    tf.saved_model.save(module, str(unfinished / "1"), signatures={"serving_default": serve})
    clear = int(np.argmax(network.predict(held_out, verbose=0).max(axis=1)))
    sample = {"image": held_out[clear].astype(int).tolist()}
    (unfinished / "sample.json").write_text(json.dumps(sample) + "\n")
    outputs = serve(tf.constant(held_out[clear : clear + 1], tf.float32))
    answer = {name: tensor.numpy()[0].tolist() for name, tensor in outputs.items()}
    (unfinished / "answer.json").write_text(json.dumps(answer) + "\n")
    unfinished.rename(folder)
    print(f"exported {folder}/1; its sample is a {held_out_digits[clear]}", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "models/digits"))
