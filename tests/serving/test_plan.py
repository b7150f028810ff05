"""Plans: which versions a policy serves, with how many replicas, and what stays of the plan before."""

import itertools
import json
from functools import partial
from pathlib import Path

import pytest

from serving.errors import ModelError
from serving.plan import POLICY, Placed, Plan, PlanFile, make_plan, named

ROOT = Path("models")


def make(*versions, policy="latest", labels=None, mules=4, before=Plan(), anew=False, numbers=None, **identities):  # noqa: B008
    """The plan of these versions; their identities by "v" and the version."""
    found = {one: identities.get(f"v{one}", "same") for one in versions}

    def place(version):
        return Placed(ROOT / str(version), ROOT, found[version])

    return make_plan(found, policy, labels or {}, mules, before, place, numbers or itertools.count(1), anew)


def about(made):
    return [(release.number, release.version, release.replicas, release.default) for release in made.releases]


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ("latest", [10]),
        ("latest 1", [10]),
        ("latest 2", [10, 9]),
        ("latest 9", [10, 2, 9]),
        ("all", [10, 2, 9]),
        ("9", [9]),
        ("2,9", [9, 2]),
        ("9, 2", [9, 2]),
    ],
)
def test_a_policy_chooses_by_number_and_the_highest_is_the_default(policy, expected):
    assert POLICY.fullmatch(policy)
    made = make(2, 9, 10, policy=policy)
    assert [release.version for release in made.releases] == expected
    assert [release.default for release in made.releases] == [True] + [False] * (len(expected) - 1)
    assert made.default.path == ROOT / str(expected[0])


@pytest.mark.parametrize(
    ("policy", "versions"), [("latest", set()), ("latest 2", set()), ("all", set()), ("9", {9}), ("2, 9", {2, 9})]
)
def test_a_policy_names_versions_where_it_goes_by_their_numbers(policy, versions):
    assert named(policy) == versions


@pytest.mark.parametrize("policy", ["", "latest0", "latest 0", "latest -1", "1;2", "newest", "1,", "-1", "²"])
def test_what_is_no_policy_is_none(policy):
    assert not POLICY.fullmatch(policy)


@pytest.mark.parametrize(("mules", "shares"), [(3, [1, 1, 1]), (4, [2, 1, 1]), (8, [4, 2, 2])])
def test_the_versions_share_the_mules_and_the_rest_is_for_the_default(mules, shares):
    made = make(1, 2, 3, policy="all", labels={"stable": 2}, mules=mules)
    assert [(release.version, release.replicas) for release in made.releases] == list(
        zip([2, 1, 3], shares, strict=True)
    )


def test_labels_are_for_versions_and_stable_is_the_default():
    made = make(1, 2, policy="all", labels={"stable": 1, "canary": 2, "old": 1})
    assert [(release.version, release.labels, release.default) for release in made.releases] == [
        (1, ("old", "stable"), True),
        (2, ("canary",), False),
    ]
    assert made.versions == {"stable": 1, "canary": 2, "old": 1, "1": 1, "2": 2}
    assert str(made) == "version 1 (old, stable) and version 2 (canary)"


@pytest.mark.parametrize(
    ("versions", "options", "told"),
    [
        ([1, 2], {"policy": "3"}, "version_policy = 3: there is no version 3; there are 1, 2"),
        ([1, 2], {"policy": "all", "mules": 1}, "and mules = 1; mules = 2 would do"),
        ([1, 2], {"labels": {"a": 1}}, "version_policy = latest serves 2; version_policy = 1, 2 would do"),
        ([], {}, "no version of the model can be served"),
    ],
)
def test_what_does_not_fit_is_told_with_the_fix(versions, options, told):
    with pytest.raises(ModelError) as caught:
        make(*versions, **options)
    assert told in str(caught.value)


def test_a_release_stays_until_its_version_changes_or_all_is_loaded_anew():
    made = partial(make, numbers=itertools.count(1))
    first = made(1, 2, policy="all")
    assert about(first) == [(1, 2, 2, True), (2, 1, 2, False)]
    assert made(1, 2, policy="all", before=first) == first
    # other labels and shares are no other release
    moved = made(1, 2, policy="all", labels={"stable": 1}, mules=5, before=first)
    assert about(moved) == [(2, 1, 3, True), (1, 2, 2, False)]
    changed = made(1, 2, policy="all", before=first, v1="changed")
    assert about(changed) == [(1, 2, 2, True), (3, 1, 2, False)]
    # no number comes twice, also where a plan was given up
    third = made(1, 2, 3, before=first)
    assert about(third) == [(4, 3, 4, True)]
    assert about(made(1, 2, 4, before=first)) == [(5, 4, 4, True)]
    assert about(made(1, 2, policy="all", before=changed, anew=True)) == [(6, 2, 2, True), (7, 1, 2, False)]
    assert made(1, 2, 3, before=first).serves_as(third) and not third.serves_as(first)


def test_those_of_the_plan_before_answer_until_what_follows_them_is_loaded():
    made = partial(make, numbers=itertools.count(1), policy="latest 2")
    before = made(1, 2, labels={"stable": 2, "canary": 1})
    plan = made(1, 2, 3, labels={"stable": 3, "canary": 2}, before=before)
    between = plan.beside(before)
    assert [(one.version, one.labels, one.default) for one in between.releases] == [
        (3, ("stable",), True),
        (2, ("canary", "stable"), True),
    ]
    assert between.default == plan.default and about(between)[0] == about(plan)[0]
    # what is there is asked for until then
    assert between.versions["stable"] == 2
    assert plan.beside(Plan()) == plan.beside(plan) == plan
    # one that is loaded anew is another
    anew = made(1, 2, labels={"stable": 1}, before=before, anew=True)
    assert anew.beside(before) == anew


def test_a_version_that_changed_before_it_was_placed_is_known_by_what_it_is_now():
    found = Placed(ROOT / "1", ROOT, "newer")
    made = make_plan({1: "older"}, "latest", {}, 1, Plan(), lambda version: found, itertools.count(1))
    assert made.default.identity == "newer"


def test_who_lacks_most_is_loaded_next_and_who_is_too_many_goes():
    made = make(1, 2, policy="all", mules=5)
    assert [made.lacking(numbers).number for numbers in ([], [1], [1, 2], [1, 2, 1, 1])] == [1, 2, 1, 2]
    assert made.surplus([1, 2, 1, 1, 2]) == [False] * 5
    assert made.surplus([1, 2, 2, 2, 7, 1]) == [False, False, False, True, True, False]
    assert Plan().surplus([1, 2]) == [False, False]


def test_a_plan_is_read_as_it_was_written(tmp_path):
    file, reader = PlanFile(tmp_path / "plan.json"), PlanFile(tmp_path / "plan.json")
    assert reader.read() == Plan()
    for made in (make(1), make(1, 2, policy="all", labels={"stable": 1}), Plan((), {3: "it is broken"})):
        file.write(made)
        assert reader.read() == made and file.read() == made
    # what cannot be read changes nothing
    (tmp_path / "plan.json").unlink()
    assert reader.read() == made
    (tmp_path / "plan.json").write_text(json.dumps({"releases": [{"number": 1}], "refused": {}}))
    assert reader.read() == made
