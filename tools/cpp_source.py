"""What the lints share: which files are ours, and a C++ text without comments and literals."""
import re
import subprocess
from pathlib import Path

TOP = Path(__file__).resolve().parent.parent
_NOISE = re.compile(r'//[^\n]*|/\*.*?\*/|R"(\w*)\(.*?\)\1"|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])+\'', re.S)


def tracked(*patterns, top=TOP):
    """Files of the work tree that git knows or would add, so that a new file is linted before its first commit."""
    out = subprocess.run(["git", "-C", str(top), "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", *patterns],
                         check=True, capture_output=True, text=True).stdout
    return [Path(top) / name for name in sorted(set(out.split("\0"))) if name and (Path(top) / name).is_file()]


def blank_noise(text):
    """Replaces comments and literals by as many blanks (an empty string literal stays one token); keeps line numbers.
    A digit separator (1'000) is no literal."""
    def blank(match):
        word = match.group()
        if word[0] == "'" and match.start() > 0 and text[match.start() - 1].isalnum():
            return word
        blanks = re.sub(r"[^\n]", " ", word)
        return blanks if word[0] == "/" else '""' + blanks[2:]
    return _NOISE.sub(blank, text)


def line_of(text, offset):
    return text.count("\n", 0, offset) + 1


def closing(text, start, opening, closer):
    """The offset of the bracket that closes the one at `start`, or the end of the text."""
    depth = 0
    for i in range(start, len(text)):
        depth += (text[i] == opening) - (text[i] == closer)
        if depth == 0:
            return i
    return len(text)
