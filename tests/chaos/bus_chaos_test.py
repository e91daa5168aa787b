"""The bus while everybody on it is killed: nothing that was acknowledged is lost, doubled, or out of order."""
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
import unittest

from bus_test import Bus
from mesh import TOP, Prefix, wait_for

SECONDS = float(os.environ.get("DSTACK_CHAOS_SECONDS", "300"))
SEED = int(os.environ.get("DSTACK_CHAOS_SEED") or int.from_bytes(os.urandom(4), "big"))
PYTHON = "/usr/bin/python3"  # the distribution's: it has python3-zmq


class Peer:
    """A process that writes lines into a file, over all its lives; only the last line may be torn, and is dropped then."""

    def __init__(self, path):
        self.path = path
        self.path.touch()
        self.process = None  # of this life; None while it is down
        self.held = False
        self.lives = 0

    def command(self):
        raise NotImplementedError

    def start(self):
        data = self.path.read_bytes() if self.path.stat().st_size < 65536 else None
        size = self.path.stat().st_size
        if data is None:
            with open(self.path, "rb") as file:
                file.seek(size - 65536)
                data = file.read()
        whole = size - (len(data) - (data.rfind(b"\n") + 1))
        os.truncate(self.path, whole)
        with open(self.path, "ab") as out:
            self.process = subprocess.Popen(self.command(), stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT)
        self.held = False
        self.lives += 1

    def running(self):
        return self.process is not None and self.process.poll() is None

    def kill(self):
        """False when it had ended by itself, which none of them may."""
        alive = self.running()
        if alive:
            self.process.kill()
        self.process.wait(10)
        return alive

    def hold(self):
        self.process.send_signal(signal.SIGSTOP)
        self.held = True

    def go_on(self):
        if self.running():
            self.process.send_signal(signal.SIGCONT)
        self.held = False

    def last_line(self):
        with open(self.path, "rb") as file:
            file.seek(max(0, self.path.stat().st_size - 65536))
            lines = file.read().split(b"\n")[:-1]
        return lines[-1].decode() if lines else ""


class Numbered(Peer):
    """Does things with the numbers 1, 2, 3 ...; each life begins at the first one whose end is not known."""

    word = verb = ""

    def __init__(self, bus, who, what, *shape):
        super().__init__(bus.prefix.path / f"{self.verb}-{who}.txt")
        self.bus, self.who, self.what = bus, who, what
        self.shape = [str(part) for part in shape]  # in flight first
        self.last = 0
        self.ended = {}
        self.errors = []
        self.read_to = 0
        self.first = 1

    def take(self):
        """Reads what has ended since."""
        with open(self.path, "rb") as file:
            file.seek(self.read_to)
            data = file.read()
        data = data[:data.rfind(b"\n") + 1]
        self.read_to += len(data)
        for line in data.decode().splitlines():
            word, _, rest = line.partition(" ")
            if word != self.word:
                self.errors.append(line)
                continue
            number, _, end = rest.partition(" ")
            known = self.ended.setdefault(int(number), end)
            if known != end:
                self.errors.append(f"{self.what} {number}: {self.word} as {known} and as {end}")
        while self.first in self.ended:
            self.first += 1

    def command(self):
        self.take()
        return [str(self.bus.folder / self.who), str(self.bus.prefix.bus), self.verb, self.what, str(self.first), str(self.last), *self.shape]

    def finish(self):
        """Its last life: up to the highest number that may have been sent."""
        self.take()
        self.last = max(self.ended, default=0) + int(self.shape[0]) + 1
        self.start()


class Publisher(Numbered):
    """Publishes events whose ids follow from their numbers: in flight, pause in ms, size in bytes."""

    word, verb = "acked", "stream"


class Caller(Numbered):
    """Calls a command with idempotency keys that follow from the numbers: in flight, pause in ms."""

    word, verb = "answered", "calls"


