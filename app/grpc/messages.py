"""The messages of gRPC's protocols, as protobuf reads and writes them.

They are those of the .proto files beside this one.  `python -m grpc_tools.protoc -I app/grpc
--descriptor_set_out=app/grpc/messages.pb app/grpc/*.proto` makes messages.pb of them.

In a pool of their own: TensorFlow, which a mule imports later, brings messages of the same names.

Runs in:  worker; made in the master.
"""

from pathlib import Path
from typing import Any

from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass

# neither a class nor its fields are known to a type checker
Message = Any

_POOL = DescriptorPool()
for _file in FileDescriptorSet.FromString(Path(__file__).with_name("messages.pb").read_bytes()).file:
    _POOL.Add(_file)


def message(name: str) -> Message:
    """The class of the messages of a name, with its package."""
    return GetMessageClass(_POOL.FindMessageTypeByName(name))
