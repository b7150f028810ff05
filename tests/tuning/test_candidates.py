"""What other settings could do, as the server would have them."""

from dataclasses import replace

import pytest

from serving.settings import cores
from tuning.candidates import capacities


@pytest.mark.parametrize(("replica_threads", "threads"), [(0, [cores(), 1]), (3, [3, 3])])
def test_other_counts_of_mules_share_the_cores_as_the_server_would(evidence, replica_threads, threads):
    asked = replace(evidence, settings=replace(evidence.settings, replica_threads=replica_threads))
    found = capacities(asked, [1, cores()])
    assert [one.pool.setting.replica_threads for one in found] == threads
