"""uwsgi.ini keeps all but the numbers that are written into it."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.settings import Settings
from tuning import ini
from tuning.ini import IniError

SHIPPED = Path(__file__).parents[2] / "uwsgi.ini"
TEXT = SHIPPED.read_text()
KEYS = [
    *(("uwsgi", key) for key in ("mules", "processes", "threads", "queue")),
    *(("serving", key) for key in ("max_batch_rows", "replica_threads")),
]
FIVE = {("uwsgi", "mules"): 5, ("serving", "max_batch_rows"): 8}


@pytest.fixture
def file(tmp_path):
    file = tmp_path / "uwsgi.ini"
    file.write_text(TEXT)
    return file


@given(st.dictionaries(st.sampled_from(KEYS), st.integers(1, 99_999)))
def test_only_the_named_numbers_change(lines):
    new = ini.rewritten(TEXT, lines)
    before, after = TEXT.splitlines(), new.splitlines()
    assert len(before) == len(after)
    changed = [(old, now) for old, now in zip(before, after, strict=True) if old != now]
    assert len(changed) <= len(lines)
    for old, now in changed:
        key, _, value = now.partition(" = ")
        assert old.partition(" = ")[0] == key and not old.startswith(";") and "%(_)" not in old
        assert lines["uwsgi" if ("uwsgi", key) in lines else "serving", key] == int(value)
    # once more changes nothing more, and the old numbers bring the old text back
    assert ini.rewritten(new, lines) == new
    shipped = {("uwsgi", "mules"): 2, ("uwsgi", "processes"): 3, ("uwsgi", "threads"): 64, ("uwsgi", "queue"): 4096}
    shipped |= {("serving", "max_batch_rows"): 32, ("serving", "replica_threads"): 0}
    assert ini.rewritten(new, shipped) == TEXT


def test_the_spare_stays_one(file):
    ini.write(file, TEXT, FIVE, {})
    settings = Settings.read(file, {})
    assert (settings.mules, settings.mule_processes, settings.max_batch_rows) == (5, 6, 8)


def test_a_key_that_is_not_there_comes_at_the_end_of_its_section():
    text = "[uwsgi]\nmules = 2\n\n[serving]\nmodel = a"
    wanted = {("uwsgi", "queue"): 64, ("serving", "replica_threads"): 1}
    assert (
        ini.rewritten(text, wanted) == "[uwsgi]\nmules = 2\n\nqueue = 64\n[serving]\nmodel = a\nreplica_threads = 1\n"
    )
    with pytest.raises(IniError, match=r"no \[serving\]"):
        ini.rewritten("[uwsgi]\nmules = 2\n", {("serving", "replica_threads"): 1})


def test_a_key_of_another_section_is_another_key():
    text = "[other]\nmules = 9\n[uwsgi]\nmules=2 \n"
    assert ini.rewritten(text, {("uwsgi", "mules"): 5}) == "[other]\nmules = 9\n[uwsgi]\nmules=5 \n"


def test_the_difference_is_one_to_apply(file, tmp_path):
    told = ini.difference(TEXT, ini.rewritten(TEXT, FIVE), "uwsgi.ini")
    assert "-mules = 2\n+mules = 5\n" in told and "-max_batch_rows = 32\n+max_batch_rows = 8\n" in told
    assert told.count("\n+") == 3


def test_the_file_keeps_its_mode_and_a_link_stays_one(file, tmp_path):
    file.chmod(0o640)
    link = tmp_path / "link.ini"
    link.symlink_to(file)
    ini.write(link, TEXT, FIVE, {})
    assert link.is_symlink() and file.stat().st_mode & 0o777 == 0o640
    assert file.read_text() == ini.rewritten(TEXT, FIVE)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link.ini", "uwsgi.ini"]


def test_what_the_server_would_refuse_is_not_written(file, tmp_path):
    with pytest.raises(IniError, match=r"the server would refuse.*queue = 64"):
        ini.write(file, TEXT, {("uwsgi", "queue"): 64}, {})
    assert file.read_text() == TEXT and [path.name for path in tmp_path.iterdir()] == ["uwsgi.ini"]


def test_a_file_that_has_changed_meanwhile_is_left_alone(file):
    file.write_text(TEXT + "\n; mine\n")
    with pytest.raises(IniError, match="has changed since"):
        ini.write(file, TEXT, FIVE, {})
    assert file.read_text().endswith("; mine\n")


def test_a_folder_that_cannot_be_written_is_told(tmp_path):
    # not even for root
    with pytest.raises(IniError, match=r"cannot be written: .*by hand"):
        ini.write(Path("/proc/version"), Path("/proc/version").read_text(), {}, {})


def test_a_line_that_the_file_hides_is_told(file):
    hidden = TEXT.replace("if-not-env = MULES\nmules = 2", "if-not-env = MULES\nmules = 2\nmules = 1\nmules = 2")
    file.write_text(hidden)
    with pytest.raises(IniError, match="refuse"):
        ini.write(file, hidden, FIVE, {})


def test_what_the_environment_says_instead_is_told(file):
    assert ini.overridden(FIVE, {"MULES": "3", "SERVING_MAX_BATCH_ROWS": "4", "THREADS": "5"}) == [
        "MULES",
        "SERVING_MAX_BATCH_ROWS",
    ]
    # and does not stand in the way
    ini.write(file, TEXT, FIVE, {"MULES": "3"})
    assert Settings.read(file, {}).mules == 5


def test_a_difference_tells_no_secret():
    before = "[serving]\nmodel = m\nsentry_dsn = https://topsecret@sentry.example/7\n"
    told = ini.difference(before, ini.rewritten(before, {("serving", "max_batch_rows"): 8}), "uwsgi.ini")
    assert " sentry_dsn = …\n+max_batch_rows = 8\n" in told and "topsecret" not in told
    shipped = "[serving]\nmodel = m\nsentry_dsn =\n"
    told = ini.difference(shipped, ini.rewritten(shipped, {("serving", "max_batch_rows"): 8}), "uwsgi.ini")
    assert " sentry_dsn =\n+max_batch_rows = 8\n" in told
