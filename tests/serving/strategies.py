"""Tensors of every dtype, for the laws."""

import base64

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from serving.signature import DTYPES, STRING

SHAPES = array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)
# how an array with an axis can lie in memory, other than row by row
LAYOUTS = [
    lambda tensor: tensor,
    np.transpose,
    np.flip,
    np.asfortranarray,
    lambda tensor: np.repeat(tensor, 2, axis=-1)[..., ::2],
    lambda tensor: tensor.astype(tensor.dtype.newbyteorder()),
]


def tensors(shape, dtypes=DTYPES):
    """A tensor; string tensors hold UTF-8 and other bytes."""
    text = st.text(max_size=8).map(str.encode) | st.binary(max_size=8)
    return st.sampled_from(dtypes).flatmap(
        lambda dtype: arrays(object, shape, elements=text) if dtype == STRING else arrays(dtype, shape)
    )


def listed(tensor):
    """The nested lists that a client would send for a tensor."""
    return _sendable(tensor.tolist())


def _sendable(value):
    if isinstance(value, list):
        return [_sendable(item) for item in value]
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return {"b64": base64.b64encode(value).decode()}
    return value


def check_same(found, expected):
    """Tensors of the same names in the same order, dtypes, shapes and values; NaN is NaN."""
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype.newbyteorder("=")
        assert found[name].shape == tensor.shape
        np.testing.assert_array_equal(found[name], tensor)
