#!/usr/bin/env python3
"""Finds coroutines that g++ 12 compiles wrongly. co_await may stand in three shapes only:

    auto x = co_await f(named);      co_await f(named);      co_return co_await f(named);

with no braces (but for a plain duration), lambda or ?: inside the awaited expression, and never in a condition or a sub-expression. A lambda that
is a coroutine must not capture: its closure dies before the coroutine does. See docs/decisions/0003-tasks-without-symmetric-transfer.md."""
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from cpp_source import blank_noise, closing, line_of, tracked

_SHAPE = re.compile(r"^(?:case [^:]+(?:::[^:]+)*: |default: )?(?:(?:const )?[\w:]+ \w+ = |co_return )?co_await (?P<awaited>.+)$")
_DURATION = re.compile(r"\b(?:milli)?seconds\{[\w']*\}")
_LAMBDA = re.compile(r"(?<![\w\])\"])\[(?!\[)")


def check_awaits(text):
    for match in re.finditer(r"\bco_await\b", text):
        if text[:match.start()].rstrip().endswith("operator"):
            continue
        start = max(text.rfind(mark, 0, match.start()) for mark in ";{}") + 1
        end = text.find(";", match.start())
        statement = " ".join(text[start:end].split())
        shape = _SHAPE.match(statement)
        awaited = shape.group("awaited") if shape else ""
        if not shape:
            yield match.start(), "co_await outside its three shapes"
        elif re.search(r"\bco_await\b", awaited):
            yield match.start(), "two co_await in one statement"
        elif re.search(r"[{}?]", _DURATION.sub("", awaited)):
            yield match.start(), "braces or ?: inside the awaited expression: name the value first"
        elif _LAMBDA.search(awaited):
            yield match.start(), "a lambda inside the awaited expression: name it first"


def check_lambdas(text):
    for match in _LAMBDA.finditer(text):
        end = closing(text, match.start(), "[", "]")
        if not text[match.start() + 1:end].strip():
            continue
        body = re.match(r"\s*(?:\((?:[^()]|\([^()]*\))*\))?\s*(?:mutable\s*)?(?:->[^{;]*)?\{", text[end + 1:])
        if not body:
            continue
        opening = end + body.end()
        inner = text[opening:closing(text, opening, "{", "}")]
        if re.search(r"\bco_(await|return|yield)\b", inner):
            yield match.start(), "a lambda that is a coroutine captures: use a function that takes values"


def check(text):
    """[(line, message)] for one C++ text."""
    text = blank_noise(text)
    found = list(check_awaits(text)) + list(check_lambdas(text))
    return sorted({(line_of(text, offset), message) for offset, message in found})


def main(paths):
    bad = 0
    for path in [Path(p) for p in paths] or tracked("*.cpp", "*.hpp"):
        for line, message in check(path.read_text()):
            print(f"{path}:{line}: {message}")
            bad += 1
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
