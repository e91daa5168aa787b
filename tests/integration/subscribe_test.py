"""The reference subscriber (docs/examples/subscribe.py), written from bus/README.md alone, against a real broker."""
import json
import subprocess
import unittest

from bus_test import Bus, Probe
from mesh import TOP, Prefix, need

PYTHON = "/usr/bin/python3"  # the distribution's: it has python3-zmq
SCRIPT = TOP / "docs/examples/subscribe.py"


def setUpModule():
    need(subprocess.run([PYTHON, "-c", "import zmq"], capture_output=True).returncode == 0, "no pyzmq: install python3-zmq")


class SubscribeTest(unittest.TestCase):
    def setUp(self):
        self.prefix = Prefix()
        self.addCleanup(self.prefix.close)
        self.bus = Bus(self.prefix)
        self.addCleanup(self.bus.close)

    def follow(self, position, **wanted):
        probe = Probe([PYTHON, str(SCRIPT), str(self.prefix.bus), position, json.dumps(wanted)])
        self.bus.probes.append(probe)
        return probe

    def items(self, probe):
        return [json.loads(line) for line in list(probe.lines)]

    def numbers(self, probe):
        return [item["data"]["number"] for item in self.items(probe) if item.get("type") == "vm.ready"]

    def kinds(self, probe):
        return [next(iter(item)) for item in self.items(probe) if "specversion" not in item]

    def test_it_is_short_enough_to_be_read(self):
        self.assertLess(len(SCRIPT.read_text().splitlines()), 80)

    def test_every_event_once_and_in_order_while_the_broker_is_killed(self):
        self.bus.run("vmm-local", "publish", "vm.ready", "100")
        begin, late = self.follow("0", type="vm."), self.follow("now", type="vm.")
        for stream in (begin, late):
            stream.expect(lambda lines: self.kinds(stream) == ["caught_up"], "caught up")
        publisher = self.bus.start("vmm-local", "publish", "vm.ready", "500", "100")
        for kill_at in (100, 250, 400):
            publisher.expect(lambda lines: len(lines) >= kill_at, f"{kill_at} acknowledged", 60)
            self.bus.restart()
        publisher.expect(lambda lines: len(lines) == 500, "all are acknowledged", 60)
        begin.expect(lambda lines: len(self.numbers(begin)) >= 600, "all from the beginning", 60)
        late.expect(lambda lines: len(self.numbers(late)) >= 500, "all from then on", 60)
        self.assertEqual(self.numbers(begin), list(range(600)))
        self.assertEqual(self.numbers(late), list(range(100, 600)))
        self.assertEqual(self.kinds(begin), ["caught_up"])
        self.assertEqual(self.kinds(late), ["caught_up"])

    def test_it_goes_on_after_its_cursor_when_it_was_killed_itself(self):
        publisher = self.bus.start("vmm-local", "publish", "vm.ready", "400")
        position, seen = "0", []
        while len(seen) < 400:
            stream = self.follow(position, type="vm.ready")
            stream.expect(lambda lines: len(self.numbers(stream)) >= min(90, 400 - len(seen)), "some more events", 60)
            stream.kill()
            items = [item for item in self.items(stream) if "specversion" in item]
            position = items[-1]["sequence"]
            seen += [item["data"]["number"] for item in items]
        self.assertEqual(seen, list(range(400)))
        publisher.kill()

    def test_filters(self):
        self.bus.run("vmm-local", "publish", "vm.ready", "9")
        rows = [
            ({}, list(range(18))),
            ({"type": "vm.re"}, list(range(18))),
            ({"type": "vm.ready2"}, []),
            ({"subject": "s1"}, [1, 4, 7, 10, 13, 16]),
            ({"source": "vmm-local"}, list(range(18))),
            ({"source": "allocator"}, []),
            ({"severity": "info"}, list(range(18))),
            ({"severity": "warning"}, []),
        ]
        streams = [self.follow("0", **wanted) for wanted, _ in rows]
        for stream in streams:
            stream.expect(lambda lines: "caught_up" in self.kinds(stream), "caught up")
        self.bus.run("vmm-local", "publish", "vm.ready", "9", "9")  # the same filters on what comes live
        for stream, (wanted, expected) in zip(streams, rows):
            with self.subTest(wanted=wanted):
                stream.expect(lambda lines: len(self.numbers(stream)) >= len(expected), f"{len(expected)} events")
                self.assertEqual(self.numbers(stream), expected)

    def test_a_journal_that_was_replaced_is_a_gap_also_while_following(self):
        self.bus.run("vmm-local", "publish", "vm.ready", "5")
        stream = self.follow("0", type="vm.")
        stream.expect(lambda lines: "caught_up" in self.kinds(stream), "caught up")
        self.bus.broker.kill()
        for path in self.bus.journal.parent.iterdir():
            path.unlink()
        self.bus.broker.start()
        self.bus.run("vmm-local", "publish", "vm.ready", "20", "50")
        stream.expect(lambda lines: len(self.numbers(stream)) >= 25, "the new journal's events", 30)
        self.assertEqual(self.numbers(stream), [0, 1, 2, 3, 4] + list(range(50, 70)))
        self.assertEqual(self.kinds(stream), ["caught_up", "gap"])


if __name__ == "__main__":
    unittest.main()
