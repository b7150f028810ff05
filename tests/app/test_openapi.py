"""What the server tells of itself: a valid document, and examples that are what they are said to be."""

import json
import re
from dataclasses import replace

import jsonschema
import numpy as np
import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator

from app import dialects
from app.health import SUPERVISOR
from app.openapi import document
from app.openapi.tensors import Model, row
from serving.model import ModelCard
from serving.signature import Signature, TensorSpec
from tests.app.conftest import check_problem, signature


class Typed:
    """An input and an output of many kinds."""

    inputs = {
        "image": "int8[2, 3]",
        "text": "string",
        "flag": "bool",
        "large": "uint64",
        "half": "float16[2]",
        "any": "float64[-1]",
    }
    outputs = {"bytes": "string[2]", "image": "int8[2, 3]", "flag": "bool", "large": "uint64"}

    def predict(self, inputs):
        rows = len(inputs["flag"])
        told = np.full((rows, 2), b"\xff", object)
        return {"bytes": told, **{name: inputs[name] for name in ("image", "flag", "large")}}


class Text:
    """One text of one text."""

    inputs = {"text": "string"}
    outputs = {"res": "string"}

    def predict(self, inputs):
        return {"res": inputs["text"]}


class Matrix:
    """One tensor of numbers that JSON cannot show at a glance."""

    inputs = {"x": "float32[64, 64, 3]"}
    outputs = {"y": "float32"}

    def predict(self, inputs):
        return {"y": inputs["x"].sum(axis=(1, 2, 3))}


class Inputs(Text):
    """An input that is called like a form of the body."""

    inputs = {"inputs": "string"}

    def predict(self, inputs):
        return {"res": inputs["inputs"]}


MODELS = (Typed, Text, Matrix, Inputs)


def told(chain, **options):
    """The document, which is valid."""
    answer = chain.get("/openapi.json", **options)
    assert answer.status_code == 200, answer.data
    OpenAPIV31SpecValidator(answer.json).validate()
    return answer.json


def resolved(document, value):
    """What a reference refers to."""
    while "$ref" in value:
        found = document
        for part in value["$ref"].removeprefix("#/").split("/"):
            found = found[part]
        value = found
    return value


def check(document, schema, value):
    schema = {**schema, "components": document["components"]}
    jsonschema.validate(value, schema, jsonschema.Draft202012Validator)


def operations(document):
    for path, item in document["paths"].items():
        for method, operation in item.items():
            yield path, method, operation


def concrete(document, path, operation):
    """The path with the examples of its parameters, None where one has none."""
    for reference in operation.get("parameters", ()):
        parameter = resolved(document, reference)
        if parameter["in"] == "path":
            if "example" not in parameter:
                return None
            path = path.replace(f"{{{parameter['name']}}}", parameter["example"])
    return path


def bodies(document, content):
    """Media types with schemas and examples."""
    for media_type, body in content.items():
        for reference in {**body.get("examples", {}), **body.get("x-examples", {})}.values():
            yield media_type, body["schema"], resolved(document, reference)


def check_headers(document, given, answer):
    """Those that are always there are there, and no other of ours is that is not told."""
    told = {name: resolved(document, header) for name, header in given["headers"].items()}
    assert {name for name, header in told.items() if header["required"]} <= {*answer.headers.keys()}
    for name, text in answer.headers.items():
        # X-Log is for nginx, which keeps it
        if name.startswith(("X-", "Inference-")) and name != "X-Log":
            check(document, told[name]["schema"], int(text) if told[name]["schema"].get("type") == "integer" else text)


def test_the_headers_of_raw_answers_are_told(make_chain):
    chain = make_chain(Matrix()).serve()
    document = told(chain)
    for path in ("/predict", "/invocations"):
        responses = document["paths"][path]["post"]["responses"]
        body = {"instances": np.zeros((1, 64, 64, 3)).tolist()}
        answer = chain.get(path, "POST", json=body, headers={"Accept": "application/octet-stream"})
        assert answer.headers["X-Tensor-Shape"] == "1" and "406" in responses
        check_headers(document, responses["200"], answer)
    # who does not look at Accept
    for path in ("/v1/models/{model}:predict", "/v2/models/{model}/infer", "/predictions/{model}"):
        assert "406" not in document["paths"][path]["post"]["responses"]


