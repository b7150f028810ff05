"""scikit-learn: what a row is made of, as the steps of a pipeline tell."""

import joblib
import lightgbm
import numpy as np
import pandas as pd
import pytest
import xgboost
from scipy import sparse
from sklearn.cluster import KMeans
from sklearn.compose import make_column_transformer
from sklearn.datasets import load_iris
from sklearn.ensemble import HistGradientBoostingRegressor, VotingRegressor
from sklearn.feature_extraction import DictVectorizer
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder, StandardScaler

from mules import engines
from serving.errors import ModelError, SignatureMismatch
from serving.model import ModelFolder

TABLE = pd.DataFrame(
    {
        "colour": ["red", "green", "red", "blue"],
        "rooms": [3, 2, 3, 4],
        "sold": [True, False, True, False],
        "note": ["large and bright", "small", "bright", "dark"],
        "price": [1.5, 2.5, 3.5, 4.5],
    }
)
Y = [1.0, 2.0, 3.0, 4.0]


@pytest.fixture
def load(tmp_path):
    def load(model, toml=""):
        joblib.dump(model, tmp_path / "model.joblib")
        (tmp_path / "model.toml").write_text(toml)
        return engines.load(ModelFolder.find(tmp_path), threads=1)

    return load


def specs(engine):
    return {spec.name: (str(spec), spec.sample) for spec in engine.signature.inputs}


def test_each_column_has_the_type_that_its_encoder_knows(load):
    encoded = make_column_transformer(
        (make_pipeline(SimpleImputer(strategy="most_frequent"), OneHotEncoder()), ["colour"]),
        (OrdinalEncoder(), ["rooms", "sold"]),
        (CountVectorizer(), "note"),
        remainder=StandardScaler(),
    )
    model = make_pipeline(encoded, LinearRegression()).fit(TABLE, Y)
    engine = load(model)
    assert specs(engine) == {
        "colour": ("string", "blue"),
        "rooms": ("int64", 2),
        "sold": ("bool", False),
        "note": ("string", None),
        "price": ("float64", None),
    }
    columns = {name: np.array([text.encode() for text in TABLE[name]], object) for name in ("colour", "note")}
    inputs = {name: columns.get(name, TABLE[name].to_numpy()) for name in TABLE.columns}
    assert engine.predict(inputs)["predict"].tolist() == model.predict(TABLE).tolist()


def test_model_toml_may_know_a_column_better(load):
    engine = load(LinearRegression().fit(TABLE[["rooms", "price"]], Y), '[inputs]\nrooms = "int64"\n')
    assert specs(engine) == {"rooms": ("int64", None), "price": ("float64", None)}


def test_an_encoder_without_a_transformer_of_columns(load):
    model = make_pipeline(OneHotEncoder(), LinearRegression()).fit(TABLE[["colour", "rooms"]], Y)
    assert specs(load(model)) == {"colour": ("string", "blue"), "rooms": ("int64", 2)}


@pytest.mark.parametrize(
    ("values", "dtype", "sample"),
    [
        ([20, 10, 20, 30], "int64", 10),
        ([True, False, True, False], "bool", False),
        ([1.5, 2, 1.5, None], "float64", 1.5),
        ([1, 2, 1, None], "int64", 1),
        (["b", "a", None, "b"], "string", "a"),
    ],
)
@pytest.mark.parametrize("encoder", [OneHotEncoder(), OrdinalEncoder()])
def test_a_column_of_objects_has_the_type_of_what_is_in_it(load, values, dtype, sample, encoder):
    table = pd.DataFrame({"x": pd.Series(values, dtype=object), "price": TABLE["price"]})
    encoded = make_column_transformer((encoder, ["x"]), remainder="passthrough")
    model = make_pipeline(encoded, LinearRegression()).fit(table, Y)
    engine = load(model)
    assert specs(engine)["x"] == (dtype, sample)
    rows = [{"x": x, "price": price} for x, price in zip(values, TABLE["price"].tolist(), strict=True) if x is not None]
    found = engine.predict(engine.signature.instances(rows))
    assert found["predict"].tolist() == model.predict(table[table["x"].notna()]).tolist()


@pytest.mark.parametrize(
    ("values", "told"),
    [
        (pd.to_datetime(["2020-01-01", "2020-01-02"] * 2).astype("datetime64[ns]"), r"'x' of datetime64\[ns\]"),
        ([b"a", b"b"] * 2, "'x' of bytes"),
    ],
)
def test_a_column_that_no_request_can_hold_is_refused(load, values, told):
    model = make_pipeline(OrdinalEncoder(), LinearRegression()).fit(pd.DataFrame({"x": values}), Y)
    with pytest.raises(ModelError, match=f"was trained on a column {told}, and a column of a request is of strings"):
        load(model)


