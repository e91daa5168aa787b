"""Cursor, replay, live hand-over and retention against a reference model: random publishes, kills, slow reads, and retention small
enough to remove events under the readers. The model knows every event that ever was in the journal and which were removed; each
item that a reader gets must be the next one of the model, and a gap must be exactly what was removed.

The operations come from a seed that is printed; DSTACK_PROPERTY_SEED=N makes them again, DSTACK_PROPERTY_STEPS=N makes more of them.
"""
import os
import queue
import random
import shutil
import sqlite3
import subprocess
import sys
import threading
import unittest

from bus_test import PROBE
from mesh import Prefix, wait_for

SEED = int(os.environ.get("DSTACK_PROPERTY_SEED") or int.from_bytes(os.urandom(4), "big"))
STEPS = int(os.environ.get("DSTACK_PROPERTY_STEPS", "50"))
SERVICES = {"allocator": "lease.granted", "deployer": "deploy.step", "vmm-local": "vm.ready"}
SEVERITIES = ["debug", "info", "warning", "error"]
COUNT_SLACK = 1000  # the journal removes in steps: up to this many more than max_events stay


class Journal:
    """The model: what was ever in the journal, from looking at its file often enough, and where it begins now."""

    def __init__(self, path):
        self.path = path
        self.events = {}  # sequence -> (id, type, source, subject, severity rank)
        self.first = 1
        self.last = 0
        self.used_bytes = 0

    def open(self, mode="ro"):
        return sqlite3.connect(f"file:{self.path}?mode={mode}", uri=True, timeout=10)

    def look(self):
        db = self.open()
        try:
            db.execute("BEGIN")
            rows = db.execute("SELECT sequence, id, type, source, subject, severity FROM events WHERE sequence > ? ORDER BY sequence", (self.last,)).fetchall()
            (first,) = db.execute("SELECT coalesce((SELECT min(sequence) FROM events), 1 + (SELECT coalesce(max(last), 0) FROM gaps))").fetchone()
            (self.used_bytes,) = db.execute("SELECT (page_count - freelist_count) * page_size FROM pragma_page_count, pragma_freelist_count, pragma_page_size").fetchone()
        finally:
            db.close()
        for sequence, *event in rows:
            if sequence != self.last + 1:
                raise AssertionError(f"the model missed events between {self.last} and {sequence}, or the journal has a hole")
            self.events[sequence] = tuple(event)
            self.last = sequence
        if first < self.first:
            raise AssertionError(f"what was removed is there again: begins at {first}, began at {self.first}")
        self.first = first
        return self


