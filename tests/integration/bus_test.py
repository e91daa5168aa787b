"""The broker and its clients as real processes: identity, commands, durability, replay, restarts."""
import itertools
import json
import os
import queue
import shutil
import signal
import subprocess
import threading
import time
import unittest
from pathlib import Path

from mesh import BUILD, TOP, Prefix, wait_for

PROBE = BUILD / "tests/integration/bus_probe"


class Bus:
    """A broker in a prefix, and probes that it takes for services by the path they are run from."""

    def __init__(self, prefix, settings="", environment=None):
        self.prefix = prefix
        self.probes = []
        folder = prefix.path / "probes"
        folder.mkdir()
        for name in ("operator", "allocator", "deployer", "vmm-local"):
            shutil.copy(PROBE, folder / name)
        self.folder = folder
        services = "".join(f'{name} = "exe:{folder / name}"\n' for name in ("allocator", "deployer", "vmm-local"))
        self.journal = prefix.state("bus") / "journal.db"
        config = f'[bus]\ndirectory = "{prefix.bus}"\njournal = "{self.journal}"\n{settings}\n[identity.services]\n{services}'
        self.broker = prefix.start("bus", config, environment)

    def restart(self, signal_number=signal.SIGKILL):
        self.broker.kill(signal_number)
        self.broker.start()

    def run(self, who, *arguments, deadline=20):
        done = subprocess.run([str(self.folder / who), str(self.prefix.bus), *arguments], capture_output=True, text=True, timeout=deadline)
        return done.stdout.splitlines()

    def start(self, who, *arguments):
        probe = Probe([str(self.folder / who), str(self.prefix.bus), *arguments])
        self.probes.append(probe)
        return probe

    def close(self):
        for probe in self.probes:
            probe.kill()


def sockets(probe):
    """Of its process, by inode."""
    links = []
    for fd in Path(f"/proc/{probe.process.pid}/fd").iterdir():
        try:
            links.append(os.readlink(fd))
        except FileNotFoundError:
            pass  # closed meanwhile
    return sorted(link for link in links if link.startswith("socket:"))