class Ledger(Peer):
    """A service that writes down each key once, and answers with its number."""

    def __init__(self, bus):
        super().__init__(bus.prefix.path / "ledger.txt")
        self.bus, self.file = bus, bus.prefix.path / "ledger.keys"

    def command(self):
        return [str(self.bus.folder / "allocator"), str(self.bus.prefix.bus), "ledger", "allocator", "lease.list", str(self.file)]


class Follower(Peer):
    """A subscriber that goes on behind the last event of its former life."""

    def __init__(self, bus, name, type="", subject="", source="", severity="", pause=()):
        super().__init__(bus.prefix.path / f"follower-{name}.txt")
        self.bus, self.name = bus, name
        self.filter = [type, subject, source, severity]
        self.pause = [str(word) for word in pause]

    def position(self):
        with open(self.path, "rb") as file:
            file.seek(max(0, self.path.stat().st_size - 65536))
            for line in reversed(file.read().split(b"\n")[:-1]):
                if line.startswith(b"event "):
                    return line.split()[1].decode()
        return "0"

    def command(self):
        return [str(self.bus.folder / "operator"), str(self.bus.prefix.bus), "follow", self.position(), *self.filter, *self.pause]

    def seen(self):
        """[(sequence, id)], and every line that is neither an event nor caught_up."""
        events, other = [], []
        for line in self.path.read_text().splitlines():
            word, _, rest = line.partition(" ")
            if word == "event":
                cursor, _, name = rest.partition(" ")
                events.append((int(cursor.split(":")[1]), name))
            elif word != "caught_up":
                other.append(line)
        return events, other

    def expected(self, journal):
        kind, subject, source, severity = self.filter
        least = ["debug", "info", "warning", "error"].index(severity or "debug")
        return [(sequence, name) for sequence, name, event_type, event_source, event_subject, event_severity in journal
                if event_type.startswith(kind) and subject in ("", event_subject) and source in ("", event_source) and event_severity >= least]


class Reference(Follower):
    """docs/examples/subscribe.py."""

    def command(self):
        names = ("type", "subject", "source", "severity")
        wanted = json.dumps({name: value for name, value in zip(names, self.filter) if value})
        return [PYTHON, str(TOP / "docs/examples/subscribe.py"), str(self.bus.prefix.bus), self.position(), wanted]

    def position(self):
        with open(self.path, "rb") as file:
            file.seek(max(0, self.path.stat().st_size - 65536))
            for line in reversed(file.read().split(b"\n")[:-1]):
                try:
                    return json.loads(line)["sequence"]
                except (ValueError, KeyError):
                    continue
        return "0"

    def seen(self):
        events, other = [], []
        for line in self.path.read_text().splitlines():
            try:
                item = json.loads(line)
            except ValueError:
                other.append(line)
                continue
            if "specversion" in item:
                events.append((int(item["sequence"].split(":")[1]), item["id"]))
            elif "caught_up" not in item:
                other.append(line)
        return events, other


