"""The messages: those of the .proto files, with the fields that the protocols' own packages have."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from tritonclient.grpc import service_pb2

import app.grpc
from app.grpc.messages import message

FOLDER = Path(app.grpc.__file__).parent
FILES = sorted(FOLDER.glob("*.proto"))
KEPT = FileDescriptorSet.FromString((FOLDER / "messages.pb").read_bytes())
OURS = {file.package: [one.name for one in file.message_type] for file in KEPT.file}


def compare(ours, theirs, seen):
    """Each field of ours is one of theirs; messages are bytes where nobody here looks into them."""
    if ours.name in seen:
        return
    seen.add(ours.name)
    for field in ours.fields:
        other = theirs.fields_by_name[field.name]
        assert field.number == other.number, field.full_name
        assert field.is_repeated == other.is_repeated, field.full_name
        if (field.type, other.type) == (field.TYPE_BYTES, field.TYPE_MESSAGE):
            continue
        assert field.type == other.type, field.full_name
        if field.message_type is not None:
            compare(field.message_type, other.message_type, seen)
        if field.enum_type is not None:
            numbers = {value.name: value.number for value in other.enum_type.values}
            assert {value.name: value.number for value in field.enum_type.values}.items() <= numbers.items()


def test_the_compiled_messages_are_those_of_the_files(tmp_path):
    out = tmp_path / "messages.pb"
    # in a process of its own: it has parts that TensorFlow has as well
    compiler = [sys.executable, "-m", "grpc_tools.protoc", f"-I{FOLDER}", f"--descriptor_set_out={out}"]
    subprocess.run([*compiler, *FILES], check=True)
    assert FileDescriptorSet.FromString(out.read_bytes()) == KEPT


@pytest.mark.parametrize("name", OURS["inference"])
def test_fields_have_the_numbers_and_types_of_the_protocol(name):
    compare(message(f"inference.{name}").DESCRIPTOR, getattr(service_pb2, name).DESCRIPTOR, set())


def test_nginx_passes_each_call_on():
    places = re.findall(r"location (~|=) (\S+) \{", (FOLDER.parents[1] / "grpc.conf").read_text())
    for path in app.grpc.CALLS:
        found = [where for how, where in places if (re.search(where, path) if how == "~" else where == path)]
        assert len(found) == 1, path
