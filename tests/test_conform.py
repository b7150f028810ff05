"""The cases of `muleteer conform`: their files, what placeholders become, and what is found wrong with an answer."""

import gzip
import json
import struct
import subprocess
import sys

import pytest
from jsonschema import Draft202012Validator

from cases import DIALECTS, FOLDER, Answer, Case, Missing, fill, read
from conform import _WITHOUT, ConformError, _read
from muleteer import main
from placeholders import Input, filled

SCALARS = [Input("x", "FP32", ()), Input("text", "BYTES", (), "ž,")]
IMAGE = [Input("image", "FP32", (2, 2))]
KNOWN = {"MODEL": "m", "VERSION": "3", "OUTPUT": "y"}
KEYS = {"name", "claim", "request", "headers", "json", "text", "form", "parts", "encoding", "needs"}
KEYS |= {"status", "or", "type", "has", "shape", "says"}


def case(schemas=None, **told):
    return Case({"name": "a", "claim": "b", "request": "POST /x", "status": 200, **told}, schemas or {})


def complaint(told, status=200, body=b"{}", headers=None):
    headers = {"content-type": "application/json; charset=utf-8", **(headers or {})}
    return case(SCHEMAS, **told).complaint(Answer(status, headers, body), KNOWN)


@pytest.mark.parametrize("name", DIALECTS)
def test_each_file_can_be_asked(name):
    dialect = read(name)
    assert len(dialect.cases) > 5 and dialect.probe.request(KNOWN).path.startswith("/")
    assert len({case.name for case in dialect.cases}) == len(dialect.cases)
    schemas = dialect.cases[0].schemas
    Draft202012Validator.check_schema({"$defs": schemas})
    values = KNOWN | filled([SCALARS[0]])
    for case in dialect.cases:
        assert set(case.told) <= KEYS and case.told["claim"], case.name
        assert case.told.keys() >= {"status"} and case.places <= values.keys(), case.name
        request = case.request(values)
        assert "$" not in request.path and b'"$' not in request.body, case.name
    assert {case.told.get("shape") for case in dialect.cases} - {None} <= set(schemas)
    # each is used, by a case or by another
    text = (FOLDER / f"{name}.toml").read_text()
    unused = [name for name in schemas if f'shape = "{name}"' not in text and f'"#/$defs/{name}"' not in text]
    assert unused == []


def test_a_library_that_is_missing_is_named():
    program = "import sys, muleteer; sys.modules['jsonschema'] = None; sys.exit(muleteer.main(['conform', 'http://x']))"
    done = subprocess.run([sys.executable, "-c", program], cwd=FOLDER.parent, capture_output=True, text=True)
    told = "muleteer: conform needs jsonschema, which is not installed: pip install '.[conform]'\n"
    assert (done.stdout, done.stderr, done.returncode) == ("", told, 2)


def test_the_help_lists_the_dialects(capsys):
    with pytest.raises(SystemExit):
        main(["conform", "--help"])
    told = capsys.readouterr().out
    assert [name for name in DIALECTS if name not in told] == []


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("$MODEL", "m"),
        ("$ROW", [[0.0, 0.0], [0.0, 0.0]]),
        ("/v1/$MODEL:predict", "/v1/m:predict"),
        ('{"instances": [$ROW]}', '{"instances": [[[0.0, 0.0], [0.0, 0.0]]]}'),
        (
            {"a": ["$INPUT", 1, True, None], "$OUTPUT": {"b": "$VERSION"}},
            {"a": ["image", 1, True, None], "y": {"b": "3"}},
        ),
        ({"$ref": "#/$defs/error", "pattern": "^a$"}, {"$ref": "#/$defs/error", "pattern": "^a$"}),
        ("$BYTES", bytes(16)),
    ],
)
def test_placeholders_become_what_is_known(template, expected):
    assert fill(template, KNOWN | filled(IMAGE)) == expected