class Chaos:
    """Who is killed or held when: from the seed."""

    def __init__(self, test, bus, publishers, followers, callers, ledger):
        self.test, self.bus, self.publishers, self.followers, self.callers, self.ledger = test, bus, publishers, followers, callers, ledger
        self.random = random.Random(SEED)
        self.later = []  # (time, what to do)
        self.counts = {}

    def after(self, seconds, act):
        self.later.append((time.monotonic() + seconds, act))

    def do_what_is_due(self):
        now = time.monotonic()
        due = [act for at, act in self.later if at <= now]
        self.later = [(at, act) for at, act in self.later if at > now]
        for act in due:
            act()

    def run(self, seconds):
        end = time.monotonic() + seconds
        acts = [self.kill_broker, self.kill_broker_as_it_starts, self.hold_broker, self.kill_publisher, self.kill_publisher,
                self.kill_follower, self.kill_follower, self.hold_follower, self.kill_caller, self.kill_ledger, self.kill_all]
        while time.monotonic() < end:
            act, pause = self.random.choice(acts), self.random.uniform(0.02, 1.2)
            act()
            self.counts[act.__name__] = self.counts.get(act.__name__, 0) + 1
            until = time.monotonic() + pause
            while time.monotonic() < until:
                self.do_what_is_due()
                time.sleep(0.01)
        while self.later:
            self.do_what_is_due()
            time.sleep(0.01)

    def up(self):
        return self.bus.broker.process.poll() is None

    def end_broker(self):
        """Ends a broker that runs; one that is down already is being started again later."""
        if self.broker_down:
            return False
        self.test.assertTrue(self.up(), "the broker ended by itself:\n" + self.bus.broker.text()[-3000:])
        self.bus.broker.kill()
        return True

    broker_down = False

    def start_broker(self):
        self.bus.broker.launch()
        self.broker_down = False

    def kill_broker(self):
        down = self.random.choice((0, 0, 0.3, 2))
        if self.end_broker():
            self.broker_down = True
            self.after(down, self.start_broker)

    def kill_broker_as_it_starts(self):
        waits = [self.random.uniform(0, 0.06) for _ in range(4)]
        if not self.end_broker():
            return
        for wait in waits:
            self.bus.broker.launch()
            time.sleep(wait)
            self.bus.broker.kill()
        self.start_broker()

    def hold_broker(self):
        seconds = self.random.uniform(0.05, 1)
        if self.broker_down:
            return
        process = self.bus.broker.process
        process.send_signal(signal.SIGSTOP)
        self.after(seconds, lambda: process.send_signal(signal.SIGCONT) if process.poll() is None else None)

    def kill_peer(self, peer, down):
        if peer.process is None:
            return  # it is down
        self.test.assertTrue(peer.kill(), f"{peer.path.name} ended by itself: {peer.last_line()}")
        peer.process = None
        self.after(down, peer.start)

    def kill_publisher(self):
        self.kill_peer(self.random.choice(self.publishers), self.random.uniform(0, 0.5))

    def kill_caller(self):
        self.kill_peer(self.random.choice(self.callers), self.random.uniform(0, 0.5))

    def kill_ledger(self):
        self.kill_peer(self.ledger, self.random.choice((0, 0, 0.2, 1)))

    def kill_follower(self):
        self.kill_peer(self.random.choice(self.followers), self.random.choice((0, 0, 0.5, 3)))

    def hold_follower(self):
        follower, seconds = self.random.choice(self.followers), self.random.uniform(0.5, 5)
        if follower.process is None or follower.held:
            return
        follower.hold()
        process = follower.process
        self.after(seconds, lambda: follower.go_on() if follower.process is process else None)

    def kill_all(self):
        """As a power cut of everything but the kernel."""
        if not self.end_broker():
            return
        self.broker_down = True
        for peer in [*self.publishers, *self.followers, *self.callers, self.ledger]:
            self.kill_peer(peer, 0.2)
        self.after(0.1, self.start_broker)


