"""The broker's journal when the disk fails, the file is damaged, its end is gone, or it is full by the rules."""
import json
import os
import sqlite3
import subprocess
import unittest

from bus_test import Bus
from mesh import TOP, Prefix, wait_for


class JournalTest(unittest.TestCase):
    def setUp(self):
        self.prefix = Prefix()
        self.addCleanup(self.prefix.close)

    def bus(self, settings="", environment=None):
        bus = Bus(self.prefix, settings, environment)
        self.addCleanup(bus.close)
        return bus

    def publish(self, bus, first, count):
        """Numbers that were acknowledged, and the errors of the others."""
        lines = bus.run("vmm-local", "publish", "vm.ready", str(count), str(first), deadline=60)
        return [int(line.split()[1]) for line in lines if line.startswith("published ")], [line for line in lines if line.startswith("error ")]

    def until_caught_up(self, bus):
        probe = bus.start("operator", "subscribe", "0")
        probe.expect(lambda lines: "caught_up" in lines or any(line.startswith("error") for line in lines), "caught up", 60)
        probe.kill()
        return probe.lines

    def replay(self, bus):
        """(numbers of the events, lines that are gaps or errors), from the beginning until caught up."""
        lines = self.until_caught_up(bus)
        numbers = [json.loads(line.split(" ", 4)[4])["number"] for line in lines if line.startswith("event") and " vm.ready " in line]
        return numbers, [line for line in lines if line.startswith(("gap", "error"))]

    def test_a_disk_that_fails(self):
        library = self.prefix.path / "faults.so"
        subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", str(library), str(TOP / "tests/integration/faults.c"), "-ldl"], check=True)
        plan = self.prefix.path / "plan"
        plan.write_text("none")
        bus = self.bus(environment={"LD_PRELOAD": str(library), "FAULT_PATH": "journal.db", "FAULT_PLAN": str(plan)})
        acknowledged, number = [], 0
        for fault, code in (("enospc", "resource_exhausted"), ("short", "resource_exhausted"), ("eio", "data_loss"), ("sync", "data_loss")):
            with self.subTest(fault):
                good, errors = self.publish(bus, number, 5)
                self.assertEqual((5, []), (len(good), errors))
                acknowledged += good
                plan.write_text(fault)
                good, errors = self.publish(bus, number + 5, 1)
                self.assertEqual([], good, "acknowledged without being on the disk")
                self.assertIn(code, errors[0])
                plan.write_text("none")
                good, errors = self.publish(bus, number + 6, 5)
                self.assertEqual((5, []), (len(good), errors), "does not recover when the disk is well again")
                acknowledged += good
                number += 11
        recovered = [line for line in self.until_caught_up(bus) if " bus.journal_recovered " in line]
        self.assertEqual(4, len(recovered), "each time an event says that it takes events again")
        bus.restart()
        numbers, others = self.replay(bus)
        self.assertEqual([], others)
        self.assertEqual(acknowledged, [n for n in numbers if n in set(acknowledged)], "exactly once and in order")
        self.assertEqual(len(numbers), len(set(numbers)))

    def test_damage_in_the_middle_names_the_place(self):
        bus = self.bus()
        self.publish(bus, 0, 50)
        bus.broker.stop()
        with sqlite3.connect(bus.journal) as db:
            db.execute("UPDATE events SET envelope = replace(envelope, '\"number\":7', '\"number\":8') WHERE envelope LIKE '%\"number\":7%' AND type = 'vm.ready'")
            place = db.execute("SELECT min(sequence) FROM events WHERE type = 'vm.ready' AND envelope LIKE '%\"number\":8%'").fetchone()[0]
        db.close()
        with self.assertRaisesRegex(AssertionError, f"event {place} is not what was written"):
            bus.broker.start()

    def test_a_lost_tail_is_a_gap_and_its_sequences_are_not_used_again(self):
        bus = self.bus()
        self.publish(bus, 0, 20)
        bus.broker.stop()
        with sqlite3.connect(bus.journal) as db:
            last = db.execute("SELECT max(sequence) FROM events").fetchone()[0]
            db.execute("DELETE FROM events WHERE sequence > ?", (last - 5,))
        db.close()
        bus.broker.start()
        good, errors = self.publish(bus, 100, 3)
        self.assertEqual((3, []), (len(good), errors))
        lines = self.until_caught_up(bus)
        gaps = [line for line in lines if line.startswith("gap")]
        self.assertEqual(1, len(gaps), gaps)
        self.assertIn(f"{last - 4} {last} ", gaps[0] + " ")
        self.assertTrue(any(" bus.gap " in line for line in lines), "an event says so")

    def test_retention_by_size(self):
        bus = self.bus("max_megabytes = 1\n")
        total = 0
        for first in range(0, 8000, 2000):
            good, errors = self.publish(bus, first, 2000)
            self.assertEqual([], errors)
            total += len(good)

        def kept():
            numbers, others = self.replay(bus)
            return (numbers, others) if others and len(numbers) < total else None

        numbers, others = wait_for(kept, "old events are removed", 30)
        self.assertTrue(others[0].startswith("gap"), others)
        self.assertEqual(numbers, sorted(numbers))
        self.assertEqual(numbers[-1], 7999)


if __name__ == "__main__":
    unittest.main()