def test_a_placeholder_that_nothing_is_known_of_is_named():
    for template in ("$CSV_NAMED", "/x/$CSV_NAMED", ["$CSV_NAMED"], {"a": "$CSV_NAMED"}):
        with pytest.raises(Missing) as error:
            fill(template, filled(IMAGE))
        assert str(error.value) in _WITHOUT
    assert case(json=["$A", "b$C"], headers={"D": "$HEAD"}).places == {"A", "C"}


def test_rows_are_filled_in_by_one_input_or_by_names():
    one, two = filled(IMAGE), filled(SCALARS)
    assert one["ROWS"] == [one["ROW"]] * 2 and one["ROW"] == one["INSTANCE"]["image"]
    assert two["ROW"] == two["INSTANCE"] == {"x": 0.0, "text": "ž,"}
    assert (two["CSV"].decode(), two["CSV_NAMED"].decode()) == ('0.0,"ž,"\n' * 2, 'x,text\n0.0,"ž,"\n0.0,"ž,"\n')
    assert one["CSV"] == b"0.0,0.0,0.0,0.0\n" * 2 and "NPY" in one and "NPY" not in two
    assert two["INPUTS"][1] == {"name": "text", "datatype": "BYTES", "shape": [1], "data": ["ž,"]}
    assert two["BINARY"][1]["parameters"] == {"binary_data_size": 7}
    assert two["BYTES"] == bytes(4) + struct.pack("<I", 3) + "ž,".encode()


@pytest.mark.parametrize(
    ("sample", "datatype", "told"),
    [
        (1, None, ("INT64", ())),
        (1, "FP64", ("FP64", ())),
        ([[0.5, 1]], None, ("FP32", (1, 2))),
        (True, None, ("BOOL", ())),
        (["a"], None, ("BYTES", (1,))),
    ],
)
def test_the_datatype_of_a_sample_is_that_of_its_values_unless_it_is_known(sample, datatype, told):
    found = Input.of("x", sample, datatype and Input("x", datatype, ()))
    assert (found.datatype, found.shape, found.value) == (*told, sample)


@pytest.mark.parametrize(
    ("datatype", "open", "unknown"),
    [
        ("FP32", 0, set()),
        ("FP32", 1, {"NO_RAW"}),
        ("UINT8", 1, {"NO_RAW", "MORE_RAW"}),
        ("FP32", 2, {"NO_RAW", "MORE_RAW", "RAW", "CSV"}),
    ],
)
def test_bytes_and_cells_cannot_tell_sizes_that_may_be_any(datatype, open, unknown):
    known = filled([Input("x", datatype, (1, 3), open=open)])
    assert {"RAW", "NO_RAW", "MORE_RAW", "CSV"} - known.keys() == unknown <= _WITHOUT.keys()


def test_half_of_a_float_is_what_bf16_has():
    assert Input("x", "BF16", (2,), [1.0, -2.0]).raw == struct.pack("<ff", 1, -2)[2:4] + struct.pack("<f", -2)[2:]


def test_what_is_sent_is_made_of_a_case():
    values = KNOWN | filled(IMAGE) | {"MODEL": "a model/ž"}
    sent = case(request="POST /v1/$MODEL", json={"instances": "$ROWS"}, headers={"Content-Type": ""}).request(values)
    assert (sent.method, sent.path, sent.headers) == ("POST", "/v1/a%20model%2F%C5%BE", {})
    assert json.loads(sent.body) == {"instances": values["ROWS"]}
    sent = case(parts=[{"inputs": []}, "$BYTES", "x"], headers={"Length": "$HEAD"}, encoding="gzip").request(values)
    assert sent.headers == {"Length": "14", "Content-Encoding": "gzip"}
    assert gzip.decompress(sent.body) == b'{"inputs": []}' + bytes(16) + b"x"
    sent = case(form={"data": "$ROW"}).request(values)
    assert sent.body.startswith(b"data=%5B%5B0.0%2C") and "urlencoded" in sent.headers["Content-Type"]


