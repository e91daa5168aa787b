"""The layers of tests/run. Each yields counts; the sum is the last line that is printed."""
import concurrent.futures
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TOP = Path(__file__).resolve().parent.parent
BUILD = Path(os.environ.get("DSTACK_BUILD", TOP / "build"))
ASAN_BUILD = TOP / "build-asan"
FILE_DEADLINE = 900  # seconds for one file of integration or e2e tests; a hang is a failure, not a wait


class Counts:
    def __init__(self):
        self.passed = self.failed = self.skipped = 0

    def add(self, passed=0, failed=0, skipped=0):
        self.passed += passed
        self.failed += failed
        self.skipped += skipped

    def __str__(self):
        return f"{self.passed} passed, {self.failed} failed" + (f", {self.skipped} skipped" if self.skipped else "")


def run(command, deadline=None, env=None):
    """(exit code, output). A command that is late is ended together with what it started."""
    process = subprocess.Popen(command, cwd=TOP, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
                               env={**os.environ, **(env or {})}, start_new_session=True)
    try:
        output, _ = process.communicate(timeout=deadline)
        return process.returncode, output
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        return 124, output + f"\nended after {deadline} s without a result\n"


def tail(text, lines=60):
    return "\n".join("    " + line for line in text.rstrip().splitlines()[-lines:])


def report(name, ok, output="", note=""):
    print(f"  {'ok  ' if ok else 'FAIL'} {name}{note}", flush=True)
    if not ok:
        print(tail(output), flush=True)


def build(counts):
    code, output = run(["deploy/build", "all"])
    report("build", code == 0, output)
    counts.add(passed=code == 0, failed=code != 0)
    return code == 0


def lint(counts):
    checks = [("coroutines", ["python3", "tools/lint_coroutines.py"]), ("includes", ["python3", "tools/lint_includes.py"]),
              ("text", ["python3", "tools/lint_text.py"])]
    checks += [(f"{path.stem} (of the lints)", ["python3", str(path)]) for path in sorted((TOP / "tests/unit/tools").glob("*_test.py"))]
    for name, command in checks:
        code, output = run(command, 120)
        report(name, code == 0, output)
        counts.add(passed=code == 0, failed=code != 0)
    generated_docs(counts)


def generated_docs(counts):
    """docs/reference/ is written by a program from the schema: what is in the tree must be what it writes."""
    writer = BUILD / "bus/schema/dstack-bus-docs"
    if not writer.exists():
        report("generated reference pages", False, f"{writer} was not built")
        counts.add(failed=1)
        return
    with tempfile.TemporaryDirectory() as fresh:
        code, output = run([str(writer), fresh], 60)
        for path in sorted(Path(fresh).iterdir()) if code == 0 else []:
            kept = TOP / "docs/reference" / path.name
            if not kept.exists() or kept.read_bytes() != path.read_bytes():
                difference = run(["diff", "-u", str(kept), str(path)])[1] if kept.exists() else "is not in the tree\n"
                output += f"docs/reference/{path.name}: {difference}"
                code = 1
    report("generated reference pages", code == 0, output + f"\nwrite them again: {os.path.relpath(writer, TOP)} docs/reference")
    counts.add(passed=code == 0, failed=code != 0)


def catch_cases(output):
    """(passed, failed) test cases of one Catch2 program, from its summary."""
    done = re.search(r"All tests passed \(\d+ assertions? in (\d+) test cases?\)", output)
    if done:
        return int(done.group(1)), 0
    mixed = re.search(r"test cases:(.*)", output)
    if mixed:
        number = {word: int(n) for n, word in re.findall(r"(\d+) (passed|failed)", mixed.group(1))}
        return number.get("passed", 0), max(1, number.get("failed", 0))
    return None


def meson_tests(build_dir, counts, env=None):
    log = build_dir / "meson-logs/testlog.json"
    log.unlink(missing_ok=True)
    code, output = run(["meson", "test", "-C", str(build_dir), "--no-rebuild", "--suite", "unit", "--print-errorlogs"], 900, env)
    if not log.exists():
        report("unit", False, output)
        counts.add(failed=1)
        return
    for line in log.read_text().splitlines():
        entry = json.loads(line)
        ok = entry["result"] in ("OK", "SKIP")
        text = entry.get("stdout", "") + entry.get("stderr", "")
        passed, failed = catch_cases(entry.get("stdout", "")) or (int(ok), 0)
        if not ok and failed == 0:
            failed = 1  # ended by a signal or a sanitizer, after its summary or without one
        name = entry["name"].split(" / ")[-1]
        report(name, ok, text, f" ({passed} cases)" if ok else f" ({entry['result']})")
        counts.add(passed=passed, failed=failed)


def unit(counts):
    meson_tests(BUILD, counts)


