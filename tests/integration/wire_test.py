"""Golden lines: what bus/README.md says goes over the wire, literally, between the broker and a peer that knows no protocol."""
import json
import os
import re
import subprocess
import unittest

from bus_test import Probe
from mesh import TOP, Prefix, need, wait_for

PYTHON = "/usr/bin/python3"  # the distribution's: it has python3-zmq
ID = "0192f0c0-0000-7000-8000-000000000001"
OTHER = "0192f0c0-0000-7000-8000-000000000002"
DATA = '{"vm":"v1","state":"x"}'


def setUpModule():
    need(subprocess.run([PYTHON, "-c", "import zmq"], capture_output=True).returncode == 0, "no pyzmq: install python3-zmq")


class Peer(Probe):
    def __init__(self, directory, socket="commands"):
        super().__init__([PYTHON, str(TOP / "tests/integration/raw_peer.py"), str(directory), socket], stdin=subprocess.PIPE)

    def say(self, *requests):
        """One message; a request is a list of fields."""
        self.process.stdin.write(json.dumps(["\n".join(fields) for fields in requests]) + "\n")
        self.process.stdin.flush()

    def kill(self):
        super().kill()
        self.process.stdin.close()


class WireTest(unittest.TestCase):
    def setUp(self):
        self.prefix = Prefix()
        self.addCleanup(self.prefix.close)
        journal = self.prefix.state("bus") / "journal.db"
        python = os.path.realpath(PYTHON)
        self.broker = self.prefix.start("bus", f'[bus]\ndirectory = "{self.prefix.bus}"\njournal = "{journal}"\n\n'
                                        f'[identity.services]\nvmm-local = "exe:{python}"\n')
        self.peer = Peer(self.prefix.bus)
        self.addCleanup(self.peer.kill)
        self.read = 0

    def answer(self):
        """The fields of the next message that came; the tenth is all the rest."""
        wait_for(lambda: len(self.peer.lines) > self.read, "an answer")
        self.read += 1
        frames = json.loads(self.peer.lines[self.read - 1])
        self.assertEqual(1, len(frames), "an answer is one frame")
        return frames[0].split("\n", 9)

    def expect(self, sent, *patterns):
        """Says the fields; the answer's fields match the patterns (of the whole field), one by one."""
        self.peer.say(sent)
        fields = self.answer()
        self.assertEqual(len(patterns), len(fields), fields)
        for pattern, field in zip(patterns, fields):
            self.assertRegex(field, re.compile(f"(?:{pattern})\\Z", re.S), fields)
        return fields

    def hello(self):
        return self.expect(["1", "hello", "vmm-local", "9"], "1", "welcome", r"\d+", r"\d+", r"\d+\.\d+\.\d+", "vmm-local")

    def event(self, name=ID, kind="vm.ready", data=DATA, severity="info"):
        return [name, kind, "v1", severity, "1700000000123", "", data]

    def test_hello_ping_bye(self):
        self.hello()
        self.expect(["1", "ping"], "1", "pong", r"\d+", "known")
        self.expect(["1", "bye"], "1", "bye")
        self.expect(["1", "ping"], "1", "pong", r"\d+", "unknown")

    def test_another_name_is_refused(self):
        fields = self.expect(["1", "hello", "auth", "9"], "1", "refused", "permission_denied", r"\{.*\}")
        self.assertEqual({"message", "hint", "details"}, set(json.loads(fields[3])))

    def test_another_version_is_refused(self):
        self.expect(["2", "hello", "", "9"], "1", "refused", "invalid_argument", r"\{.*\}")

    def test_publish_and_read(self):
        epoch = self.hello()[2]
        cursor = self.expect(["1", "publish", *self.event()], "1", "published", ID, epoch + r":\d+")[3]
        again = self.expect(["1", "publish", *self.event()], "1", "published", ID, epoch + r":\d+")[3]
        self.assertEqual(cursor, again, "the same id is one event")
        fields = self.expect(["1", "read", "c7", "0", "1000", '{"type":"vm."}'], "1", "events", "c7", epoch, r"\d+", r"\d+", "0", "0", "", r".*\n")
        self.assertEqual(1, fields[9].count("\n"))
        self.assertEqual({"specversion": "1.0", "id": ID, "source": "/dstack/vmm-local", "type": "vm.ready", "subject": "v1",
                          "time": "2023-11-14T22:13:20.123Z", "datacontenttype": "application/json", "severity": "info",
                          "data": json.loads(DATA), "sequence": cursor}, json.loads(fields[9]))

    def test_several_requests_in_one_message(self):
        self.hello()
        self.peer.say(["1", "publish", *self.event(ID)], ["1", "publish", *self.event(OTHER)], ["1", "ping"])
        acknowledged = {}
        while len(acknowledged) < 2:
            fields = self.answer()
            if fields[1] == "pong":
                continue
            self.assertEqual(["1", "published"], fields[:2])
            acknowledged.update(zip(fields[2::2], fields[3::2]))
        numbers = [int(acknowledged[name].split(":")[1]) for name in (ID, OTHER)]
        self.assertEqual(numbers[0] + 1, numbers[1])

    def test_data_over_several_lines_is_one_line_of_a_page(self):
        self.hello()
        self.expect(["1", "publish", *self.event(data='{\n "vm": "v1",\r\n "state": "a\\nb"\n}')], "1", "published", ID, r"\d+:\d+")
        fields = self.expect(["1", "read", "c7", "0", "1000", '{"type":"vm."}'], "1", "events", "c7", r"\d+", r"\d+", r"\d+", "0", "0", "", r".*\n")
        self.assertEqual(1, fields[9].count("\n"))
        self.assertEqual({"vm": "v1", "state": "a\nb"}, json.loads(fields[9])["data"])

    def test_what_is_no_event(self):
        self.hello()
        for wrong in (self.event(kind="vm.unheard_of"), self.event(data="[]"), self.event(data='{"a":1'), self.event(severity="loud"),
                      self.event(data='{"a":1} x'), self.event(name="x" * 65)):
            with self.subTest(wrong):
                self.expect(["1", "publish", *wrong], "1", "unpublished", re.escape(wrong[0]), "invalid_argument", r"\{.*\}")
        self.expect(["1", "publish", *self.event(kind="lease.granted")], "1", "unpublished", ID, "permission_denied", r"\{.*\}")
        self.expect(["1", "publish", ID, "vm.ready"], "1", "refused", "invalid_argument", r"\{.*\}")

    def test_what_is_no_request(self):
        for wrong in (["1"], [""], ["1", ""], ["1", "PING"], ["1", "ping", "x"], ["1", "hello", ""], ["1", "read", "c", "0", "1"], ["1", "welcome", "", "", "", ""]):
            with self.subTest(wrong):
                self.expect(wrong, "1", "refused", "invalid_argument", r"\{.*\}")

    def test_live_events(self):
        self.hello()
        live = Peer(self.prefix.bus, "events")
        self.addCleanup(live.kill)
        wait_for(lambda: live.lines, "the position, at once")
        position = json.loads(live.lines[0])
        self.assertRegex(position[0], r"\Ah\n\d+\n\d+\Z")
        cursor = self.expect(["1", "publish", *self.event()], "1", "published", ID, r"\d+:\d+")[3]
        wait_for(lambda: any("e.vm.ready" in line for line in live.lines), "the event")
        [[event]] = [json.loads(line) for line in live.lines if "e.vm.ready" in line]
        topic, sequence, envelope = event.split("\n")
        self.assertEqual(("e.vm.ready", cursor.split(":")[1], cursor), (topic, sequence, json.loads(envelope)["sequence"]))

    def test_calls(self):
        self.hello()
        self.expect(["1", "call", "a", "no.such", "1", "", "", "{}"], "1", "result", "a", "not_found", r"\{.*\}")
        self.expect(["1", "call", "b", "lease.reserve", "1", "", "", "{}"], "1", "result", "b", "deadline_exceeded", r"\{.*\}")
        self.expect(["1", "read", "c", "0", "0", "{}"], "1", "reading_failed", "c", "invalid_argument", r"\{.*\}")
        self.expect(["1", "read", "c", "7:x", "10", "{}"], "1", "reading_failed", "c", "invalid_argument", r"\{.*\}")


if __name__ == "__main__":
    unittest.main()
