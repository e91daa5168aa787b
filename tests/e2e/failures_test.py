"""What goes wrong with a real guest, a real disk and a real operator: one clear error, nothing left, an event that says so."""
import os
import signal
import subprocess
import tempfile
import threading
import unittest
from pathlib import Path

from guest import HELLO, NOTHING, SLOW, GuestMesh, Refusals, image_variant, own_mounts
from mesh import http, program, wait_for

EATER = """services:
  web:
    image: busybox
    command:
      - sh
      - -c
      - |
        mkdir -p /var/www/cgi-bin
        echo ready > /var/www/index.html
        printf '#!/bin/sh\\ntail /dev/zero\\n' > /var/www/cgi-bin/eat
        chmod +x /var/www/cgi-bin/eat
        exec httpd -f -p 80 -h /var/www
    ports: ["80"]
"""


def flipped(data):
    """One byte of each block of the first half is another."""
    changed = bytearray(data)
    for at in range(100, len(data) // 2, 4096):
        changed[at] ^= 1
    return bytes(changed)


VARIANTS = (
    image_variant("no-init", lambda text: text + " rdinit=/nothing"),
    image_variant("hangs", lambda text: text.replace("panic=-1", "panic=0") + " rdinit=/nothing"),
    image_variant("tampered", rootfs=flipped),
    image_variant("oom-panics", lambda text: text + " sysctl.vm.panic_on_oom=1"),
)


class Panics(Refusals, unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.mesh = GuestMesh(VARIANTS)
        cls.addClassCleanup(cls.mesh.close)
        cls.folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(cls.folder.cleanup)

    def exits(self, name):
        return [event["data"] for event in self.mesh.events("--type", "vm.exited") if event["data"]["name"] == name]

    def test_while_booting(self):
        rows = [("no-init", "VFS: Unable to mount root fs"), ("tampered", "dm-verity device corrupted"), ("hangs", "VFS: Unable to mount root fs")]
        for image, said in rows:
            with self.subTest(image):
                stderr = self.refused(10, "--image", image, name=image, words=("kernel panic: " + said, "at step boot"))
                self.assertIn(f"dstack logs {image}", stderr.splitlines()[-1])
                self.assertIn("Kernel panic - not syncing", stderr, "the guest's last lines are shown")
                self.assertEqual([exit["reason"][:20] for exit in self.exits(image)], [("kernel panic: " + said)[:20]])
                self.assertIn("Kernel panic - not syncing", self.mesh.dstack("logs", image, "--no-follow").stdout, "and kept")

    def test_after_it_was_ready(self):
        compose = Path(self.folder.name) / "eater.yaml"
        compose.write_text(EATER)
        self.mesh.dstack("deploy", "-n", "eater", "-c", str(compose), "--image", "oom-panics", "--port", "auto:80", "--timeout", f"{SLOW}s", deadline=SLOW + 60)
        url = self.mesh.dstack_json("info", "eater")["data"]["url"]
        before = self.mesh.guests()
        eater = threading.Thread(target=self.ask, args=(url + "cgi-bin/eat",), daemon=True)
        eater.start()
        exits = wait_for(lambda: self.exits("eater"), "the guest panics", SLOW, 0.2)
        self.assertEqual(len(exits), 1)
        self.assertIn("kernel panic: Out of memory", exits[0]["reason"])
        self.assertTrue(exits[0]["will_restart"])
        # The VMM starts it again, on the port and the CID that it has leased.
        wait_for(lambda: http(url, timeout=5)[0] == 200, "the page is back", SLOW, 0.2)
        self.assertNotEqual(self.mesh.guests(), before)
        states = [event["data"]["to"] for event in self.mesh.events("--type", "app.state_changed") if event["subject"] == "eater"]
        self.assertIn("exited", states)
        # A guest that is shut down is told from one that panicked.
        self.mesh.dstack("stop", "eater", deadline=SLOW)
        stopped = [event["data"] for event in self.mesh.events("--type", "vm.stopped") if event["data"]["name"] == "eater"]
        self.assertEqual([stop["how"] for stop in stopped], ["shutdown"])
        self.assertEqual(len(self.exits("eater")), 1)
        self.mesh.dstack("rm", "eater", "--yes", deadline=SLOW)
        self.assertEqual(self.mesh.left(), NOTHING)

    @staticmethod
    def ask(url):
        try:
            http(url, timeout=SLOW)
        except OSError:
            pass  # the guest dies while it answers


class FullDisk(Refusals, unittest.TestCase):
    """The whole prefix lies on a small disk."""

    @classmethod
    def setUpClass(cls):
        own_mounts()
        cls.mesh = GuestMesh(disk_mib=128)
        cls.addClassCleanup(cls.mesh.close)
        cls.filler = cls.mesh.path / "filler"

    def fill(self, leave):
        disk = os.statvfs(self.mesh.path)
        with open(self.filler, "wb") as file:
            os.posix_fallocate(file.fileno(), 0, disk.f_bavail * disk.f_frsize - leave)

    def test_deploys_fail_and_work_again_when_there_is_room(self):
        pids = {service["name"]: service["pid"] for service in self.mesh.status()["services"]}
        # No room at all; not enough for an operation; for the leases, but not for the policy; and so on.
        for leave in (0, 64, 192, 384):
            with self.subTest(leave=leave):
                name = f"leave-{leave}"
                self.fill(leave * 1024)
                done = self.mesh.dstack("deploy", "-n", name, "-c", str(HELLO), "--port", "auto:80", "--timeout", "120s", check=False, deadline=SLOW)
                self.assertEqual(done.returncode, 7, done.stdout + done.stderr)
                self.assertEqual(done.stdout, "")
                errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
                self.assertEqual(len(errors), 1, done.stderr)
                self.assertRegex(errors[0], "disk is full|no space left on device")
                self.filler.unlink()
                self.assertTrue(done.stderr.splitlines()[-1].startswith("hint: "), done.stderr)
                failed = wait_for(lambda: [event for event in self.mesh.events("--type", "deploy.failed") if event["subject"] == name],
                                  "the event, as soon as there is room for it", 30)
                self.assertEqual(failed[-1]["data"]["code"], "resource_exhausted")
                wait_for(lambda: self.mesh.left() == NOTHING, "everything is given back", 30)
        self.mesh.dstack("deploy", "-n", "fits", "-c", str(HELLO), "--port", "auto:80", "--timeout", f"{SLOW}s", deadline=SLOW + 60)
        url = self.mesh.dstack_json("info", "fits")["data"]["url"]
        self.assertEqual(http(url)[0], 200)
        self.mesh.dstack("rm", "fits", "--yes", deadline=SLOW)
        self.assertEqual(self.mesh.left(), NOTHING)
        self.assertEqual({service["name"]: service["pid"] for service in self.mesh.status()["services"]}, pids, "nothing was restarted")


class Operators(unittest.TestCase):
    """Interrupted, at once, and against each other."""

    @classmethod
    def setUpClass(cls):
        cls.mesh = GuestMesh()
        cls.addClassCleanup(cls.mesh.close)

    def tearDown(self):
        for app in self.mesh.apps():
            self.mesh.dstack("rm", app["name"], "--yes", check=False, deadline=SLOW)
        self.assertEqual(self.mesh.left(), NOTHING)

    def begin(self, *arguments):
        client = subprocess.Popen([str(program("dstack")), *arguments, "--prefix", str(self.mesh.path)], stdin=subprocess.DEVNULL,
                                  stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.addCleanup(client.stdout.close)
        self.addCleanup(client.stderr.close)
        return client

    def begin_deploy(self, name):
        return self.begin("deploy", "-n", name, "-c", str(HELLO), "--port", "auto:80", "--timeout", f"{SLOW}s")

    def of(self, kind, name):
        return [event for event in self.mesh.events("--type", kind) if event["subject"] == name or event["data"].get("name") == name]

    def test_interrupted(self):
        client = self.begin_deploy("interrupted")
        wait_for(lambda: self.of("vm.started", "interrupted"), "the VM has started", SLOW)
        client.send_signal(signal.SIGINT)
        out, err = client.communicate(timeout=20)
        self.assertEqual((client.returncode, out), (130, ""))
        # Nobody is told that it stopped: it goes on, and how to see or end it is said.
        self.assertIn("goes on", err.splitlines()[-1])
        self.assertIn("dstack rm interrupted", err.splitlines()[-1])
        wait_for(lambda: self.of("deploy.succeeded", "interrupted"), "the deploy goes on without its client", SLOW)
        self.assertEqual([app["state"] for app in self.mesh.apps()], ["ready"])

    def test_two_of_one_name_are_one(self):
        first, second = self.begin_deploy("two at once"), self.begin_deploy("two at once")
        for client in (first, second):
            out, err = client.communicate(timeout=SLOW + 60)
            self.assertEqual(client.returncode, 0, out + err)
            self.assertIn("http://127.0.0.1:", out)
        self.assertEqual(len(self.of("deploy.started", "two at once")), 1)
        self.assertEqual(len(self.mesh.guests()), 1)
        self.assertEqual(len(self.mesh.leases()), 2)

    def test_two_different_of_one_name(self):
        first = self.begin_deploy("differs")
        wait_for(lambda: self.of("deploy.started", "differs"), "the first is on its way")
        second = self.mesh.dstack("deploy", "-n", "differs", "-c", str(HELLO), "--port", "auto:81", "--no-wait", check=False)
        self.assertEqual(second.returncode, 5, second.stdout + second.stderr)
        self.assertIn("hint: ", second.stderr)
        out, err = first.communicate(timeout=SLOW + 60)
        self.assertEqual(first.returncode, 0, out + err)

    def test_removed_while_it_is_deployed(self):
        for when in ("deploy.started", "vm.started", "key.released"):
            with self.subTest(when=when):
                name = "gone-" + when.replace(".", "-")
                client = self.begin_deploy(name)
                if when == "key.released":
                    before = len(self.mesh.events("--type", when))
                    wait_for(lambda: len(self.mesh.events("--type", when)) > before, when, SLOW)
                else:
                    wait_for(lambda: self.of(when, name), when, SLOW)
                removed = self.mesh.dstack("rm", name, "--yes", deadline=SLOW)
                self.assertEqual(removed.stdout, f"removed {name}\n")
                out, err = client.communicate(timeout=60)
                self.assertEqual((client.returncode, out), (5, ""), err)
                self.assertEqual(len([line for line in err.splitlines() if line.startswith("error: ")]), 1, err)
                self.assertIn("being removed", err)
                self.assertEqual(self.mesh.left(), NOTHING)


if __name__ == "__main__":
    unittest.main()