class Reader:
    """One subscriber that reads as far as it is told, and what it must see."""

    def __init__(self, run, name, type="", subject="", source="", severity=""):
        self.run, self.name = run, name
        self.filter = [type, subject, source, severity]
        self.position = 0       # everything up to here was given, skipped by the filter, or in a gap
        self.event = self.epoch = 0  # of the last event that it got: its own cursor
        self.begun_at = 0       # where the journal began before its life did
        self.items = self.gaps = 0
        self.process = None

    def matches(self, sequence):
        name, kind, source, subject, severity = self.run.journal.events[sequence]
        least = SEVERITIES.index(self.filter[3] or "debug")
        return (kind.startswith(self.filter[0]) and self.filter[1] in ("", subject) and self.filter[2] in ("", source) and severity >= least)

    def start(self):
        self.run.journal.look()
        self.begun_at = self.run.journal.first
        self.fresh = True
        self.position = self.event
        cursor = f"{self.epoch}:{self.event}" if self.epoch else "0"
        self.process = subprocess.Popen([str(self.run.probes / "operator"), str(self.run.prefix.bus), "reader", cursor, *self.filter],
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
        self.lines = queue.Queue()
        self.thread = threading.Thread(target=self.pump, args=(self.process, self.lines), daemon=True)
        self.thread.start()
        self.asked = []
        self.expect("ready")

    @staticmethod
    def pump(process, lines):
        for line in process.stdout:
            lines.put(line.rstrip("\n"))
        lines.put(None)

    def line(self):
        try:
            line = self.lines.get(timeout=30)
        except queue.Empty:
            raise AssertionError(f"{self.name}: nothing came for 30 s; at {self.position}, asked for {self.asked}, journal {self.run.journal.first}..{self.run.journal.last}") from None
        if line is None:
            raise AssertionError(f"{self.name} ended by itself")
        return line

    def expect(self, word):
        line = self.line()
        if line != word:
            raise AssertionError(f"{self.name}: '{line}' instead of '{word}'")

    def end(self):
        self.process.kill()
        self.process.wait(10)
        self.thread.join(10)
        self.process.stdin.close()
        self.process.stdout.close()

    def kill(self):
        """What it had got by then it has got."""
        self.end()
        self.run.journal.look()
        while (line := self.lines.get()) is not None:
            if line != "done":
                self.take(line)
        self.asked = []

    def ask(self, until):
        """Begins to read up to a sequence."""
        self.process.stdin.write(f"{until}\n")
        self.asked.append(until)

    def answer(self):
        """Takes all that was asked for."""
        taken = []
        while self.asked:
            line = self.line()
            if line == "done":
                self.asked.pop(0)
            else:
                taken.append(line)
        self.run.journal.look()
        for line in taken:
            self.take(line)

    def targets(self):
        """Sequences that it can be told to read up to: an event for it that is there."""
        journal = self.run.journal
        return [sequence for sequence in range(max(self.position + 1, journal.first), journal.last + 1) if self.matches(sequence)]

    def no_match_between(self, after, before, line):
        skipped = [sequence for sequence in range(after + 1, before) if self.matches(sequence)]
        if skipped:
            raise AssertionError(f"{self.name}: lost {skipped[:5]} ({len(skipped)}) before '{line}'; position {self.position}, journal from {self.run.journal.first}")

    def take(self, line):
        journal = self.run.journal
        fresh, self.fresh = self.fresh, False
        self.items += 1
        word, _, rest = line.partition(" ")
        if fresh and self.event + 1 < self.begun_at and word != "gap":
            raise AssertionError(f"{self.name}: begins behind {self.event} with '{line}', but the journal began at {self.begun_at}: no gap")
        if word == "event":
            cursor, name = rest.split()
            epoch, sequence = (int(part) for part in cursor.split(":"))
            if sequence <= self.position:
                raise AssertionError(f"{self.name}: '{line}' again or out of order, after {self.position}")
            if journal.events[sequence][0] != name or not self.matches(sequence):
                raise AssertionError(f"{self.name}: '{line}' is not for it: {journal.events[sequence]}")
            self.no_match_between(self.position, sequence, line)
            self.position = self.event = sequence
            self.epoch = epoch
        elif word == "gap":
            first, last, reason = rest.split(" ", 2)
            first, last = int(first), int(last)
            self.gaps += 1
            self.no_match_between(self.position, first, line)
            whole = first > self.position and (any(self.filter) or first == self.position + 1)
            if not whole or reason != "retention" or not first <= last:
                raise AssertionError(f"{self.name}: '{line}' at position {self.position}")
            if not max(self.begun_at, first) <= last + 1 <= journal.first:
                raise AssertionError(f"{self.name}: '{line}', but the journal began at {self.begun_at} and begins at {journal.first} now")
            self.position = last
        elif word == "caught_up":
            sequence = int(rest.split(":")[1])
            self.no_match_between(self.position, sequence + 1, line)
            self.position = max(self.position, sequence)
        else:
            raise AssertionError(f"{self.name}: '{line}'")


class Run:
    """One broker, three publishers, some readers, and the steps."""

    def __init__(self, seed, bus_options, event_bytes, chunk):
        self.random = random.Random(seed)
        self.prefix = Prefix()
        self.probes = self.prefix.path / "probes"
        self.probes.mkdir()
        for name in ("operator", *SERVICES):
            shutil.copy(PROBE, self.probes / name)
        services = "".join(f'{name} = "exe:{self.probes / name}"\n' for name in SERVICES)
        path = self.prefix.state("bus") / "journal.db"
        self.broker = self.prefix.start("bus", f'[bus]\ndirectory = "{self.prefix.bus}"\njournal = "{path}"\n{bus_options}\n\n[identity.services]\n{services}')
        self.journal = Journal(path)
        self.event_bytes, self.chunk = event_bytes, chunk
        self.next = dict.fromkeys(SERVICES, 1)
        self.acknowledged = dict.fromkeys(SERVICES, 0)
        self.streaming = None
        self.readers = [Reader(self, "everything"), Reader(self, "by type", type="vm."), Reader(self, "by source", source="deployer", subject="s1"),
                        Reader(self, "by severity", severity="warning"), Reader(self, "everything, slowly")]
        for reader in self.readers:
            reader.start()
        self.done = []

    def close(self):
        for reader in self.readers:
            reader.end()
        if self.streaming is not None:
            self.streaming[1].kill()
            self.streaming[1].communicate()
        self.prefix.close()

    # Publishing.

    def begin_stream(self, count, pause_ms=0):
        who = self.random.choice(list(SERVICES))
        first = self.next[who]
        size = self.random.choice(self.event_bytes)
        process = subprocess.Popen([str(self.probes / who), str(self.prefix.bus), "stream", SERVICES[who], str(first), str(first + count - 1),
                                    str(self.random.choice((1, 8, 64))), str(pause_ms), str(size)], stdout=subprocess.PIPE, text=True)
        self.streaming = who, process, first + count - 1

    def end_stream(self, killed=False):
        who, process, last = self.streaming
        if killed:
            process.kill()
        out, _ = process.communicate(timeout=60)
        self.streaming = None
        self.journal.look()
        acked = set()
        for line in out.splitlines(keepends=True):
            word, *rest = line.split()
            if not line.endswith("\n"):
                continue
            assert word == "acked", line
            number, sequence = int(rest[0]), int(rest[1].split(":")[1])
            acked.add(number)
            assert self.journal.events[sequence][0] == f"{SERVICES[who]}-{number:09}", (line, self.journal.events[sequence])
        if not killed:
            assert process.returncode == 0 and max(acked) == last, out[-300:]
        while self.next[who] in acked:  # the next life begins with what was not acknowledged, under the same ids
            self.next[who] += 1

    def publish(self):
        self.begin_stream(self.random.randint(1, self.chunk))
        self.end_stream()

    def publish_and_kill_the_publisher(self):
        self.begin_stream(self.random.randint(50, self.chunk), pause_ms=1)
        wait_for(lambda: self.journal.look() and self.random.random() < 0.2, "some time", 10)
        self.end_stream(killed=True)

    def publish_and_kill_the_broker(self):
        self.begin_stream(self.random.randint(50, self.chunk), pause_ms=2)
        before = self.journal.last
        few = self.random.randint(1, 40)
        wait_for(lambda: self.journal.look().last >= before + few or self.streaming[1].poll() is not None, "some are published", 20)
        self.kill_broker()
        self.end_stream()

    def publish_while_reading(self):
        readers = self.random.sample(self.readers, 3)
        for reader in readers:
            if targets := reader.targets():
                reader.ask(self.random.choice(targets))
        self.publish()
        for reader in readers:
            reader.answer()

    # Reading and killing.

    def read(self):
        reader = self.random.choice(self.readers[:-1])
        targets = reader.targets()
        if targets:
            reader.ask(self.random.choice(targets))
            reader.answer()

    def read_all(self):
        reader = self.random.choice(self.readers)
        targets = reader.targets()
        if targets:
            reader.ask(targets[-1])
            reader.answer()

    def read_slowly(self):
        """In small portions, while others go on."""
        reader = self.readers[-1]
        targets = reader.targets()
        for target in targets[:60:20]:
            reader.ask(target)
            reader.answer()

    def restart_reader(self):
        reader = self.random.choice(self.readers)
        targets = reader.targets()
        if targets and self.random.random() < 0.5:
            reader.ask(targets[-1])  # killed in the middle of it
        reader.kill()
        reader.start()

    def kill_broker(self):
        self.broker.kill()
        self.broker.start()

    def step(self, act):
        self.done.append(act.__name__)
        act()
        self.journal.look()

    def finish(self):
        """Everybody reads to the end, and the whole story is told once more from the beginning."""
        self.readers.append(Reader(self, "late"))
        self.readers[-1].start()
        for reader in self.readers:
            if targets := reader.targets():
                reader.ask(targets[-1])
                reader.answer()
                assert reader.position >= targets[-1], reader.name


class BusPropertyTest(unittest.TestCase):
    def make(self, options, event_bytes, chunk, salt):
        seed = SEED + salt
        print(f"note: seed {SEED} ({self.id().rsplit('_', 1)[-1]})", file=sys.stderr, flush=True)
        run = Run(seed, options, event_bytes, chunk)
        self.addCleanup(run.close)
        return run

    def drive(self, run, extra):
        acts = [run.publish] * 4 + [run.publish_while_reading] * 3 + [run.read] * 3 + [run.read_slowly, run.read_all, run.restart_reader, run.restart_reader,
                run.kill_broker, run.publish_and_kill_the_broker, run.publish_and_kill_the_publisher] + extra
        try:
            for _ in range(STEPS):
                run.step(run.random.choice(acts))
            for act in extra:
                run.step(act)
            run.finish()
        except AssertionError as error:
            raise AssertionError(f"{error}\nseed {SEED}; steps: {' '.join(run.done)}\nbroker: {run.broker.text()[-1000:]}") from error
        removed = run.journal.first - 1
        print(f"note: {run.journal.last} events, {removed} removed, {sum(reader.items for reader in run.readers)} items read, "
              f"{sum(reader.gaps for reader in run.readers)} gaps", file=sys.stderr, flush=True)
        self.assertGreater(removed, 0, "retention has removed something")
        self.assertGreater(sum(reader.gaps for reader in run.readers), 0, "and somebody has met it")

    def test_retention_by_count(self):
        keep = 1000
        run = self.make(f"max_events = {keep}", (10, 100, 3000), 900, 0)

        def settled():
            kept = wait_for(lambda: run.journal.look() and run.journal.last - run.journal.first <= keep + COUNT_SLACK and run.journal.last - run.journal.first + 1,
                            "retention has removed what is too many", 20)
            self.assertTrue(run.journal.first == 1 or kept >= keep, f"only {kept} kept")

        self.drive(run, [settled])

    def test_retention_by_size(self):
        limit = 1024 * 1024
        run = self.make("max_megabytes = 1", (100, 2000, 6000), 60, 1)

        def settled():
            run.kill_broker()  # a broker looks at the size when it starts, and then every few seconds
            before = run.journal.look().first
            wait_for(lambda: run.journal.look().used_bytes <= limit, "retention has removed what is too much", 20)
            if run.journal.first > before:
                self.assertGreater(run.journal.used_bytes, limit - 64 * 1024, "no more than is too much")

        self.drive(run, [settled])

    def test_retention_by_age(self):
        run = self.make("max_age_days = 1", (10, 1000), 300, 2)

        def grow_old():
            """Two days pass for all that was committed before one of the journal's time marks."""
            run.publish()
            run.broker.kill()
            with run.journal.open("rw") as db:
                marks = [sequence for (sequence,) in db.execute("SELECT sequence FROM ticks ORDER BY sequence")]
                mark = run.random.choice(marks)
                db.execute("UPDATE ticks SET time_ms = time_ms - 2 * 86400000 WHERE sequence <= ? AND time_ms > 86400000 * 2", (mark,))
            db.close()
            run.broker.start()
            first = max(run.journal.first, mark)
            wait_for(lambda: run.journal.look().first >= first, f"what is older than {mark} is removed", 20)
            self.assertEqual(run.journal.first, first)

        self.drive(run, [grow_old, grow_old])


if __name__ == "__main__":
    unittest.main()
