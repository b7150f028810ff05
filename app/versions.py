"""The versions of the model, as those who ask for them by protocol are told.

Runs in:  worker.
"""

from dataclasses import dataclass

from serving.plan import PlanFile
from serving.store import Board


@dataclass(frozen=True)
class Version:
    """One version, and whether it serves."""

    number: int
    ready: bool
    # why it does not serve, "" where it is only being loaded
    reason: str
    labels: tuple[str, ...] = ()
    refused: bool = False


def versions(board: Board, plan: PlanFile) -> list[Version]:
    """All that serve, are to serve, or are refused, in the order of their numbers."""
    found = plan.read()
    ready = {number for name, number in board.versions().items() if name == str(number)}
    reasons = {status.version: status.reason for status in board.statuses() if not status.ready}
    planned = {release.version: release for release in found.releases}
    known = {*ready, *planned}
    served = [
        Version(
            number,
            number in ready,
            "" if number in ready else reasons.get(number, ""),
            planned[number].labels if number in planned else (),
        )
        for number in known
    ]
    refused = [Version(number, False, why, (), True) for number, why in found.refused.items() if number not in known]
    return sorted(served + refused, key=lambda version: version.number)
