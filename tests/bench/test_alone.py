"""What a model takes by itself."""

import pytest

from bench import alone
from bench.workload import MODELS


def test_a_call_takes_what_the_model_takes():
    slow, quick = alone.measure(MODELS / "sleep"), alone.measure(MODELS / "noop")
    assert slow >= 5 and 0 < quick < slow


def test_a_folder_without_a_model_is_told(tmp_path):
    with pytest.raises(ValueError, match=r"by itself: (?s:.*)sample\.json"):
        alone.measure(tmp_path)
