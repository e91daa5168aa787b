#!/usr/bin/env python3
"""Small rules that a reader would otherwise have to keep: headers are guarded, nothing is left unfinished, folders
that are a program say what they own, no header drags in the heavy libraries."""
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from cpp_source import TOP, line_of, tracked

_UNFINISHED = re.compile(r"\b(TO" r"DO|FIX" r"ME|X" r"XX)\b")
_TRAILING = re.compile(r"[ \t]+$", re.M)


def check(name, text):
    """[(line, message)] for the file `name`."""
    found = [(line_of(text, m.start()), "an unfinished mark") for m in _UNFINISHED.finditer(text)]
    found += [(line_of(text, m.start()), "blanks at the end of the line") for m in _TRAILING.finditer(text)]
    if name.endswith(".hpp") and "#pragma once" not in text:
        found.append((1, "a header without #pragma once"))
    return sorted(found)


def main():
    bad = 0
    for path in tracked("*.cpp", "*.hpp", "*.py", "*.build", "*.sh"):
        name = path.relative_to(TOP).as_posix()
        for line, message in check(name, path.read_text()):
            print(f"{name}:{line}: {message}")
            bad += 1
    for folder in [TOP / "bus", *sorted((TOP / "services").iterdir())]:
        if folder.is_dir() and any(folder.rglob("*.cpp")) and not (folder / "README.md").is_file():
            print(f"{folder.relative_to(TOP)}: no README.md that says what it owns, what goes in and out, what stops when it dies")
            bad += 1
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
