"""What other settings could do, as the server would have them."""

from dataclasses import replace

import pytest

from serving.settings import cores
from tuning.candidates import capacities
from tuning.pool import Line


@pytest.mark.parametrize(("replica_threads", "threads"), [(0, [cores(), 1]), (3, [3, 3])])
def test_other_counts_of_mules_share_the_cores_as_the_server_would(evidence, replica_threads, threads):
    asked = replace(evidence, settings=replace(evidence.settings, replica_threads=replica_threads))
    found = capacities(asked, [1, cores()])
    assert [one.pool.setting.replica_threads for one in found] == threads


def test_no_batch_is_tried_that_the_model_cannot_take(evidence):
    line = Line(0.001, 0.00001, 1.0, 32)
    found = {pool.setting.batch_rows for pool in replace(evidence, lines={1: line}).all()}
    assert found == {8, 32}
    found = {pool.setting.batch_rows for pool in replace(evidence, lines={1: replace(line, most_rows=None)}).all()}
    assert found == {8, 32, 128}
