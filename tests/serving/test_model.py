"""Model folders: which version is served, what model.toml may say, the sample, and the card."""

import json
import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.errors import ModelError
from serving.model import ModelCard, ModelFolder, contents, identity, labels, specs, versions
from serving.signature import DTYPES, Signature, TensorSpec

XY = Signature((TensorSpec("x", "float32", (2,)), TensorSpec("y", "string")), ())


@pytest.fixture
def find(tmp_path):
    """The model folder with these files: {path: text or bytes}."""

    def find(files):
        root = tmp_path / "digits"
        for name, content in files.items():
            file = root / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content if isinstance(content, bytes) else content.encode())
        return ModelFolder.find(root)

    return find


@pytest.mark.parametrize(
    ("files", "name", "version", "path"),
    [
        (["model.py"], "digits", 1, "."),
        (["1/model.py"], "digits", 1, "1"),
        (["2/model.py", "10/model.py", "9/model.py"], "digits", 10, "10"),
        (["007/model.py", "6/model.py"], "digits", 7, "007"),
        (["0/model.py", "1.5/x", "v2/x", "-3/x", "²/x", "3"], "digits", 0, "0"),
    ],
)
def test_the_highest_version_is_served(find, files, name, version, path):
    folder = find(dict.fromkeys(files, ""))
    assert (folder.name, folder.version, folder.path) == (name, version, folder.root / path)


@pytest.mark.parametrize("relative", ["missing", "file", "empty", "versions"])
def test_a_folder_that_holds_no_model_is_told(tmp_path, relative):
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    (tmp_path / "versions" / "3").mkdir(parents=True)
    told = {
        "missing": "missing does not exist; set MODEL to a folder that holds a model",
        "file": "file is not a folder; set MODEL to a folder that holds a model",
        "empty": "empty is empty; put the files of a model into it",
        "versions": "versions/3 is empty; put the files of a model into it",
    }
    with pytest.raises(ModelError) as caught:
        ModelFolder.find(tmp_path / relative)
    assert str(caught.value).endswith(told[relative])


def test_options_come_from_the_version_if_it_has_some_else_from_the_root(find):
    root = {"model.toml": 'name = "root"\nmax_batch_rows = 1', "1/model.py": "", "sample.json": "{}"}
    assert (find(root).name, find(root).options["max_batch_rows"]) == ("root", 1)
    own = find({**root, "2/model.toml": 'name = "own"\nsignature = "s"\nengine = "e"'})
    assert (own.name, own.options) == ("own", {"name": "own", "signature": "s", "engine": "e"})


@pytest.mark.parametrize(
    ("toml", "told"),
    [
        (
            "nam = 'a'",
            "'nam' is not one of name, engine, signature, sample, answer, max_batch_rows, trusted, batched, ",
        ),
        ("name = 3", "name = 3 is not a str"),
        ("max_batch_rows = '3'", "max_batch_rows = '3' is not a int"),
        ("max_batch_rows = true", "max_batch_rows = True is not a int"),
        ("batched = 1", "batched = 1 is not a bool"),
        ("trusted = 'a.B'", "trusted = 'a.B' is not a list"),
        ("max_batch_rows = 0", "max_batch_rows = 0 must be 1 or more"),
        ("inputs = 'x'", "inputs = 'x' is not a dict"),
        ("name = 'a/b'", "the model is called 'a/b', which nobody could ask for in a path: set name in model.toml"),
        ("name = '..'", "the model is called '..'"),
        ('name = "a\\n"', "the model is called 'a\\n'"),
        ("name = ", "model.toml: Invalid value (at end of document)"),
        (b"name = '\xff'", "model.toml: 'utf-8' codec can't decode"),
    ],
)
def test_a_model_toml_that_is_wrong_is_told(find, toml, told):
    with pytest.raises(ModelError) as caught:
        find({"model.toml": toml})
    assert told in str(caught.value)


def test_inputs_and_outputs_are_declared_with_their_types(find):
    folder = find({"model.toml": '[inputs]\nx = "float32[8, -1]"\n"a b" = "string"'})
    assert folder.declared("inputs") == (TensorSpec("x", "float32", (8, -1)), TensorSpec("a b", "string"))
    assert folder.declared("outputs") is None


