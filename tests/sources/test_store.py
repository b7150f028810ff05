"""The store: what is fetched once, whole or not at all, by several processes, within its bound."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from hashlib import sha256
from pathlib import Path

import pytest

import sources
from serving.errors import SourceError, SourceUnavailable
from sources import tree
from sources.store import Store, default_root
from tests.sources.web import held, status, whole

ROOT = Path(__file__).parents[2]
PATIENCE_S = 30.0
MB = 1 << 20
FILES_OF_4_MB = ("prlimit", f"--fsize={4 * MB}")
# fetches a URL into a store, says so, and keeps it until it is told to end
FETCH = """
import sys
from pathlib import Path
import sources
from sources.store import Store
root, max_bytes, url = sys.argv[1:]
store = Store(Path(root), int(max_bytes))
source = sources.open(url, lambda line: print(line, flush=True))
print("at", store.fetch(source, 1, store.look(source).identities[1]).path, flush=True)
sys.stdin.read()
"""


def fetching(root, url, *before):
    """A process of its own that fetches; before: a command that runs it."""
    command = [*before, sys.executable, "-c", FETCH, str(root), str(1 << 30), url]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, cwd=ROOT, text=True, **pipes)


def wait_until(condition):
    deadline = time.monotonic() + PATIENCE_S
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return found


def pinned(web, path, content):
    """A URL at which this very content is."""
    web.answers[path] = [whole(content)]
    return f"{web.url}{path}#sha256={sha256(content).hexdigest()}"


def bring(store, source, version):
    """The model folder of a version, as the source has it now."""
    return store.fetch(source, version, store.look(source).identities[version]).path


def fetch(store, url, said=None):
    return bring(store, sources.open(url, [].append if said is None else said.append), 1)


def below(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def bodies(web, path):
    return sum(asked == path for asked, _ in web.asked)


def test_a_model_is_fetched_once_and_is_a_model_folder(store, web, said):
    url = pinned(web, "/digits.onnx", b"graph")
    path = fetch(store, url, said)
    assert (path.name, below(path)) == ("digits", ["1", "1/digits.onnx"])
    assert (path / "1" / "digits.onnx").read_bytes() == b"graph"
    assert said == [f"fetching digits version 1 from {web.url}/digits.onnx"]
    asked = len(web.asked)
    assert fetch(Store(store.root, store.max_bytes), url, said) == path
    assert (len(web.asked), len(said)) == (asked, 1)


def test_the_same_content_is_kept_once_whatever_it_is_called(store, web):
    first = fetch(store, pinned(web, "/a/digits.onnx", b"graph"))
    second = fetch(store, pinned(web, "/b/digits.onnx", b"graph"))
    other = fetch(store, pinned(web, "/b/letters.onnx", b"graph"))
    assert first == second != other
    assert len(list((store.root / "objects").iterdir())) == 2


def test_nothing_is_left_beside_what_was_fetched(store, web):
    fetch(store, pinned(web, "/digits.onnx", b"graph"))
    assert below(store.root / "tmp") == below(store.root / "locks") == []


def test_what_was_fetched_is_served_when_the_place_is_gone(store, web, said):
    web.answers["/digits.onnx"] = [whole(b"graph")]
    path = fetch(store, f"{web.url}/digits.onnx")
    web.answers["/digits.onnx"] = [status(404)]
    source = sources.open(f"{web.url}/digits.onnx", said.append)
    with pytest.raises(SourceError, match="the server answers 404; correct the address"):
        store.look(source)
    web.shutdown()
    web.server_close()
    store = Store(store.root, store.max_bytes)
    found = store.look(source)
    assert found.stale
    assert found.reason == f"{web.url}/digits.onnx gives no good answer: Connection refused"
    assert bring(store, source, 1) == path
    assert said[:1] == [f"{web.url}/digits.onnx gives no good answer, and is asked again"]


def test_what_was_never_fetched_is_told_when_the_place_is_gone(store, web):
    url = pinned(web, "/digits.onnx", b"graph")
    web.shutdown()
    web.server_close()
    with pytest.raises(SourceUnavailable, match=r"/digits.onnx gives no good answer: Connection refused"):
        fetch(store, url)
    with pytest.raises(SourceUnavailable):
        store.look(sources.open(f"{web.url}/digits.onnx"))


def test_what_another_process_hears_meanwhile_does_not_change_what_is_fetched(store, web):
    url = f"{web.url}/digits.onnx"
    web.answers["/digits.onnx"] = [whole(b"graph")]
    path = fetch(store, url)
    source = sources.open(url)
    planned = store.look(source).identities[1]
    # another process looks, finds another file there, and then nothing more is to be had
    web.answers["/digits.onnx"] = [whole(b"another")]
    Store(store.root, store.max_bytes).look(sources.open(url))
    web.answers["/digits.onnx"] = [status(404)]
    assert store.fetch(source, 1, planned) == (path, planned)
    # nor is it another version than it is called
    web.answers["/digits.onnx"] = [whole(b"a third")]
    found = store.fetch(source, 1, "of no file")
    assert (found.path / "1" / "digits.onnx").read_bytes() == b"a third"
    assert found.identity == store.look(source).identities[1] != planned


def test_what_is_here_is_known_without_a_question(store, web):
    url = f"{web.url}/digits.onnx"
    source = sources.open(url)
    assert (store.kept(source), store.recall(source)) == ([], None)
    identities = []
    for content in (b"one", b"two"):
        web.answers["/digits.onnx"] = [whole(content)]
        store.release(fetch(store, url))
        identities.append(store.look(source).identities[1])
    asked = len(web.asked)
    assert store.kept(source) == [(1, identities[1]), (1, identities[0])]
    path, _ = store.fetch(source, 1, identities[0])
    # used last
    assert store.kept(source) == [(1, identities[0]), (1, identities[1])]
    assert store.recall(source).identities == {1: identities[1]}
    assert len(web.asked) == asked
    store.release(path)
    shutil.rmtree(path.parent)
    assert store.kept(source) == [(1, identities[1])]
    assert store.kept(sources.open(f"{web.url}/letters.onnx")) == []


def test_a_fetch_that_is_killed_leaves_no_version_and_the_next_one_clears_up(store, web):
    content = os.urandom(4 * MB)
    url, never = pinned(web, "/digits.onnx", content), threading.Event()
    web.answers["/digits.onnx"] = [whole(content), held(content, 2 * MB, never)]
    other = pinned(web, "/letters.onnx", b"letters")
    with fetching(store.root, url) as process:
        wait_until(lambda: any(path.is_file() and path.stat().st_size for path in (store.root / "tmp").rglob("*")))
        process.send_signal(signal.SIGKILL)
    never.set()
    assert below(store.root / "objects") == below(store.root / "fetched") == []
    assert below(store.root / "tmp") != []
    fetch(store, other)
    assert below(store.root / "tmp") == below(store.root / "locks") == []
    web.answers["/digits.onnx"] = [whole(content)]
    assert (fetch(store, url) / "1" / "digits.onnx").read_bytes() == content


def test_progress_is_told(store, web, said, monkeypatch):
    monkeypatch.setattr("sources.store.PROGRESS_S", 0.01)
    content, now = os.urandom(2 * MB), threading.Event()
    url = pinned(web, "/digits.onnx", content)
    web.answers["/digits.onnx"] = [whole(content), held(content, MB, now)]
    thread = threading.Thread(target=fetch, args=(store, url, said))
    thread.start()
    wait_until(lambda: "fetching digits version 1: 1.0 of 2.0 MB" in said)
    now.set()
    thread.join()


def test_two_processes_that_want_the_same_fetch_it_once(store, web):
    content, now = os.urandom(MB), threading.Event()
    url = pinned(web, "/digits.onnx", content)
    web.answers["/digits.onnx"] = [whole(content), held(content, MB // 2, now)]
    with fetching(store.root, url) as first:
        assert first.stdout.readline().startswith("fetching digits version 1 from")
        with fetching(store.root, url) as second:
            assert second.stdout.readline() == "waiting for another process, which fetches digits version 1\n"
            now.set()
            paths = {process.stdout.readlines()[-1] for process in (first, second) if process.stdin.close() is None}
    assert (first.returncode, second.returncode) == (0, 0)
    assert paths == {f"at {fetch(store, url)}\n"}
    # its size, and then itself
    assert bodies(web, "/digits.onnx") == 2


def test_the_longest_unused_goes_first_and_what_is_in_use_never(tmp_path, web):
    store = Store(tmp_path / "store", 3 * MB + MB // 2)
    urls = [pinned(web, f"/{number}.onnx", os.urandom(MB)) for number in range(5)]
    with fetching(store.root, urls[0]) as user:
        wait_until(lambda: user.stdout.readline().startswith("at "))
        paths = [fetch(store, url) for url in urls[1:3]]
        for path in paths:
            store.release(path)
        # used once more
        store.release(fetch(store, urls[1]))
        fetch(store, urls[3])
        assert [path.exists() for path in paths] == [True, False]
        held_elsewhere = fetch(store, urls[0])
        store.release(held_elsewhere)
        fetch(store, urls[4])
        assert not paths[0].exists()
        assert held_elsewhere.exists()
        told = r"2 version 1 has 1.0 MB, and models in use take 3.0 of the 3.5 MB that the store may hold; raise"
        with pytest.raises(SourceError, match=told):
            fetch(store, urls[2])
        user.stdin.close()
    # its user has ended
    fetch(store, urls[2])
    assert not held_elsewhere.exists()
    assert sum(tree.size(folder) for folder in (store.root / "objects").iterdir()) <= store.max_bytes
    with pytest.raises(SourceError, match="is not in the store any more; fetch it again"):
        store.hold(held_elsewhere)


def test_two_who_fetch_at_once_do_not_share_the_same_room(tmp_path, web, monkeypatch):
    root, both = tmp_path / "store", threading.Barrier(2)
    urls = [pinned(web, f"/{number}.onnx", os.urandom(MB)) for number in range(2)]
    told = []

    def seal(folder, seal=tree.seal):
        # each has looked for room, and there was some
        both.wait()
        return seal(folder)

    def bring_one(url):
        try:
            fetch(Store(root, MB + MB // 2), url)
        except SourceError as error:
            told.append(str(error))

    monkeypatch.setattr(tree, "seal", seal)
    threads = [threading.Thread(target=bring_one, args=(url,)) for url in urls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (error,) = told
    assert "models in use take 1.0 of the 1.5 MB that the store may hold" in error
    (folder,) = (root / "objects").iterdir()
    assert tree.size(folder) <= MB + MB // 2


def test_a_model_larger_than_the_store_is_refused_before_it_is_fetched(tmp_path, web):
    store = Store(tmp_path / "store", MB)
    url = pinned(web, "/digits.onnx", bytes(2 * MB))
    with pytest.raises(
        SourceError, match=r"digits version 1 has 2.0 MB, and the store may hold 1.0 MB; raise store_max"
    ):
        fetch(store, url)
    assert below(store.root / "tmp") == []


@pytest.mark.parametrize("damage", [lambda file: file.unlink(), lambda file: os.truncate(file, 2)])
def test_what_is_damaged_is_fetched_anew(store, web, said, damage):
    url = pinned(web, "/digits.onnx", b"graph")
    path = fetch(store, url)
    damage(path / "1" / "digits.onnx")
    assert fetch(store, url, said) == path
    assert (path / "1" / "digits.onnx").read_bytes() == b"graph"
    file = path / "1" / "digits.onnx"
    assert said[0] == f"the store is damaged: {file} is missing or cut off; it is fetched anew"


def test_a_damaged_manifest_is_noticed(store, web, said):
    url = pinned(web, "/digits.onnx", b"graph")
    manifest = fetch(store, url).parent / "manifest.json"
    manifest.write_text(json.dumps({}))
    fetch(store, url, said)
    assert said[0] == f"the store is damaged: {manifest} has changed; it is fetched anew"


def test_verify_reads_all_of_it(store, web):
    url = pinned(web, "/digits.onnx", b"graph")
    path = fetch(store, url)
    store.verify(path)
    (path / "1" / "digits.onnx").write_bytes(b"grape")
    assert fetch(store, url) == path
    with pytest.raises(SourceError, match=r"digits.onnx has changed; fetch it again, and look after the disk"):
        store.verify(path)
    fetch(store, url)
    assert (path / "1" / "digits.onnx").read_bytes() == b"graph"
    store.verify(path)


def test_what_users_of_a_model_write_beside_it_is_no_damage(store, web):
    url = pinned(web, "/digits.onnx", b"graph")
    path = fetch(store, url)
    (path / "1" / "__pycache__").mkdir()
    (path / "1" / "__pycache__" / "model.pyc").write_bytes(b"code")
    assert fetch(store, url) == path
    store.verify(path)


# whether this user may mount, in a namespace of its own
MOUNTS = not subprocess.run(["unshare", "--map-root-user", "--mount", "true"], capture_output=True).returncode


@pytest.mark.parametrize("limit", ["a file's size", *["the disk"] * MOUNTS])
def test_a_full_disk_is_told_and_leaves_nothing(tmp_path, web, limit):
    url, root = pinned(web, "/digits.onnx", os.urandom(8 * MB)), tmp_path / "store"
    root.mkdir()
    # a limit of the process, or a file system of 4 MB in a mount namespace that ends with it
    mount = 'mount -t tmpfs -o size=4m tmpfs "$0" && exec "$@"'
    disk = ["unshare", "--map-root-user", "--mount", "sh", "-c", mount, str(root)]
    with fetching(root, url, *(disk if limit == "the disk" else FILES_OF_4_MB)) as process:
        _, errors = process.communicate("")
    told = f"SourceError: the disk of the store {root} is full, and digits version 1 is not fetched; free some of it"
    assert errors.splitlines()[-1].startswith(f"serving.errors.{told}"), errors
    if limit != "the disk":
        assert below(root / "tmp") == below(root / "objects") == []


def test_a_store_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").touch()
    told = rf"the store {tmp_path}/file/store cannot be written: Not a directory \(.*\); set MULETEER_STORE to another"
    with pytest.raises(SourceError, match=told):
        Store(tmp_path / "file" / "store", MB)


def test_the_store_of_another_user_is_refused(tmp_path, monkeypatch):
    Store(tmp_path, MB)
    if os.getuid() == 0:
        os.chown(tmp_path / "objects", 54321, -1)
    else:
        # only root can give a folder away
        monkeypatch.setattr(os, "geteuid", lambda: 54321)
    with pytest.raises(SourceError, match="belongs to another user; set MULETEER_STORE to a folder of yours"):
        Store(tmp_path, MB)


def test_the_store_is_where_the_environment_says(tmp_path):
    run_dir = tmp_path / "run"
    assert default_root({"MULETEER_STORE": "/models"}, run_dir) == Path("/models")
    assert default_root({"XDG_CACHE_HOME": str(tmp_path)}, run_dir) == tmp_path / "muleteer"
    assert default_root({"HOME": str(tmp_path)}, run_dir) == tmp_path / ".cache" / "muleteer"
    assert default_root({"HOME": "/proc/nowhere"}, run_dir) == run_dir / "store"
    assert default_root({}, run_dir) == run_dir / "store"
