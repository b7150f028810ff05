"""The layers that the README draws, read from the imports."""

import ast
import subprocess
import sys
from itertools import permutations
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# from the bottom up: a file imports only from rows above its own, and in app/, mules/ and sources/ also from its folder
LAYERS = [
    {"serving.errors", "serving.logs", "serving.memory"},
    {"serving.task", "serving.plan", "serving.failures"},
    {"serving.signature", "serving.settings", "serving.ledger", "serving.counts", "serving.sentry"},
    {"serving.wire", "serving.batching", "serving.transport", "serving.model", "serving.spans"},
    {"serving.uwsgi_transport", "serving.memory_transport", "serving.store", "serving.quarantine"},
    {"app", "mules", "sources"},
    {"nginx", "reload", "catalog", "children", "refusals", "trial", "cases", "placeholders", "status"},
    {"wsgi", "instance", "conform"},
    {"doctor", "load"},
    {"supervisor", "tuning"},
    {"muleteer"},
]
HTTP = {"flask", "werkzeug"}
FRAMEWORKS = {"tensorflow", "keras", "torch", "jax", "sklearn", "onnxruntime", "transformers", "xgboost", "lightgbm"}
FRAMEWORKS |= {"ai_edge_litert", "joblib", "mlflow", "pandas", "scipy", "skops", "threadpoolctl"}


def package(module):
    return module.partition(".")[0]


def find_modules():
    files = [
        *ROOT.glob("*.py"),
        *(
            file
            for name in ("app", "load", "mules", "serving", "sources", "tuning")
            for file in (ROOT / name).rglob("*.py")
        ),
    ]
    names = {file: ".".join(file.relative_to(ROOT).with_suffix("").parts) for file in files}
    return {name.removesuffix(".__init__"): file for file, name in names.items()}


MODULES = find_modules()


def imports(module):
    """All that a file imports, wherever in it; `from a import b` is a.b where that is a module of ours, else a."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} has a relative import"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else node.module for name in names}
    return found


def layer(module):
    name = module if package(module) == "serving" else package(module)
    return next((row for row, names in enumerate(LAYERS) if name in names), None)


@pytest.mark.parametrize("module", sorted(MODULES.keys() - {"serving"}))
def test_a_file_imports_only_from_lower_layers(module):
    own = layer(module)
    assert own is not None, f"{module} has no place in LAYERS"
    siblings = {"app", "load", "mules", "sources", "tuning"} & {package(module)}
    for other in imports(module):
        if other in MODULES and package(other) not in siblings:
            assert layer(other) is not None and layer(other) < own, f"{module} imports {other}"


@pytest.mark.parametrize(
    ("side", "other"),
    [
        *permutations(("app", "mules", "sources"), 2),
        *(("serving", other) for other in ("app", "mules", "sources")),
    ],
)
def test_a_package_does_not_know_the_other(side, other):
    members = [module for module in MODULES if package(module) == side]
    assert members
    assert [module for module in members if other in map(package, imports(module))] == []


@pytest.mark.parametrize(
    ("libraries", "home"),
    [
        (HTTP, "app"),
        (FRAMEWORKS, "mules.engines"),
        ({"uwsgi"}, "serving.uwsgi_transport"),
        ({"requests", "urllib3"}, "sources"),
        ({"jsonschema"}, "cases"),
    ],
)
def test_a_library_is_imported_in_one_place_alone(libraries, home):
    # conform is a client of any server, and is no part of ours
    users = [module for module in MODULES if libraries & set(map(package, imports(module))) and module != "conform"]
    assert users
    assert [module for module in users if module != home and not module.startswith(home + ".")] == []


def test_the_supervisor_knows_of_settings_models_and_their_sources_alone():
    own = {"catalog", "children", "instance", "nginx", "refusals", "reload"}
    assert imports("supervisor") | imports("instance") >= own
    ours = set().union(*(imports(module) & MODULES.keys() for module in own | {"supervisor"})) - own
    assert ours == {
        *("serving.errors", "serving.logs", "serving.memory", "serving.model", "serving.plan", "serving.settings"),
        *("sources", "sources.store"),
    }


def test_the_measuring_instruments_know_the_server_from_outside_alone():
    # but for the one that a server loads, to count at times alone, and the one that times counting by itself
    within = {ROOT / "bench" / "switched.py", ROOT / "bench" / "counting.py"}
    files = {*(ROOT / "bench").rglob("*.py"), *(ROOT / "load").rglob("*.py")} - within
    for file in files:
        nodes = [
            node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Import | ast.ImportFrom)
        ]
        names = {getattr(node, "module", None) or alias.name for node in nodes for alias in node.names}
        assert not set(map(package, names)) & {"app", "mules", "serving", "supervisor", "tuning", "wsgi"}, file


def test_what_finds_the_counts_knows_nothing_of_http_within():
    members = [module for module in MODULES if package(module) == "tuning"]
    assert members and [module for module in members if "app" in map(package, imports(module))] == []


def test_no_framework_is_loaded_before_a_model_is():
    program = f"import sys, app, serving.store, mules.mule; print(sorted({FRAMEWORKS} & sys.modules.keys()))"
    loaded = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert loaded.stdout == "[]\n"
