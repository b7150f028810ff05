"""Small ini files: the shipped one with some of its lines replaced."""

import re
from pathlib import Path

SHIPPED = Path(__file__).parents[2] / "uwsgi.ini"


def shipped(**values):
    """The text of uwsgi.ini with these values, by the names of Settings, or of an option with _ for -."""
    text = SHIPPED.read_text()
    for name, value in values.items():
        if name.startswith("cache_"):
            pattern, line = rf"(?<=[,=]){name.removeprefix('cache_')}=\d+", f"{name.removeprefix('cache_')}={value}"
        else:
            pattern, line = rf"^({name}|{name.replace('_', '-')}) = .*$", rf"\g<1> = {value}"
        text, count = re.subn(pattern, line, text, count=1, flags=re.MULTILINE)
        assert count == 1, f"uwsgi.ini has no {name}"
    return text
