"""What a request costs in system calls, locks and allocations does not grow unseen: cost.toml has the numbers."""

from bench import footprint


def test_a_request_costs_no_more_than_it_did():
    system, kept = footprint.read()
    found = footprint.measure()
    for role in ("worker", "mule"):
        assert found[role].keys() & footprint.LOCK_CALLS and found[role][footprint.ALLOCATIONS], "nothing was counted"
    if system != footprint.system():
        # other libraries make other calls; uWSGI's locks are the same everywhere
        found = {
            role: {name: counts[name] for name in footprint.LOCK_CALLS & counts.keys()}
            for role, counts in found.items()
        }
    grown = footprint.grown(kept, found)
    assert not grown, f"a request costs more than it did ({footprint.KEPT.name} tells what to do): {'; '.join(grown)}"