@pytest.mark.parametrize("model", MODELS)
def test_every_example_is_answered_as_the_document_says(make_chain, model):
    chain = make_chain(model()).serve()
    document = told(chain)
    posted = set()
    for path, method, operation in operations(document):
        where = concrete(document, path, operation)
        content = operation.get("requestBody", {}).get("content", {})
        for media_type, schema, example in bodies(document, content) if where else ():
            if "value" in example:
                check(document, schema, example["value"])
                body = json.dumps(example["value"]) if isinstance(example["value"], dict) else example["value"]
            else:
                body = chain.get(example["externalValue"])
                assert body.status_code == 200 and body.mimetype == media_type
                body = body.data
                if media_type == "application/json":
                    check(document, schema, json.loads(body))
            headers = {"Content-Type": media_type, **example.get("x-headers", {})}
            answer = chain.get(where, method.upper(), data=body, headers=headers)
            assert answer.status_code == 200, (path, media_type, answer.data)
            given = operation["responses"]["200"]
            check_headers(document, given, answer)
            if answer.mimetype == "application/json":
                check(document, given["content"]["application/json"]["schema"], answer.json)
            else:
                assert answer.mimetype in given["content"]
            posted.add((path, media_type))
    declared = {
        (path, media_type)
        for path, _, operation in operations(document)
        if concrete(document, path, operation)
        for media_type in operation.get("requestBody", {}).get("content", ())
    }
    if model is Typed:
        # half precision has no JSON form there
        declared -= {(path, kind) for path, kind in declared if "/infer" in path and kind == "application/json"}
    assert posted == declared and ("/predict", "application/json") in posted


@pytest.mark.parametrize("model", MODELS)
def test_every_get_is_answered_as_the_document_says(make_chain, model):
    chain = make_chain(model()).serve()
    document = told(chain)
    for path, method, operation in operations(document):
        where = concrete(document, path, operation)
        if method == "get" and where:
            answer = chain.get(where)
            response = operation["responses"][str(answer.status_code)]
            assert answer.status_code == 200 or path.endswith(("ready", "/ping", "/health"))
            schema = response["content"][answer.mimetype].get("schema")
            if schema:
                check(document, schema, answer.json if answer.mimetype == "application/json" else answer.text)


@pytest.mark.parametrize("model", MODELS)
def test_examples_of_answers_and_errors_fit_their_schemas(make_chain, model):
    document = told(make_chain(model()).ready())
    count = 0
    for _, _, operation in operations(document):
        for status, reference in operation["responses"].items():
            response = resolved(document, reference)
            for _, schema, example in bodies(document, response["content"]):
                check(document, schema, example["value"])
                count += 1
            if status[0] in "45" and "$ref" in reference:
                assert "(`" in response["description"]
                for body in response["content"].values():
                    check(document, body["schema"], body["example"])
                    count += 1
    assert count > 40


def test_every_route_of_the_server_is_in_the_document(make_chain):
    chain = make_chain(Text())
    paths = {path: {*item} for path, item in told(chain.ready())["paths"].items()}
    own = re.compile(r"/docs|/openapi\.json|/console($|/\{)")
    for rule in chain.app.url_map.iter_rules():
        path = re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", rule.rule)
        path = path.replace("{name}", "{model}").rstrip("/")
        if own.match(path) or path == "/v1/{_}" or re.search(r":(classify|regress)$", path):
            # which this model is not for, or nobody
            continue
        assert {*map(str.lower, rule.methods - {"HEAD", "OPTIONS"})} <= paths[path], path
    posts = {re.sub(r"<(\w+)>", r"{\1}", rule) for rule in dialects.RULES}
    assert {path for path in posts if not re.search(r":(classify|regress)$", path)} <= {*paths}


def test_classify_and_regress_are_told_where_a_signature_is_for_them(make_chain):
    class Scores(Text):
        outputs = {"classes": "string[2]", "scores": "float32[2]"}

    document = told(make_chain(Scores()).ready())
    classify = document["paths"]["/v1/models/{model}:classify"]["post"]
    schema = classify["requestBody"]["content"]["application/json"]["schema"]
    check(document, schema, {"examples": [{"words": ["a", "b"], "count": 2}]})
    given = classify["responses"]["200"]["content"]["application/json"]["schema"]
    check(document, given, {"results": [[["a", 0.5], ["b", 0.5]]]})
    assert "/v1/models/{model}:regress" not in document["paths"]