@pytest.fixture(scope="module")
def categories():
    """A table with pandas' categories, the same rows without, and what is to be known of them."""
    colours, rooms, size = ["red", "green", "blue"] * 40, [20, 10] * 60, np.arange(120.0)
    plain = pd.DataFrame({"colour": pd.Series(colours, dtype=object), "rooms": rooms, "size": size % 7})
    table = plain.assign(colour=pd.Categorical(colours), rooms=pd.Categorical(rooms))
    return table, plain, (plain["colour"] == "red") * 9.0 + (plain["rooms"] == 10) * 5 + plain["size"]


@pytest.mark.parametrize(
    "wrap",
    [lambda own: own, lambda own: VotingRegressor([("own", own)]), lambda own: make_pipeline(own)],
)
def test_categories_that_gradient_boosting_encodes_by_itself_are_served(load, categories, wrap):
    table, plain, y = categories
    model = wrap(HistGradientBoostingRegressor(max_iter=10, random_state=7)).fit(table, y)
    engine = load(model)
    assert specs(engine) == {"colour": ("string", "blue"), "rooms": ("int64", 10), "size": ("float64", None)}
    found = engine.predict(engine.signature.instances(plain.to_dict("records")))
    assert found["predict"].tolist() == model.predict(table).tolist()
    assert len(set(found["predict"].tolist())) > 6


@pytest.mark.parametrize(
    "own",
    [xgboost.XGBRegressor(n_estimators=3, enable_categorical=True), lightgbm.LGBMRegressor(n_estimators=3, verbose=-1)],
)
@pytest.mark.parametrize("wrap", [lambda own: own, lambda own: VotingRegressor([("own", own)])])
def test_categories_that_other_libraries_ask_pandas_for_are_refused(load, categories, own, wrap):
    table, plain, y = categories
    told = f"{type(own).__name__} that was trained on categorical columns of a table: fit a pipeline that begins with"
    with pytest.raises(ModelError, match=told):
        load(wrap(own).fit(table, y))
    # as the sentence says
    encoder = make_column_transformer((OrdinalEncoder(), ["colour", "rooms"]), remainder="passthrough")
    model = make_pipeline(encoder, wrap(own)).fit(plain, y)
    found = load(model)
    outputs = found.predict(found.signature.instances(plain.to_dict("records")))
    assert outputs["predict"].tolist() == model.predict(plain).tolist()


def test_columns_without_names_are_a_matrix(load, tmp_path):
    x = TABLE[["rooms", "price"]].to_numpy()
    model = make_pipeline(make_column_transformer((OrdinalEncoder(), [0]), remainder="passthrough"), LinearRegression())
    (tmp_path / "sample.json").write_text('{"inputs": [2, 1.5]}')
    engine = load(model.fit(x, Y))
    assert specs(engine) == {"inputs": ("float64[2]", None)}
    assert engine.predict({"inputs": x})["predict"].tolist() == model.predict(x).tolist()


@pytest.mark.parametrize("named", [False, True])
def test_what_was_trained_on_single_precision_gets_it_where_model_toml_says_so(load, named):
    x, y = load_iris(return_X_y=True)
    rows = x.astype(np.float32) / 3
    names = ["a", "b", "c", "d"]
    take = (lambda found: pd.DataFrame(found, columns=names)) if named else np.asarray
    split = (lambda found: dict(zip(names, found.T, strict=True))) if named else (lambda found: {"inputs": found})
    model = make_pipeline(StandardScaler(), LogisticRegression()).fit(take(rows), y)
    # nothing in it tells of that for sure: in doubt a row is of double precision
    wide = rows.astype(np.float64)
    found = load(model).predict(split(wide))["predict_proba"]
    assert found.tolist() == model.predict_proba(take(wide)).tolist()
    declared = 'inputs = "float32[4]"' if not named else "\n".join(f'{name} = "float32"' for name in names)
    engine = load(model, f"[inputs]\n{declared}\n")
    assert {spec.dtype for spec in (*engine.signature.inputs, *engine.signature.outputs[1:])} == {"float32"}
    assert engine.predict(split(rows))["predict_proba"].tolist() == model.predict_proba(take(rows)).tolist()
    assert model.predict_proba(take(rows)).tolist() != model.predict_proba(take(wide)).tolist()


def test_a_table_of_very_many_columns_is_a_matrix(load):
    x = np.random.default_rng(7).normal(size=(20, 300))
    table = pd.DataFrame(x, columns=[f"x{place}" for place in range(300)])
    model = LinearRegression().fit(table, x[:, 0])
    engine = load(model)
    assert specs(engine) == {"inputs": ("float64[300]", None)}
    assert engine.predict({"inputs": x})["predict"].tolist() == model.predict(table).tolist()