def sanitizers(counts):
    """The unit tests again under AddressSanitizer and UndefinedBehaviorSanitizer."""
    if not (ASAN_BUILD / "build.ninja").exists():
        env = {} if "CXX" in os.environ or run(["sh", "-c", "command -v ccache"])[0] else {"CC": "ccache gcc", "CXX": "ccache g++"}
        code, output = run(["meson", "setup", str(ASAN_BUILD), str(TOP), "-Db_sanitize=address,undefined", "-Doptimization=0",
                            "-Ddebug=false", "-Dcpp_args=-g1", "-Db_lundef=false"], 300, env)
        if code != 0:
            report("configure", False, output)
            counts.add(failed=1)
            return
    code, output = run(["meson", "introspect", "--tests", str(ASAN_BUILD)], 60)
    programs = sorted({os.path.relpath(test["cmd"][0], ASAN_BUILD) for test in json.loads(output)
                       if any(suite.endswith("unit") for suite in test["suite"])})
    code, output = run(["ninja", "-C", str(ASAN_BUILD), *programs], None, {"CCACHE_BASEDIR": str(TOP), "CCACHE_NOHASHDIR": "1"})
    if code != 0:
        report("build", False, output)
        counts.add(failed=1)
        return
    meson_tests(ASAN_BUILD, counts, {"ASAN_OPTIONS": "detect_stack_use_after_return=1:strict_string_checks=1",
                                     "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1"})


def unittest_counts(output):
    """(passed, failed, skipped) of one `python3 -m unittest` run, or None when it did not come to its end."""
    ran = re.search(r"^Ran (\d+) tests? in", output, re.M)
    verdict = re.search(r"^(OK|FAILED|NO TESTS RAN)(?: \((.*)\))?\s*$", output, re.M)
    if not ran or not verdict:
        return None
    number = {word: int(n) for word, n in re.findall(r"(\w+)=(\d+)", verdict.group(2) or "")}
    failed = number.get("failures", 0) + number.get("errors", 0) + number.get("successes", 0)
    skipped = number.get("skipped", 0)
    return max(0, int(ran.group(1)) - failed - skipped), failed, skipped


def python_layer(folder, workers, counts):
    files = sorted({*folder.glob("test_*.py"), *folder.glob("*_test.py")})
    env = {"PYTHONPATH": f"{TOP / 'tests/integration'}:{folder}", "DSTACK_BUILD": str(BUILD), "PYTHONDONTWRITEBYTECODE": "1"}

    def one(path):
        started = time.monotonic()
        code, output = run(["python3", "-m", "unittest", "-v", path.stem], FILE_DEADLINE, {**env, "PYTHONPATH": f"{env['PYTHONPATH']}:{path.parent}"})
        return path, code, output, time.monotonic() - started

    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        for path, code, output, seconds in pool.map(one, files):
            passed, failed, skipped = unittest_counts(output) or (0, 1, 0)
            if code != 0 and failed == 0:
                failed = 1
            report(path.stem, failed == 0, output, f" ({passed} passed, {seconds:.0f} s)" if failed == 0 else f" ({failed} failed)")
            for note in re.findall(r"(?:^|\.\.\. )note: (.*)$", output, re.M):
                print(f"       {note}", flush=True)
            for reason in re.findall(r"\.\.\. skipped (.*)$", output, re.M):
                print(f"       skipped: {reason}", flush=True)
            counts.add(passed, failed, skipped)


def integration(counts):
    python_layer(TOP / "tests/integration", 2, counts)


def e2e(counts):
    python_layer(TOP / "tests/e2e", 1, counts)


def chaos(counts):
    python_layer(TOP / "tests/chaos", 1, counts)


def system(counts):
    """The units as files, and a container with systemd as PID 1. What the machine cannot is skipped, with the reason."""
    python_layer(TOP / "tests/system", 1, counts)


LAYERS = {"lint": lint, "unit": unit, "sanitizers": sanitizers, "integration": integration, "e2e": e2e, "chaos": chaos, "system": system}


def main(names):
    unknown = [name for name in names if name not in LAYERS]
    if unknown:
        print(f"tests/run: no layer '{unknown[0]}': there are {' '.join(LAYERS)}", file=sys.stderr)
        return 2
    total = Counts()
    print("== build", flush=True)
    if build(total):
        for name in names or LAYERS:
            print(f"== {name}", flush=True)
            started = time.monotonic()
            counts = Counts()
            try:
                LAYERS[name](counts)
            except Exception as error:  # a layer that cannot run is a failure of that layer, and the next one still runs
                report(name, False, repr(error))
                counts.add(failed=1)
            print(f"  {counts} in {time.monotonic() - started:.0f} s", flush=True)
            total.add(counts.passed, counts.failed, counts.skipped)
    print(f"\n{total}", flush=True)
    return 1 if total.failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