def test_numbers_have_the_range_of_their_dtype_and_lists_the_sizes_of_their_shape():
    schema = row(TensorSpec.parse("x", "int8[2, -1]"))
    assert (schema["minItems"], schema["maxItems"]) == (2, 2)
    inner = schema["items"]
    assert "minItems" not in inner
    assert inner["items"] == {"type": "integer", "minimum": -128, "maximum": 127}
    assert row(TensorSpec.parse("x", "uint64"))["maximum"] == 2**64 - 1
    assert row(TensorSpec.parse("x", "float32"))["maximum"] == np.finfo(np.float32).max
    for value in (128, 0.5, True, "1"):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate([[value], [0]], schema)


def test_all_signatures_are_told():
    others = {"score": signature({"text": "string"}, {"score": "float32"})}
    card = ModelCard("m", 1, "python", signature({"x": "float32[2]"}, {"y": "float32"}), 8, others=others)
    document_ = json.loads(document(Model(card, False, 8)).text)
    OpenAPIV31SpecValidator(document_).validate()
    schema = document_["paths"]["/predict"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    check(document_, schema, {"instances": ["a"], "signature_name": "score"})
    check(document_, schema, {"instances": [[1, 2]]})
    with pytest.raises(jsonschema.ValidationError):
        check(document_, schema, {"instances": ["a"]})


def test_a_default_that_json_has_no_word_for_is_not_in_an_example():
    spec = TensorSpec("x", "float64", (), default="nan")
    card = ModelCard("m", 1, "python", Signature((spec,), (spec,)), 8)
    found = json.loads(document(Model(card, False, 8)).text)
    OpenAPIV31SpecValidator(found).validate()
    values = [example["value"] for example in found["components"]["examples"].values() if "value" in example]
    assert {"x": 0} in values and "null" not in json.dumps(values)


def sampled(chain, value):
    """The chain, with a sample on its card."""
    spec = replace(chain.signature.inputs[0], sample=value)
    chain.ready()
    card = ModelCard("double", 3, "python", Signature((spec,), chain.signature.outputs), 32)
    chain.board.records[0].describe(card)
    return chain


def test_the_sample_is_shown_to_nobody_else_unless_it_is_public(make_chain):
    secret = "a customer's words"
    closed = sampled(make_chain(Text()), secret)
    for path in ("/openapi.json", "/readyz"):
        assert secret not in closed.get(path).text
        assert secret in closed.get(path, environ_overrides={SUPERVISOR: "1"}).text
    opened = sampled(make_chain(Text(), public_sample=True), secret)
    assert secret in opened.get("/readyz").text
    examples = told(opened)["components"]["examples"].values()
    assert {"text": secret} in [example.get("value") for example in examples]


def test_the_document_is_sent_again_only_when_it_has_changed(make_chain):
    chain = make_chain(Text(), public_sample=True).ready()
    answer = chain.get("/openapi.json")
    tag = answer.headers["ETag"]
    assert answer.headers["Cache-Control"] == "no-cache"
    again = chain.get("/openapi.json", headers={"If-None-Match": tag})
    assert (again.status_code, again.data) == (304, b"")
    chain.signature = signature({"number": "int64"}, {"res": "string"})
    chain.ready()
    changed = chain.get("/openapi.json", headers={"If-None-Match": tag})
    assert changed.status_code == 200 and changed.headers["ETag"] != tag
    assert "number" in changed.text


def test_without_a_model_there_is_nothing_to_tell_yet(make_chain):
    answer = make_chain(Text()).get("/openapi.json")
    check_problem(answer, 503, "model_loading")


def test_the_page_loads_what_the_server_has_and_runs_no_script_of_its_own(make_chain):
    chain = make_chain(Text())
    page = chain.get("/docs").text
    assert re.findall(r"<script(?! src=\")|\son\w+=|style=", page) == []
    parts = re.findall(r'(?:src|href)="([^"]+)"', page)
    assert "docs/swagger-ui-bundle.js" in parts
    for part in parts:
        answer = chain.get(f"/{part}")
        assert answer.status_code == 503 if part == "openapi.json" else 200, part
    again = chain.get("/docs/docs.js", headers={"If-None-Match": chain.get("/docs/docs.js").headers["ETag"]})
    assert again.status_code == 304


@pytest.mark.parametrize("name", ["index.html", "swagger-ui.js", "..%2fhealth.py", "examples/none", "LICENSE"])
def test_no_other_file_is_given(make_chain, name):
    check_problem(make_chain(Text()).ready().get(f"/docs/{name}"), 404, "not_found")