class Probe:
    """A probe in the background whose lines can be awaited."""

    def __init__(self, command, **options):
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **options)
        self.lines = []
        self.fresh = queue.Queue()
        self.reader = threading.Thread(target=self.read, daemon=True)
        self.reader.start()

    def read(self):
        for line in self.process.stdout:
            self.lines.append(line.rstrip("\n"))
            self.fresh.put(line)

    def expect(self, condition, what, deadline=20):
        return wait_for(lambda: condition(self.lines), f"{what}; lines: {self.lines[-5:]}", deadline)

    def kill(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(10)
        self.reader.join(10)
        self.process.stdout.close()


class BusTest(unittest.TestCase):
    def setUp(self):
        self.prefix = Prefix()
        self.addCleanup(self.prefix.close)
        self.bus = Bus(self.prefix)
        self.addCleanup(self.bus.close)

    def serve(self, delay_ms=0):
        probe = self.bus.start("allocator", "serve", "allocator", "lease.list", str(delay_ms))
        probe.expect(lambda lines: "ready" in lines, "the service registers")
        return probe

    def numbers(self, lines):
        return [json.loads(line.split(" ", 4)[4])["number"] for line in lines if line.startswith("event") and " vm.ready " in line]

    def test_access_comes_from_the_schema(self):
        rows = [
            (("operator", "call", "nonsense", "{}"), "error not_found"),
            (("operator", "call", "lease.bind", '{"owner":"x"}'), "error permission_denied"),
            (("operator", "serve", "allocator", "lease.list", "0"), "error permission_denied"),
            (("operator", "publish", "vm.ready", "1"), "error permission_denied"),
            (("vmm-local", "publish", "lease.granted", "1"), "error permission_denied"),
            (("vmm-local", "publish", "vm.nonsense", "1"), "error invalid_argument"),
            (("vmm-local", "call", "deploy.create", "{}"), "error permission_denied"),
            (("operator", "call", "lease.list", "{}"), "error unavailable"),  # nobody ever registered it: at once
            (("vmm-local", "publish", "vm.ready", "1"), "published 0"),
        ]
        for arguments, expected in rows:
            with self.subTest(arguments=arguments):
                lines = self.bus.run(*arguments)
                self.assertTrue(lines and lines[-1].startswith(expected), lines)
        stream = self.bus.start("operator", "subscribe", "0", "bus.peer_refused")
        refusal = stream.expect(lambda lines: [line for line in lines if "bus.peer_refused" in line], "a refusal is an event")[0]
        facts = json.loads(refusal.split(" ", 4)[4])
        self.assertEqual(facts["uid"], os.getuid())
        self.assertGreater(facts["pid"], 1)

    def test_the_same_key_is_one_piece_of_work(self):
        service = self.serve()
        first = self.bus.run("deployer", "call", "lease.list", "{}", "key-1")
        again = self.bus.run("deployer", "call", "lease.list", "{}", "key-1")
        self.assertEqual(first, ['ok {"leases":[],"answer":1}'])
        self.assertEqual(again, first)
        self.bus.restart()
        after = wait_for(lambda: self.bus.run("deployer", "call", "lease.list", "{}", "key-1"), "an answer after the restart")
        self.assertEqual(after, first)
        other = self.bus.run("deployer", "call", "lease.list", '{"owner":"other"}', "key-1")
        self.assertTrue(other[0].startswith("error invalid_argument"), other)
        stranger = self.bus.run("operator", "call", "lease.list", "{}", "key-1")  # another caller's key is another key
        self.assertEqual(stranger, ['ok {"leases":[],"answer":2}'])
        self.assertEqual(len([line for line in service.lines if line.startswith("request")]), 2)

    def test_a_service_that_dies_midway(self):
        service = self.serve(delay_ms=60_000)
        plain = self.bus.start("operator", "call", "lease.list", "{}")
        keyed = self.bus.start("deployer", "call", "lease.list", "{}", "key-2", "20000")
        service.expect(lambda lines: sum(line.startswith("request") for line in lines) == 2, "both are being worked on")
        service.kill()
        plain.expect(lambda lines: any(line.startswith("error unavailable") for line in lines), "no key: told at once")
        self.assertEqual(keyed.lines, [])
        self.serve()
        keyed.expect(lambda lines: lines == ['ok {"leases":[],"answer":1}'], "a key: done after the restart")
        stream = self.bus.start("operator", "subscribe", "0", "service.")
        stream.expect(lambda lines: sum("service.up" in line for line in lines) == 2 and any("process exited" in line for line in lines),
                      "both sides of the restart are events")

    def test_a_call_waits_for_a_service_that_restarts(self):
        self.serve().kill()
        waiting = self.bus.start("operator", "call", "lease.list", "{}", "", "15000")
        stream = self.bus.start("operator", "subscribe", "0", "service.down")
        stream.expect(lambda lines: any("service.down" in line for line in lines), "the broker saw it die")
        self.assertIsNone(waiting.process.poll())
        self.serve()
        waiting.expect(lambda lines: lines == ['ok {"leases":[],"answer":1}'], "the answer")
        self.bus.probes[0].kill()

    def test_a_broker_that_hangs_is_noticed_and_taken_back(self):
        self.serve(delay_ms=0)
        waiting = self.bus.start("deployer", "serve", "deployer", "app.list", "0")
        waiting.expect(lambda lines: "ready" in lines, "the service registers")
        before = sockets(waiting)
        os.kill(self.bus.broker.pid, signal.SIGSTOP)
        try:
            answers = self.bus.run("deployer", "call", "lease.list", "{}", "hung", "1000")
            self.assertRegex(answers[0], "error unavailable .* does not answer, though its process is there")
            late = self.bus.start("deployer", "call", "lease.list", "{}", "late", "60000")
            wait_for(lambda: sockets(waiting) != before, "the silent connection is given up", deadline=30)
        finally:
            os.kill(self.bus.broker.pid, signal.SIGCONT)
        late.expect(lambda lines: lines and lines[0].startswith("ok"), "what waited is answered", 30)
        wait_for(lambda: (self.bus.run("operator", "call", "app.list", "{}", "", "2000") or [""])[0].startswith("ok"), "the service is back", deadline=30)

    def test_a_deadline_is_kept_while_others_call_without_a_pause(self):
        self.serve(delay_ms=600_000)  # lease.list has no answer
        busy = self.bus.start("deployer", "serve", "deployer", "app.list", "0")
        busy.expect(lambda lines: "ready" in lines, "the service registers")
        peer = Probe(["/usr/bin/python3", str(TOP / "tests/integration/raw_peer.py"), str(self.prefix.bus)], stdin=subprocess.PIPE)
        self.bus.probes.append(peer)
        self.addCleanup(peer.process.stdin.close)

        def call(correlation, command, limit_ms):
            fields = ["1", "call", correlation, command, str(int(time.time() * 1000) + limit_ms), "", "", "{}"]
            peer.process.stdin.write(json.dumps(["\n".join(fields)]) + "\n")
            peer.process.stdin.flush()

        begun = time.monotonic()
        call("late", "lease.list", 300)
        answers = itertools.count()
        while not any("\\nlate\\n" in line for line in peer.lines) and time.monotonic() < begun + 5:
            call(f"c{next(answers)}", "app.list", 5_000)
            time.sleep(0.003)  # the load: more often than the broker looks at deadlines
        self.assertTrue(any("\\nlate\\n" in line and "deadline_exceeded" in line for line in peer.lines), peer.lines[-2:])
        self.assertGreater(next(answers), 20, "there was no load")

    def test_a_deadline_is_kept(self):
        self.serve(delay_ms=60_000)
        begin = time.monotonic()
        lines = self.bus.run("operator", "call", "lease.list", "{}", "", "300")
        self.assertTrue(lines[0].startswith("error deadline_exceeded"), lines)
        self.assertLess(time.monotonic() - begin, 10)

    def test_an_event_id_is_one_event(self):
        first = self.bus.run("vmm-local", "publish", "vm.ready", "3")
        again = self.bus.run("vmm-local", "publish", "vm.ready", "3")
        self.assertEqual(first, again)

    def test_acknowledged_events_survive_kill_9_and_replay_exactly_once(self):
        stream = self.bus.start("operator", "subscribe", "now", "vm.")
        stream.expect(lambda lines: "caught_up" in lines, "live")
        acknowledged = []
        publisher = self.bus.start("vmm-local", "publish", "vm.ready", "600")
        for kill_at in (100, 250, 400):
            publisher.expect(lambda lines: len(lines) >= kill_at, f"{kill_at} acknowledged", 60)
            self.bus.restart()
        publisher.expect(lambda lines: len(lines) == 600, "all are acknowledged", 60)
        acknowledged = [int(line.split()[1]) for line in publisher.lines]
        self.assertEqual(acknowledged, list(range(600)))
        stream.expect(lambda lines: len(self.numbers(lines)) >= 600, "the subscriber has seen all", 60)
        self.assertEqual(self.numbers(stream.lines), list(range(600)))
        self.assertEqual(stream.lines.count("caught_up"), 1)
        self.assertFalse([line for line in stream.lines if line.startswith("gap")])
        replay = self.bus.start("operator", "subscribe", "0", "vm.ready")
        replay.expect(lambda lines: "caught_up" in lines, "replayed", 60)
        self.assertEqual(self.numbers(replay.lines), list(range(600)))

    def test_a_subscriber_goes_on_where_it_was(self):
        lines = self.bus.run("vmm-local", "publish", "vm.ready", "10")
        cursor = lines[3].split()[2]
        stream = self.bus.start("operator", "subscribe", cursor, "vm.")
        stream.expect(lambda lines: "caught_up" in lines, "replayed")
        self.assertEqual(self.numbers(stream.lines), list(range(4, 10)))

    def test_a_cursor_of_another_journal_is_a_gap(self):
        self.bus.run("vmm-local", "publish", "vm.ready", "2")
        stream = self.bus.start("operator", "subscribe", "7:5", "vm.")
        stream.expect(lambda lines: "caught_up" in lines, "replayed")
        self.assertTrue(stream.lines[0].startswith("gap "), stream.lines)
        self.assertEqual(self.numbers(stream.lines), [0, 1])

    def test_two_brokers_do_not_serve_one_directory(self):
        second = subprocess.run([str(BUILD / "bus/broker/dstack-bus"), "--config", str(self.bus.broker.config)], capture_output=True, text=True,
                                timeout=20)
        self.assertEqual(second.returncode, 70)
        self.assertIn("another broker serves", second.stderr)
        self.assertTrue(self.bus.run("operator", "call", "bus.services", "{}")[0].startswith("ok "))

    def test_no_bus_is_a_named_error(self):
        self.bus.broker.kill()
        lines = self.bus.run("operator", "call", "bus.services", "{}")
        self.assertTrue(lines[0].startswith("error unavailable the bus in "), lines)


if __name__ == "__main__":
    unittest.main()
