"""Archives: what is unpacked, and what is refused before it can do harm."""

import io
import stat
import tarfile
import zipfile
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.errors import SourceError
from sources import archive
from sources.archive import unpack, unpack_lone

PLENTY = 1 << 30


def tar(path, *members, mode="w:gz"):
    """members: a name and its content, or a TarInfo of anything else."""
    with tarfile.open(path, mode) as packed:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                packed.addfile(member)
            else:
                name, content = member
                header = tarfile.TarInfo(name)
                header.size = len(content)
                packed.addfile(header, io.BytesIO(content))
    return path


def zipped(path, *members, method=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", method) as packed:
        for name, content in members:
            packed.writestr(name, content)
    return path


def special(name, kind, target=""):
    header = tarfile.TarInfo(name)
    header.type, header.linkname = kind, target
    return header


def files(folder):
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.mark.parametrize(
    ("name", "pack"),
    [
        ("a.tar.gz", tar),
        ("a.TGZ", tar),
        ("a.tar", lambda path, *members: tar(path, *members, mode="w")),
        ("a.tar", lambda path, *members: tar(path, *members, mode="w:xz")),
        ("a.tar", lambda path, *members: tar(path, *members, mode="w:bz2")),
        ("a.zip", zipped),
        ("a.zip", lambda path, *members: zipped(path, *members, method=zipfile.ZIP_STORED)),
    ],
)
def test_an_archive_is_unpacked(tmp_path, name, pack):
    file = pack(tmp_path / name, ("saved_model.pb", b"graph"), ("./variables/v.index", b""))
    unpack(file, tmp_path / "1", PLENTY)
    assert files(tmp_path / "1") == {"saved_model.pb": b"graph", "variables/v.index": b""}


def test_an_archive_is_unpacked_where_it_is_alone(tmp_path):
    for name, beside in (("alone", None), ("beside", "model.toml")):
        (tmp_path / name).mkdir()
        tar(tmp_path / name / "a.TGZ", ("model.py", b"x"))
        if beside:
            (tmp_path / name / beside).touch()
        unpack_lone(tmp_path / name, PLENTY)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a.TGZ", "alone", "beside", "model.py", "model.toml"]


def test_a_lone_folder_around_the_files_is_left_out(tmp_path):
    # as macOS packs it
    members = [("out/digits/model.py", b"x"), ("__MACOSX/out/digits/._model.py", b"?"), ("out/.DS_Store", b"?")]
    unpack(zipped(tmp_path / "a.zip", *members), tmp_path / "1", PLENTY)
    assert files(tmp_path / "1") == {"model.py": b"x"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "a.zip"]


def test_neither_owners_nor_modes_are_taken_over(tmp_path):
    header = tarfile.TarInfo("model.py")
    header.mode = 0o6777
    unpack(tar(tmp_path / "a.tar", header), tmp_path / "1", PLENTY)
    assert not (tmp_path / "1" / "model.py").stat().st_mode & (stat.S_ISUID | stat.S_ISGID | stat.S_IXUSR)


@pytest.mark.parametrize("pack", [tar, zipped])
@pytest.mark.parametrize("name", ["../evil", "a/../../evil", "/evil", "//evil", "a/.."])
def test_a_name_that_leads_out_is_refused(tmp_path, pack, name):
    folder = tmp_path / "in"
    folder.mkdir()
    with pytest.raises(SourceError, match="leads out of its folder; pack it with relative names"):
        unpack(pack(folder / ("a.zip" if pack is zipped else "a.tar"), (name, b"x")), folder / "1", PLENTY)
    assert not (folder / "1").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


@pytest.mark.parametrize(
    "member",
    [
        special("link", tarfile.SYMTYPE, "/etc/passwd"),
        special("link", tarfile.SYMTYPE, "model.py"),
        special("link", tarfile.LNKTYPE, "../../model.py"),
        special("null", tarfile.CHRTYPE),
        special("disk", tarfile.BLKTYPE),
        special("pipe", tarfile.FIFOTYPE),
    ],
    ids=["symlink out", "symlink", "hard link", "device", "disk", "pipe"],
)
def test_a_link_or_a_device_is_refused(tmp_path, member):
    file = tar(tmp_path / "a.tar.gz", ("model.py", b"x"), member, ("link/below", b"x"))
    with pytest.raises(SourceError, match=f"holds '{member.name}', a link or a device; pack files and folders alone"):
        unpack(file, tmp_path / "1", PLENTY)


def test_a_link_in_a_zip_is_refused(tmp_path):
    header = zipfile.ZipInfo("link")
    header.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as packed:
        packed.writestr(header, "/etc/passwd")
    with pytest.raises(SourceError, match="a link or a device"):
        unpack(tmp_path / "a.zip", tmp_path / "1", PLENTY)


@pytest.mark.parametrize("pack", [tar, zipped])
def test_a_bomb_ends_at_the_limit(tmp_path, pack):
    file = pack(tmp_path / ("a.zip" if pack is zipped else "a.tgz"), ("zeros", bytes(64 << 20)))
    assert file.stat().st_size < 1 << 20
    with pytest.raises(SourceError, match="unpacks to more than 2 MB"):
        unpack(file, tmp_path / "1", 2 << 20)
    assert sum(map(len, files(tmp_path).values())) <= (2 << 20) + file.stat().st_size


def test_a_bomb_ends_also_where_the_store_is_large(tmp_path, monkeypatch):
    monkeypatch.setattr(archive, "_SMALL_BYTES", 1 << 20)
    file = zipped(tmp_path / "a.zip", ("zeros", bytes(64 << 20)))
    with pytest.raises(SourceError, match="which no model of its size does"):
        unpack(file, tmp_path / "1", PLENTY)


def test_a_bomb_of_files_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(archive, "MAX_FILES", 10)
    file = tar(tmp_path / "a.tar", *((f"{number}", b"") for number in range(11)))
    with pytest.raises(SourceError, match="holds more than 10 files; pack them into fewer"):
        unpack(file, tmp_path / "1", PLENTY)


def test_a_header_that_would_fill_the_memory_is_refused(tmp_path):
    header = tarfile.TarInfo("pax")
    header.type, header.size = tarfile.XHDTYPE, 1 << 32
    compressor = zlib.compressobj(wbits=31)
    zeros = compressor.compress(header.tobuf()) + compressor.compress(bytes(32 << 20)) + compressor.flush()
    (tmp_path / "a.tar.gz").write_bytes(zeros)
    with pytest.raises(SourceError, match="cannot be unpacked: a header of 4096 MB"):
        unpack(tmp_path / "a.tar.gz", tmp_path / "1", PLENTY)


@pytest.mark.parametrize("name", ["a.tar.gz", "a.tar", "a.zip"])
def test_an_archive_that_is_cut_off_is_refused_wherever_it_is(tmp_path, name):
    members = [(f"file-{number}", bytes(range(256)) * 8) for number in range(3)]
    file = {"a.zip": zipped, "a.tar.gz": tar}.get(name, lambda *given: tar(*given, mode="w"))(tmp_path / name, *members)
    content = file.read_bytes()
    # a tar ends with zeros, most of which are not needed
    end = len(content) if name != "a.tar" else 3 * (512 + 2048)
    for length in range(0, end, max(1, end // 40)):
        file.write_bytes(content[:length])
        with pytest.raises(SourceError, match=f"{name} cannot be unpacked: .*; pack it anew"):
            unpack(file, tmp_path / f"cut-{length}", PLENTY)


def test_an_archive_with_a_password_is_refused(tmp_path):
    file = zipped(tmp_path / "a.zip", ("model.py", b"x"))
    content = bytearray(file.read_bytes())
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(signature) + offset] |= 1
    file.write_bytes(content)
    with pytest.raises(SourceError, match=r"cannot be unpacked: .*password required"):
        unpack(file, tmp_path / "1", PLENTY)


@pytest.mark.parametrize("members", [[], [("empty/", b"")], [("__MACOSX/x", b"")]])
def test_an_archive_without_a_file_is_refused(tmp_path, members):
    with pytest.raises(SourceError, match="holds no file; pack what the model's folder holds"):
        unpack(zipped(tmp_path / "a.zip", *members), tmp_path / "1", PLENTY)


def test_an_archive_of_several_versions_is_refused(tmp_path):
    file = tar(tmp_path / "a.tar", ("digits/1/model.py", b"x"), ("digits/2/model.py", b"x"))
    with pytest.raises(SourceError, match="holds the folders 1, 2; an archive is one version"):
        unpack(file, tmp_path / "1", PLENTY)


NAMES = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1)
MEMBERS = st.lists(st.tuples(NAMES, st.binary()), max_size=4, unique_by=lambda member: member[0])


@given(MEMBERS, st.sampled_from(["a.tar", "a.zip"]))
def test_whatever_an_archive_holds_nothing_is_written_elsewhere(tmp_path_factory, members, name):
    folder = tmp_path_factory.mktemp("in")
    (folder / "archive").mkdir()
    try:
        file = (tar if name == "a.tar" else zipped)(folder / "archive" / name, *members)
        unpack(file, folder / "archive" / "1", PLENTY)
    except (SourceError, OSError, ValueError, UnicodeError):
        pass
    assert [path.name for path in folder.iterdir()] == ["archive"]
    assert {path.name for path in (folder / "archive").iterdir()} <= {name, "1", "1.unpacked"}
