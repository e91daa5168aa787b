"""The main job, end to end: deploy, reach, survive, replay, stop, start, remove, deny."""
import json
import os
import signal
import socket
import tempfile
import unittest
from pathlib import Path

from guest import HELLO, SLOW, GuestMesh, Refusals
from mesh import http, wait_for

PAGE = b"hello from a dstack development guest"


def answers(url):
    status, body = http(url, timeout=5)
    return status == 200 and PAGE in body


def types(events):
    return [event["type"] for event in events]


class Spine(unittest.TestCase):
    """One mesh for all; each test leaves it with the services ready and no app."""

    @classmethod
    def setUpClass(cls):
        cls.mesh = GuestMesh()
        cls.addClassCleanup(cls.mesh.close)

    def tearDown(self):
        for app in self.mesh.apps():
            self.mesh.dstack("rm", app["name"], "--yes", check=False, deadline=SLOW)

    def deploy(self, name="hello", compose=HELLO, *more, check=True):
        return self.mesh.dstack("deploy", "-n", name, "-c", str(compose), "--port", "auto:80", "--timeout", f"{SLOW}s", "--json", *more, check=check, deadline=SLOW + 60)

    def url(self, name="hello"):
        return self.mesh.dstack_json("info", name)["data"]["url"]

    def test_page_survives_its_vmm_and_the_story_is_kept(self):
        self.deploy()
        url = self.url()
        wait_for(lambda: answers(url), "the page", SLOW)
        self.assertEqual([app["state"] for app in self.mesh.apps()], ["ready"])
        before = self.mesh.guests()
        self.assertEqual(len(before), 1)

        vmm = self.mesh.of("vmm-local")["pid"]
        os.kill(vmm, signal.SIGKILL)
        self.assertTrue(answers(url), "the page answers while its VMM is gone")
        wait_for(lambda: "vm.adopted" in types(self.mesh.events()), "the VMM has adopted the guest", 60)
        self.assertEqual(self.mesh.guests(), before)
        self.assertTrue(answers(url))

        story = self.mesh.events()
        for earlier, later in [("deploy.started", "lease.granted"), ("lease.granted", "vm.created"), ("vm.created", "vm.started"),
                               ("vm.started", "auth.decided"), ("auth.decided", "key.released"), ("key.released", "vm.ready"), ("vm.ready", "deploy.succeeded")]:
            self.assertLess(types(story).index(earlier), types(story).index(later), f"{earlier} before {later}")

        # Everything restarts, and the same story is told again.
        old = {s["name"]: s["pid"] for s in self.mesh.status()["services"] if s["name"] != "kms-local"}
        for pid in old.values():
            os.kill(pid, signal.SIGKILL)
        wait_for(lambda: all(s["state"] == "ready" and s["pid"] != old[s["name"]] for s in self.mesh.status()["services"] if s["name"] in old), "all services are back", 60)
        again = wait_for(self.mesh.events, "the events are told again", 30)
        self.assertEqual([event["id"] for event in again[:len(story)]], [event["id"] for event in story])
        self.assertEqual(self.mesh.guests(), before)
        self.assertTrue(answers(url))

        self.stop_start_remove(url)

    def stop_start_remove(self, url):
        self.mesh.dstack("stop", "hello", deadline=SLOW)
        wait_for(lambda: self.mesh.guests() == [], "the guest has ended", 60)
        self.assertEqual([app["state"] for app in self.mesh.apps()], ["stopped"])
        self.assertNotEqual(self.mesh.leases(), [], "a stopped app keeps its port")
        self.mesh.dstack("start", "hello", "--timeout", f"{SLOW}s", deadline=SLOW + 30)
        wait_for(lambda: answers(url), "the page after start", SLOW)
        self.assertIn("web", self.mesh.dstack("logs", "hello", "--no-follow").stdout)
        self.mesh.dstack("rm", "hello", "--yes", deadline=SLOW)
        self.assertEqual(self.mesh.apps(), [])
        self.assertEqual(self.mesh.leases(), [])
        wait_for(lambda: self.mesh.guests() == [], "the guest is gone", 60)
        self.assertEqual(self.mesh.dstack("info", "hello", check=False).returncode, 3)

    def test_not_allowed_is_denied_by_name(self):
        done = self.deploy("denied", HELLO, "--no-allow", check=False)
        self.assertEqual(done.returncode, 9, done.stdout + done.stderr)
        error = json.loads(done.stdout)["error"]
        self.assertIn("rule", error["message"])
        decisions = [event for event in self.mesh.events("--type", "auth.decided") if not event["data"]["allowed"]]
        self.assertTrue(decisions, "the decision is an event")
        self.assertIn(decisions[-1]["data"]["rule"], error["message"])
        self.assertEqual(self.mesh.leases(), [])
        wait_for(lambda: self.mesh.guests() == [], "the guest is gone", 60)


class BadInput(Refusals, unittest.TestCase):
    """No guest gets as far as to boot: each refusal has its exit code, gives back what it had leased, and is an event."""

    @classmethod
    def setUpClass(cls):
        cls.mesh = GuestMesh()
        cls.addClassCleanup(cls.mesh.close)
        cls.folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(cls.folder.cleanup)

    def test_compose_files(self):
        compose = Path(self.folder.name) / "compose.yaml"
        rows = [("{{{ no yaml", "compose"), ("version: 3\n", "services"), ("services: {}\n", "services"), ("services:\n  web: 5\n", "web"),
                ("# " + "x" * (256 * 1024) + "\nservices:\n  web:\n    image: busybox\n", "256 KiB")]
        for text, word in rows:
            with self.subTest(text[:30]):
                compose.write_text(text)
                self.refused(2, compose=compose, words=(word,))

    def test_names(self):
        for name in (" a", "../x", "a;b", "x" * 300):
            with self.subTest(name):
                self.refused(2, name=name, recorded=False)
                self.assertIn("deploy.failed", types(self.mesh.events()))
        done = self.mesh.dstack("deploy", "-n", "", "-c", str(HELLO), check=False)
        self.assertEqual(done.returncode, 2, done.stderr)

    def test_taken_port(self):
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = taken.getsockname()[1]
            self.refused(5, port=f"{port}:80", words=(str(port),))

    def test_unknown_guest_image(self):
        stderr = self.refused(3, "--image", "no-such-image", words=("no-such-image", "at step image"))
        self.assertIn("dstack-dev-", stderr.splitlines()[-1], "the hint names those that are there")

    def test_unknown_container_image(self):
        compose = Path(self.folder.name) / "unknown.yaml"
        compose.write_text("services:\n  web:\n    image: nowhere/nothing:9\n")
        self.refused(10, compose=compose, timeout=f"{SLOW}s", words=("nowhere/nothing:9", "busybox", "at step boot"))

    def test_no_vmm(self):
        config = self.mesh.path / "etc/dstack/vmm-local.toml"
        good = config.read_text()
        config.write_text("nonsense = 1\n")
        os.kill(self.mesh.of("vmm-local")["pid"], signal.SIGKILL)
        wait_for(lambda: self.mesh.of("vmm-local")["state"] == "failed", "the VMM is not restarted", 30)
        try:
            self.refused(3, words=("VMM",))  # not running
        finally:
            config.write_text(good)
            self.mesh.up()
        self.mesh.dstack("deploy", "-n", "app", "-c", str(HELLO), "--port", "auto:80", "--timeout", f"{SLOW}s", deadline=SLOW + 60)
        self.mesh.dstack("rm", "app", "--yes", deadline=SLOW)


if __name__ == "__main__":
    unittest.main()