SCHEMAS = {
    "error": {"required": ["error"], "properties": {"error": {"$ref": "#/$defs/name"}}},
    "name": {"const": "$MODEL"},
    "outputs": {"required": ["outputs"]},
    "unknown": {"const": "$UNKNOWN"},
}


def test_a_case_needs_what_the_schemas_do_that_it_refers_to():
    assert case(SCHEMAS, shape="error", json="$ROW").places == {"MODEL", "ROW"}
    assert case(SCHEMAS, shape="unknown").places == {"UNKNOWN"} and case(SCHEMAS).places == set()


@pytest.mark.parametrize(
    ("answer", "told", "wrong"),
    [
        ({}, {}, ""),
        ({"status": 400}, {}, "expected 200, got 400 application/json {}"),
        ({"status": 404}, {"status": [400, 404]}, ""),
        ({"status": 422, "body": b"?"}, {"or": [422], "shape": "error"}, ""),
        ({}, {"type": ["text/csv", "text/plain"]}, "expected text/csv or text/plain, got 200"),
        ({}, {"has": ["Allow"]}, "expected the header Allow"),
        ({"headers": {"allow": "GET"}}, {"has": ["Allow"]}, ""),
        ({"body": b"it is not found"}, {"says": "^it is (not|never)"}, ""),
        ({"body": b"it"}, {"says": "^it is"}, "expected a body with /^it is/, got 200 application/json it"),
        ({"body": b'{"error": "m"}'}, {"shape": "error"}, ""),
        ({"body": b'{"error": NaN}'}, {"shape": "error"}, "expected error, $.error: 'm' was expected"),
        ({"body": b"["}, {"shape": "error"}, "expected error, it is not JSON: "),
        ({"body": b"[" * 100_000}, {"shape": "error"}, "expected error, it is not JSON: "),
        ({"body": b"\x1b[31m\r\n\xff"}, {"status": 400}, "got 200 application/json \ufffd[31m \\xff"),
        ({"body": b'["' + b"x" * 900 + b'"]'}, {"status": 400}, "x…"),
    ],
)
def test_an_answer_is_as_expected_or_what_was_expected_is_told(answer, told, wrong):
    found = complaint(told, **answer)
    assert wrong in found and bool(found) == bool(wrong) and len(found) < 500 and "\n" not in found


@pytest.mark.parametrize(
    ("head", "size", "rest", "wrong"),
    [
        (None, 4, b"abcd", ""),
        (None, 5, b"abcd", "binary_data_size of all outputs is 5, and 4 bytes follow the JSON"),
        (None, 4, b"abcde", "binary_data_size of all outputs is 4, and 5 bytes follow the JSON"),
        ("1000", 4, b"abcd", "Inference-Header-Content-Length is 1000, and the body has"),
        ("-1", 4, b"abcd", "Inference-Header-Content-Length is -1"),
        (None, "all", b"abcd", "binary_data_size of all outputs is None"),
    ],
)
def test_the_sizes_of_a_binary_answer_add_up(head, size, rest, wrong):
    told = json.dumps({"outputs": [{"parameters": {"binary_data_size": size}}]}).encode()
    headers = {"inference-header-content-length": head or str(len(told))}
    found = complaint({"shape": "outputs"}, body=told + rest, headers=headers)
    assert wrong in found and bool(found) == bool(wrong)


@pytest.mark.parametrize(
    ("content", "told"),
    [(None, "No such file"), (b"{", "is not JSON"), (b"[1]", "is not one instance"), (b"{}", "is not one instance")],
)
def test_a_sample_that_cannot_be_read_is_told(tmp_path, content, told):
    if content is not None:
        (tmp_path / "sample.json").write_bytes(content)
    with pytest.raises(ConformError, match=told):
        _read(tmp_path / "sample.json")