def test_a_vectorizer_of_very_many_names_is_refused(load):
    model = make_pipeline(DictVectorizer(), LinearRegression()).fit(
        [{f"x{place}": 1 for place in range(300)}] * 2, [1, 2]
    )
    with pytest.raises(ModelError, match="begins with a DictVectorizer of 300 names, and a request can name 255"):
        load(model)


ROWS = [{"colour": "red", "rooms": 3}, {"colour": "green", "price": 2.5}, {"rooms": 2}, {"price": 1, "colour": "blue"}]


@pytest.mark.parametrize("sparse", [True, False])
@pytest.mark.parametrize("own", [LinearRegression(), xgboost.XGBRegressor(n_estimators=5, min_child_weight=0)])
def test_a_row_may_leave_named_features_out(load, sparse, own):
    model = make_pipeline(DictVectorizer(sparse=sparse), own).fit(ROWS, Y)
    engine = load(model)
    rows = [*ROWS, {"colour": "red", "rooms": 0}, {"colour": "grey", "price": 0, "rooms": 1}, {"rooms": 1}]
    found = engine.predict(engine.signature.instances(rows))
    assert found["predict"].tolist() == model.predict(rows).tolist()
    # nothing is not 0 where what is missing has a branch of its own
    if sparse and isinstance(own, xgboost.XGBRegressor):
        assert model.predict([{"colour": "red", "rooms": 0}]) != model.predict([{"colour": "red"}])


def test_an_empty_string_that_the_vectorizer_knows_is_not_left_out(load):
    model = make_pipeline(DictVectorizer(), LinearRegression()).fit([{"colour": ""}, {"colour": "red"}, {}, {}], Y)
    engine = load(model)
    assert [spec.default for spec in engine.signature.inputs] == [None]
    assert engine.predict({"colour": np.array([b""], object)})["predict"] == model.predict([{"colour": ""}])


def test_a_name_with_the_separator_in_it_is_told_by_model_toml(load):
    rows = [{"a=b": 1, "c=d": "x", "e": "f=g"}, {"a=b": 2, "c=d": "y=", "e": "h"}, {"a=b": 5}, {"e": "h"}]
    model = make_pipeline(DictVectorizer(), LinearRegression()).fit(rows, Y)
    engine = load(model, '[inputs]\n"a=b" = "float64"\n"c=d" = "string"\n')
    assert {spec.name: spec.dtype for spec in engine.signature.inputs} == {
        "a=b": "float64",
        "c=d": "string",
        "e": "string",
    }
    found = engine.predict(engine.signature.instances(rows))
    assert found["predict"].tolist() == model.predict(rows).tolist()


def test_what_only_transforms_gives_that(load):
    scaler = StandardScaler().fit(TABLE[["price"]])
    engine = load(scaler)
    assert [spec.name for spec in engine.signature.outputs] == ["transform"]
    prices = TABLE["price"].to_numpy()
    assert engine.predict({"price": prices})["transform"].tolist() == scaler.transform(TABLE[["price"]]).tolist()
    encoder = OneHotEncoder().fit(TABLE[["colour"]])
    assert sparse.issparse(encoder.transform(TABLE[["colour"]]))
    assert load(encoder).predict({"colour": np.array([b"red"], object)})["transform"].tolist() == [[0, 0, 1]]


def test_what_predicts_and_transforms_predicts(load):
    engine = load(KMeans(2, n_init=1, random_state=7).fit(TABLE[["price"]].to_numpy()))
    assert [str(spec) for spec in engine.signature.outputs] == ["int32"]


def test_bytes_that_are_no_string_are_the_clients_fault(load):
    binary = np.array([b"bright", b"\xff"], object)
    words = make_pipeline(CountVectorizer(), LinearRegression()).fit(TABLE["note"], Y)
    colours = make_pipeline(OneHotEncoder(handle_unknown="ignore"), LinearRegression()).fit(TABLE[["colour"]], Y)
    named = make_pipeline(DictVectorizer(), LinearRegression()).fit(TABLE[["colour"]].to_dict("records"), Y)
    for model, name in ((words, "text"), (colours, "colour"), (named, "colour")):
        with pytest.raises(SignatureMismatch, match=f"input '{name}': found bytes that are not UTF-8"):
            load(model).predict({name: binary})


def test_text_of_another_encoding_comes_as_it_is(load):
    notes = [text.encode("latin-1") for text in ("große Küche", "Küche", "groß", "dunkel")]
    model = make_pipeline(CountVectorizer(encoding="latin-1"), LinearRegression()).fit(notes, Y)
    found = load(model).predict({"text": np.array(notes, object)})
    assert found["predict"].tolist() == model.predict(notes).tolist()
