"""bench.compare, with the one peer whose programs are in our own environment.

usage: python -m tests.bench.with_naive [--broken] ARGUMENTS

--broken  so that it does not start
"""

import sys
from dataclasses import fields
from pathlib import Path

from bench import compare, peer


class Own(peer.Peer):
    folder = Path(sys.prefix)
    installed = True


naive = peer.PEERS["naive"]
values = {field.name: getattr(naive, field.name) for field in fields(naive)}
if sys.argv[1:2] == ["--broken"]:
    values["command"] += " --no-such-option"
    del sys.argv[1]
peer.PEERS["naive"] = Own(**values)

if __name__ == "__main__":
    sys.exit(compare.main())