@pytest.mark.parametrize(
    ("table", "told"),
    [
        ({}, "expected names with their types"),
        ([], "expected names with their types"),
        ("float32", "expected names with their types"),
        ({"x": "float"}, "x = 'float': float is not one of bool, "),
        ({"x": "float32[a]"}, "x = 'float32[a]': write it as dtype[sizes of one row]"),
        ({"x": 3}, "x = '3': 3 is not one of"),
        ({"": "bool"}, "'' is no name of 1 to 128 bytes"),
        ({"ä" * 65: "bool"}, "is no name of 1 to 128 bytes"),
        ({3: "bool"}, "3 is no name of 1 to 128 bytes"),
    ],
)
def test_types_that_are_wrong_are_told_with_their_place(table, told):
    with pytest.raises(ModelError) as caught:
        specs(table, "here")
    assert str(caught.value).startswith("here: ")
    assert told in str(caught.value)


def test_without_a_sample_the_model_is_warmed_up_with_zeros(find):
    sample = find({"model.py": ""}).sample(XY)
    assert {name: tensor.tolist() for name, tensor in sample.items()} == {"x": [[0, 0]], "y": [b""]}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"sample.json": '{"x": [1, 2], "y": "root"}', "1/model.py": ""}, b"root"),
        ({"sample.json": "{}", "1/sample.json": '{"x": [NaN, 2], "y": "own"}'}, b"own"),
        ({"a.json": '{"y": {"b64": "/w=="}, "x": [1, 2]}', "model.toml": "sample = 'a.json'"}, b"\xff"),
    ],
)
def test_the_sample_is_the_versions_own_or_that_of_the_root(find, files, expected):
    sample = find(files).sample(XY)
    assert sample["y"].tolist() == [expected]
    assert sample["x"].shape == (1, 2) and sample["x"].dtype == np.float32


@pytest.mark.parametrize(
    ("sample", "told"),
    [
        ("[1]", "sample.json: it is one JSON object"),
        ("{", "sample.json: Expecting property name"),
        (b'{"x": "\xff"}', "sample.json: 'utf-8' codec can't decode"),
        ("[" * 100_000, "sample.json: maximum recursion depth exceeded"),
        ('{"x": [1, 2]}', "sample.json: the body: 'y' is missing"),
        ('{"x": [1, true], "y": ""}', "sample.json: input 'x': found true; one row is float32[2]"),
    ],
)
def test_a_sample_that_is_wrong_is_told(find, sample, told):
    with pytest.raises(ModelError) as caught:
        find({"sample.json": sample}).sample(XY)
    assert told in str(caught.value)


def test_a_sample_that_model_toml_names_must_be_there(find):
    with pytest.raises(ModelError, match=r"says sample = 'a\.json', and there is no such file in .*digits$"):
        find({"model.toml": "sample = 'a.json'", "sample.json": "{}"}).sample_file()


def test_without_an_answer_nobody_knows_what_the_model_must_say(find):
    assert find({"model.py": ""}).answer(XY) is None


def test_the_answer_is_one_row_of_outputs(find):
    signature = Signature((), XY.inputs)
    answer = find({"answer.json": '{"x": [1, NaN], "y": "four"}', "1/model.py": ""}).answer(signature)
    assert answer["y"].tolist() == [b"four"]
    assert answer["x"].shape == (1, 2) and answer["x"].dtype == np.float32
    named = find({"model.toml": "answer = 'a.json'", "a.json": '{"x": [3, 4], "y": ""}'}).answer(signature)
    assert named["x"].tolist() == [[3, 4]]


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        ("[1]", "answer.json: it is one JSON object"),
        ('{"x": [1, 2]}', "answer.json: the body: 'y' is missing"),
        ('{"x": [1], "y": ""}', "answer.json: input 'x': one row has shape [1]"),
    ],
)
def test_an_answer_that_is_wrong_is_told(find, answer, told):
    with pytest.raises(ModelError) as caught:
        find({"answer.json": answer}).answer(Signature((), XY.inputs))
    assert told in str(caught.value)


def test_an_answer_that_model_toml_names_must_be_there(find):
    with pytest.raises(ModelError, match=r"says answer = 'a\.json', and there is no such file"):
        find({"model.toml": "answer = 'a.json'", "model.py": ""}).answer(XY)


SPECS = st.lists(
    st.builds(
        TensorSpec,
        st.text(max_size=9),
        st.sampled_from(DTYPES),
        st.lists(st.integers(-1), max_size=3).map(tuple),
        st.none() | st.booleans() | st.integers() | st.text(),
    ),
    max_size=3,
).map(tuple)


CARDS = st.builds(ModelCard, st.text(), st.integers(0), st.text(), st.builds(Signature, SPECS, SPECS), st.integers(1))