class BusChaosTest(unittest.TestCase):
    def test_kill_9_of_everybody_under_load(self):
        print(f"note: seed {SEED}, {SECONDS:.0f} s", file=sys.stderr, flush=True)
        prefix = Prefix()
        self.addCleanup(prefix.close)
        bus = Bus(prefix)
        publishers = [Publisher(bus, "vmm-local", "vm.ready", 16, 20, 20), Publisher(bus, "allocator", "lease.granted", 1, 1, 200),
                      Publisher(bus, "deployer", "deploy.step", 64, 150, 1500)]
        followers = [Follower(bus, "all"), Follower(bus, "slow", pause=(50, 30)), Follower(bus, "type", type="vm."),
                     Follower(bus, "severity", severity="warning"), Follower(bus, "source", source="deployer", subject="s1")]
        if subprocess.run([PYTHON, "-c", "import zmq"], capture_output=True).returncode == 0:
            followers.append(Reference(bus, "reference", type="lease."))
        # Of one identity each: a key belongs to its caller.
        callers = [Caller(bus, "deployer", "lease.list", 8, 10), Caller(bus, "operator", "lease.list", 1, 1)]
        ledger = Ledger(bus)
        peers = [ledger, *publishers, *followers, *callers]

        def end():
            for peer in peers:
                if peer.running():
                    peer.go_on()
                    peer.kill()

        self.addCleanup(end)
        for peer in peers:
            peer.start()
        chaos = Chaos(self, bus, publishers, followers, callers, ledger)
        chaos.run(SECONDS)

        # Everybody is up again; the publishers come to an end, and the subscribers to theirs.
        for peer in publishers + callers:
            self.assertTrue(peer.kill(), peer.last_line())
            peer.finish()
        for peer in publishers + callers:
            wait_for(lambda: peer.process.poll() is not None, f"{peer.path.name} comes to its end: {peer.last_line()}", 120, 0.1)
            self.assertEqual(peer.process.returncode, 0, peer.last_line())
            peer.take()
        journal = self.journal(bus)
        for follower in followers:
            expected = follower.expected(journal)
            wait_for(lambda: follower.position().endswith(f":{expected[-1][0]}"), f"{follower.name} has read all: {follower.position()} of {expected[-1]}", 180, 0.1)

        counts = ", ".join(f"{name} {count}" for name, count in sorted(chaos.counts.items()))
        print(f"note: {len(journal)} events, {sum(caller.last for caller in callers)} calls; {counts}", file=sys.stderr, flush=True)
        self.check_publishers(publishers, journal)
        for follower in followers:
            self.check_follower(follower, journal)
        self.check_calls(callers, ledger)

    def journal(self, bus):
        """[(sequence, id, type, source, subject, severity)], as it is on the disk."""
        with sqlite3.connect(f"file:{bus.journal}?mode=ro", uri=True) as db:
            return db.execute("SELECT sequence, id, type, source, subject, severity FROM events ORDER BY sequence").fetchall()

    def check_publishers(self, publishers, journal):
        by_sequence = {row[0]: row[1] for row in journal}
        self.assertEqual(len({row[1] for row in journal}), len(journal), "an id is in the journal twice")
        self.assertEqual([row[0] for row in journal], list(range(1, len(journal) + 1)), "the sequence has no hole")
        for publisher in publishers:
            self.assertEqual(publisher.errors, [])
            self.assertEqual(sorted(publisher.ended), list(range(1, publisher.last + 1)))
            lost = [number for number, cursor in publisher.ended.items()
                    if by_sequence.get(int(cursor.split(":")[1])) != f"{publisher.what}-{number:09}"]
            self.assertEqual(lost[:10], [], f"{len(lost)} acknowledged events of {publisher.who} are not in the journal where they were acknowledged")
            own = [row[1] for row in journal if row[2] == publisher.what]
            self.assertEqual(len(own), publisher.last, "and no others")
            late = [(earlier, name) for earlier, name in zip(own, own[1:]) if name < earlier]
            self.assertEqual(late[:10], [], f"{len(late)} events of {publisher.who} are in the journal before one that was sent earlier")

    def check_calls(self, callers, ledger):
        done = [line.split() for line in ledger.file.read_text().splitlines()]
        self.assertEqual(len({key for key, _ in done}), len(done), "a key was worked on twice")
        for caller in callers:
            self.assertEqual(caller.errors, [])
            self.assertEqual(sorted(caller.ended), list(range(1, caller.last + 1)))
        numbers = [json.loads(answer)["answer"] for caller in callers for answer in caller.ended.values()]
        self.assertEqual(len(set(numbers)), len(numbers), "two calls got one answer")
        self.assertLessEqual(set(numbers), {int(number) for _, number in done}, "an answer that was never written down")

    def check_follower(self, follower, journal):
        expected = follower.expected(journal)
        seen, other = follower.seen()
        self.assertEqual(other, [], f"{follower.name}: gaps or errors")
        for at, (got, wanted) in enumerate(zip(seen, expected)):
            self.assertEqual(got, wanted, f"{follower.name}: item {at}; before it {seen[max(0, at - 3):at]}, life {follower.lives}")
        self.assertEqual(len(seen), len(expected), f"{follower.name}: more than there is: {seen[len(expected):][:5]}")


if __name__ == "__main__":
    unittest.main()
