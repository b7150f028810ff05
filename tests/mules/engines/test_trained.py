"""Real models by way of their engines: the replies are the library's own."""

import pytest

from mules import engines
from serving.model import ModelFolder

from .trained import MODELS


@pytest.mark.parametrize("name", MODELS)
def test_replies_are_the_librarys_own(train, name):
    path, made = train(name)
    engine = engines.load(ModelFolder.find(path), threads=1)
    assert {spec.name for spec in engine.signature.inputs} == made.inputs.keys()
    outputs = engine.predict(made.inputs)
    assert list(outputs) == list(made.outputs)
    for name, expected in made.outputs.items():
        # to the bit
        assert outputs[name].tolist() == expected.tolist()