@given(CARDS)
def test_a_card_comes_back_from_its_json(card):
    assert ModelCard.from_dict(json.loads(json.dumps(card.as_dict()))) == card


def test_each_version_has_its_folder_and_one_without_folders_is_version_1(tmp_path):
    for name in ("2", "010", "10", "9", "x", "²", "1.5"):
        (tmp_path / "models" / name).mkdir(parents=True)
    root = tmp_path / "models"
    assert versions(root) == {2: root / "2", 9: root / "9", 10: root / "10"}
    (tmp_path / "plain").mkdir()
    assert versions(tmp_path / "plain") == {1: tmp_path / "plain"}


def test_the_identity_changes_with_the_files_and_with_model_toml_but_for_labels(tmp_path):
    root, path = tmp_path, tmp_path / "1"
    (path / "variables").mkdir(parents=True)
    (path / "variables" / "weights").write_text("one")
    seen = {identity(contents(path, root))}

    def changed():
        before = len(seen)
        seen.add(identity(contents(path, root)))
        return len(seen) > before

    assert not changed()
    (path / "variables" / "weights").write_text("three")
    assert changed()
    os.utime(path / "variables" / "weights", (0, 0))
    assert changed()
    (path / "more").touch()
    assert changed()
    (root / "model.toml").write_text("max_batch_rows = 3")
    assert changed()
    (root / "model.toml").write_text("max_batch_rows = 3\n[labels]\nstable = 1")
    assert not changed()
    (path / "__pycache__").mkdir()
    (path / "__pycache__" / "model.pyc").touch()
    (root / "2").mkdir()
    assert not changed()


@pytest.mark.parametrize(
    ("toml", "expected"),
    [("", {}), ("[labels]\nstable = 1\nmy-label_2 = 0", {"stable": 1, "my-label_2": 0})],
)
def test_labels_are_those_of_the_root(tmp_path, toml, expected):
    (tmp_path / "model.toml").write_text(toml)
    assert labels(tmp_path) == expected


@pytest.mark.parametrize("line", ["1 = 1", "a = true", 'a = "1"', '"ä" = 1', '"a b" = 1', f"{'a' * 65} = 1"])
def test_a_label_that_is_none_is_told(tmp_path, line):
    (tmp_path / "model.toml").write_text(f"[labels]\n{line}")
    with pytest.raises(ModelError, match="stable = 1 would do"):
        labels(tmp_path)


def test_a_default_that_is_nan_is_the_same_after_its_way_through_json():
    card = ModelCard("m", 1, "mlflow", Signature((TensorSpec("x", "float64", (), "NaN"),), ()), 32)
    found = ModelCard.from_dict(json.loads(json.dumps(card.as_dict())))
    assert found.signature == card.signature and np.isnan(found.signature.samples()["x"]).all()


def test_a_card_is_told_with_samples_or_without():
    spec = TensorSpec("x", "string").with_sample("of somebody's")
    card = ModelCard("m", 1, "sklearn", Signature((spec,), ()), 32)
    told = json.loads(json.dumps(card.as_dict()))
    assert ModelCard.from_dict(told).signature.samples()["x"].tolist() == [b"of somebody's"]
    (told,) = card.as_dict(samples=False)["signature"]["inputs"]
    assert told == {"name": "x", "dtype": "string", "shape": ()}


def test_a_model_narrowed_by_model_toml_keeps_its_defaults_and_samples(find):
    found = (
        TensorSpec("x", "float32", (-1,)).with_sample([1, 2]),
        TensorSpec("n", "int64", (), 3),
    )
    x, n = find({"model.toml": '[inputs]\nx = "float32[2]"\nn = "int64"'}).narrowed("inputs", found)
    assert (x.shape, x.sample, n.default) == ((2,), [1, 2], 3)
    # one that does not fit any more
    x, _ = find({"model.toml": '[inputs]\nx = "float32[3]"\nn = "int64"'}).narrowed("inputs", found)
    assert (x.shape, x.sample) == ((3,), None)


def test_a_card_knows_its_signatures_by_name_the_default_first():
    one, two = (Signature((TensorSpec(name, "float32"),), (TensorSpec("y", "int8"),)) for name in ("x", "z"))
    card = ModelCard("m", 1, "tensorflow", one, 32, (), "predict", {"classify": two})
    assert list(card.signatures.items()) == [("predict", one), ("classify", two)]
    assert ModelCard.from_dict(json.loads(json.dumps(card.as_dict()))) == card
    assert "others" not in ModelCard("m", 1, "tensorflow", one, 32).as_dict()
