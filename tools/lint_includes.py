#!/usr/bin/env python3
"""Includes point down only: services > bus > shared; a service never includes another. Inside the bus, the schema knows
nobody, and client and broker do not know each other."""
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from cpp_source import TOP, line_of, tracked

_INCLUDE = re.compile(r'^\s*#\s*include\s+"([^"]+)"', re.M)
_FORBIDDEN = [
    (r"shared/", r"(bus|services|tests)/", "shared includes nothing above it"),
    (r"bus/", r"(services|tests)/", "the bus includes nothing above it"),
    (r"bus/schema/", r"bus/(?!schema/)", "the schema is the vocabulary: it includes no other part of the bus"),
    (r"bus/client/", r"bus/broker/", "the client does not know the broker"),
    (r"bus/broker/", r"bus/client/", "the broker does not know the client"),
    (r"services/", r"tests/", "a program includes no test"),
]


def check(name, text):
    """[(line, message)] for the file `name` (from the tree's top)."""
    found = []
    for match in _INCLUDE.finditer(text):
        target = match.group(1)
        line = line_of(text, match.start(1))
        for source, forbidden, why in _FORBIDDEN:
            if re.match(source, name) and re.match(forbidden, target):
                found.append((line, f'includes "{target}": {why}'))
        owner, other = re.match(r"services/([^/]+)/", name), re.match(r"services/([^/]+)/", target)
        if owner and other and owner.group(1) != other.group(1):
            found.append((line, f'includes "{target}": a service never includes another'))
        if target.endswith(".cpp"):
            found.append((line, f'includes "{target}": link the library instead of recompiling its sources'))
    return found


def main():
    bad = 0
    for path in tracked("*.cpp", "*.hpp", "*.h", "*.c"):
        name = path.relative_to(TOP).as_posix()
        for line, message in check(name, path.read_text()):
            print(f"{name}:{line}: {message}")
            bad += 1
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
