"""`dstack events` as a real process: filters, places to begin, NDJSON, gaps and their exit code, pipes, broker restarts."""
import json
import os
import signal
import subprocess
import time
import unittest
from datetime import datetime, timedelta, timezone

from bus_test import Bus, Probe
from mesh import Prefix, program, wait_for


class EventsTest(unittest.TestCase):
    def setUp(self):
        self.prefix = Prefix()
        self.addCleanup(self.prefix.close)
        self.bus = Bus(self.prefix)
        self.addCleanup(self.bus.close)

    def command(self, *arguments):
        return [str(program("dstack")), "events", *arguments, "--prefix", str(self.prefix.path)]

    def run_events(self, *arguments, code=0):
        done = subprocess.run(self.command(*arguments), capture_output=True, text=True, timeout=30)
        self.assertEqual(done.returncode, code, done)
        return done

    def documents(self, *arguments, code=0):
        return [json.loads(line) for line in self.run_events(*arguments, "--json", code=code).stdout.splitlines()]

    def numbers(self, *arguments):
        return [document["data"]["number"] for document in self.documents(*arguments) if document["type"] == "vm.ready"]

    def follow(self, *arguments):
        probe = Probe(self.command("-f", *arguments))
        self.bus.probes.append(probe)
        return probe

    def test_filters_and_places_to_begin(self):
        cursors = [line.split()[2] for line in self.bus.run("vmm-local", "publish", "vm.ready", "10")]  # times from 2023-11-14T22:13:20.000Z on
        ten = list(range(10))
        rows = [
            ((), ten),
            (("--from", "0"), ten),
            (("--from", cursors[3]), ten[4:]),
            (("--from", cursors[9]), []),
            (("--from", "2023-11-14T22:13:20.007Z"), ten[7:]),
            (("--from", "2023-11-15T00:13:20.007+02:00"), ten[7:]),
            (("--from", "10m"), []),
            (("--type", "vm."), ten),
            (("--type", "lease."), []),
            (("--subject", "s2"), [2, 5, 8]),
            (("--source", "vmm-local"), ten),
            (("--source", "/dstack/vmm-local"), ten),
            (("--source", "allocator"), []),
            (("--severity", "info"), ten),
            (("--severity", "warning"), []),
            (("--from", cursors[3], "--subject", "s2", "--type", "vm.ready"), [5, 8]),
        ]
        for arguments, expected in rows:
            with self.subTest(arguments=arguments):
                self.assertEqual(self.numbers(*arguments), expected)
        self.assertIn("bus.started", [event["type"] for event in self.documents("--from", "10m")])  # that one is of now
        recent = (datetime.now(timezone.utc) + timedelta(hours=1)).strftime("%Y-%m-%dT%H:%M:%SZ")
        self.assertEqual(self.documents("--from", recent), [])

    def test_a_line_is_a_cloudevent(self):
        self.bus.run("vmm-local", "publish", "vm.ready", "1")
        event = self.documents("--type", "vm.ready")[0]
        for key in ("specversion", "id", "source", "type", "subject", "time", "sequence", "severity", "data"):
            self.assertIn(key, event)
        text = self.run_events("--type", "vm.ready", "-v").stdout
        self.assertEqual(text, f"{event['sequence']} 2023-11-14T22:13:20.000Z vm.ready s0 number=0\n")

    def test_mistakes(self):
        for arguments, word in [(("--from", "yesterday"), "--from"), (("--severity", "bad"), "--severity"), (("--from", "1:2:3"), "--from")]:
            with self.subTest(arguments=arguments):
                done = self.run_events(*arguments, code=2)
                self.assertIn(word, done.stderr)
                self.assertEqual(done.stdout, "")
        self.bus.broker.kill()
        self.assertIn("the bus does not run", self.run_events(code=3).stderr)

    def test_a_gap_has_its_own_exit_code(self):
        self.bus.run("vmm-local", "publish", "vm.ready", "2")
        documents = self.documents("--from", "7:5", code=6)
        self.assertEqual(documents[0]["schema"], "dstack.gap/v1")
        self.assertEqual([event["data"]["number"] for event in documents[1:] if event["type"] == "vm.ready"], [0, 1])
        self.assertIn("are missing", self.run_events("--from", "7:5", code=6).stderr)

    def test_following_across_a_broker_restart(self):
        stream = self.follow("--json", "--type", "vm.ready")
        numbers = lambda: [json.loads(line)["data"]["number"] for line in list(stream.lines)]
        first = 0
        while not numbers():  # `-f` begins now: publish until it has begun
            self.bus.run("vmm-local", "publish", "vm.ready", "1", str(first))
            first += 1
        self.bus.run("vmm-local", "publish", "vm.ready", "5", str(first))
        self.bus.restart()
        self.bus.run("vmm-local", "publish", "vm.ready", "5", str(first + 5))
        self.bus.restart(signal.SIGTERM)
        self.bus.run("vmm-local", "publish", "vm.ready", "5", str(first + 10))
        stream.expect(lambda lines: numbers()[-1] == first + 14, "the last one")
        self.assertEqual(numbers(), list(range(numbers()[0], first + 15)))
        stream.process.send_signal(signal.SIGINT)
        self.assertEqual(stream.process.wait(10), 130)

    def test_a_journal_that_is_replaced_while_following_is_a_gap(self):
        self.bus.run("vmm-local", "publish", "vm.ready", "5")
        stream = self.follow("--json", "--from", "0", "--type", "vm.")
        items = lambda: [json.loads(line) for line in list(stream.lines)]
        stream.expect(lambda lines: len(lines) == 5, "replayed")
        self.bus.broker.kill()
        for path in self.bus.journal.parent.iterdir():
            path.unlink()
        self.bus.broker.start()
        self.bus.run("vmm-local", "publish", "vm.ready", "20", "50")
        stream.expect(lambda lines: len(lines) >= 26, "the new journal's events", 30)
        self.assertEqual([item["schema"] for item in items() if "schema" in item], ["dstack.gap/v1"])
        self.assertEqual([item["data"]["number"] for item in items() if "data" in item], list(range(5)) + list(range(50, 70)))

    def test_a_reader_that_goes_away_ends_it_at_once(self):
        self.bus.run("vmm-local", "publish", "vm.ready", "3")
        for arguments, code in [(("--from", "0"), 0), (("--from", "7:5", "--json"), 6)]:
            with self.subTest(arguments=arguments):
                process = subprocess.Popen(self.command("-f", *arguments), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
                self.addCleanup(process.kill)
                self.assertTrue(process.stdout.readline())
                process.stdout.close()  # and nothing more happens on the bus
                begin = time.monotonic()
                self.assertEqual(process.wait(10), code)
                self.assertLess(time.monotonic() - begin, 2)

    def test_stdout_stays_blocking_for_those_who_share_it(self):
        reader, writer = os.pipe()
        process = subprocess.Popen(self.command("-f", "--from", "0"), stdout=writer)
        self.addCleanup(process.kill)
        self.assertTrue(os.read(reader, 1))
        wait_for(lambda: "eventpoll" in " ".join(os.readlink(f"/proc/{process.pid}/fd/{fd}") for fd in os.listdir(f"/proc/{process.pid}/fd")), "it runs")
        self.assertTrue(os.get_blocking(writer))
        process.send_signal(signal.SIGTERM)
        self.assertEqual(process.wait(10), 143)
        os.close(reader)
        os.close(writer)


if __name__ == "__main__":
    unittest.main()
