"""What a request costs in system calls, locks and allocations does not grow unseen: cost.toml has the numbers."""

import pytest

from bench import footprint, syscalls


@pytest.mark.skipif(not syscalls.allowed(), reason=syscalls.REFUSED)
def test_a_request_costs_no_more_than_it_did():
    system, kept = footprint.read()
    if system != footprint.system():
        pytest.skip(f"cost.toml is of {system}, and this is {footprint.system()}: make profile ARGS=--keep")
    grown = footprint.grown(kept, footprint.measure())
    assert not grown, f"a request costs more than it did ({footprint.KEPT.name} tells what to do): {'; '.join(grown)}"
