"""The main job, end to end: deploy, reach, survive, replay, stop, start, remove, deny."""
import json
import os
import signal
import tempfile
import unittest
from pathlib import Path

from guest import HELLO, GuestMesh
from mesh import alive, free_port, http, processes_of, wait_for

PAGE = b"hello from a dstack development guest"
SLOW = 300  # seconds: an emulated guest on a busy machine


def answers(url):
    status, body = http(url, timeout=5)
    return status == 200 and PAGE in body


def guests(mesh):
    return [pid for pid, cmdline in processes_of(f"{mesh.path}/var/lib/dstack/vmm-local/vms/").items() if "qemu-system" in cmdline]


def types(events):
    return [event["type"] for event in events]


class Spine(unittest.TestCase):
    """One mesh for all; each test leaves it with the services ready and no app."""

    @classmethod
    def setUpClass(cls):
        cls.mesh = GuestMesh()
        cls.addClassCleanup(cls.mesh.close)

    def tearDown(self):
        for app in self.apps():
            self.mesh.dstack("rm", app["name"], "--yes", check=False, deadline=SLOW)

    def apps(self):
        return self.mesh.dstack_json("ls")["data"]["apps"]

    def leases(self):
        return self.mesh.dstack_json("leases")["data"]["leases"]

    def deploy(self, name="hello", compose=HELLO, *more, check=True):
        return self.mesh.dstack("deploy", "-n", name, "-c", str(compose), "--port", "auto:80", "--timeout", f"{SLOW}s", "--json", *more, check=check, deadline=SLOW + 60)

    def url(self, name="hello"):
        return self.mesh.dstack_json("info", name)["data"]["url"]

    def test_page_survives_its_vmm_and_the_story_is_kept(self):
        self.deploy()
        url = self.url()
        wait_for(lambda: answers(url), "the page", SLOW)
        self.assertEqual([app["state"] for app in self.apps()], ["ready"])
        before = guests(self.mesh)
        self.assertEqual(len(before), 1)

        vmm = self.mesh.of("vmm-local")["pid"]
        os.kill(vmm, signal.SIGKILL)
        self.assertTrue(answers(url), "the page answers while its VMM is gone")
        wait_for(lambda: "vm.adopted" in types(self.mesh.events()), "the VMM has adopted the guest", 60)
        self.assertEqual(guests(self.mesh), before)
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
        self.assertEqual(guests(self.mesh), before)
        self.assertTrue(answers(url))

        self.stop_start_remove(url)

    def stop_start_remove(self, url):
        self.mesh.dstack("stop", "hello", deadline=SLOW)
        wait_for(lambda: guests(self.mesh) == [], "the guest has ended", 60)
        self.assertEqual([app["state"] for app in self.apps()], ["stopped"])
        self.assertNotEqual(self.leases(), [], "a stopped app keeps its port")
        self.mesh.dstack("start", "hello", "--timeout", f"{SLOW}s", deadline=SLOW + 30)
        wait_for(lambda: answers(url), "the page after start", SLOW)
        self.assertIn("web", self.mesh.dstack("logs", "hello", "--no-follow").stdout)
        self.mesh.dstack("rm", "hello", "--yes", deadline=SLOW)
        self.assertEqual(self.apps(), [])
        self.assertEqual(self.leases(), [])
        wait_for(lambda: guests(self.mesh) == [], "the guest is gone", 60)
        self.assertEqual(self.mesh.dstack("info", "hello", check=False).returncode, 3)

    def test_not_allowed_is_denied_by_name(self):
        done = self.deploy("denied", HELLO, "--no-allow", check=False)
        self.assertEqual(done.returncode, 9, done.stdout + done.stderr)
        error = json.loads(done.stdout)["error"]
        self.assertIn("rule", error["message"])
        decisions = [event for event in self.mesh.events("--type", "auth.decided") if not event["data"]["allowed"]]
        self.assertTrue(decisions, "the decision is an event")
        self.assertIn(decisions[-1]["data"]["rule"], error["message"])
        self.assertEqual(self.leases(), [])
        wait_for(lambda: guests(self.mesh) == [], "the guest is gone", 60)

    def test_unknown_container_image_is_a_boot_error_that_names_those_there(self):
        with tempfile.NamedTemporaryFile("w", suffix=".yaml") as compose:
            compose.write("services:\n  web:\n    image: nowhere/nothing:9\n")
            compose.flush()
            done = self.deploy("unknown", compose.name, check=False)
        self.assertNotEqual(done.returncode, 0)
        message = json.loads(done.stdout)["error"]["message"]
        self.assertIn("nowhere/nothing:9", message)
        self.assertIn("busybox", message)
        self.assertEqual(self.leases(), [])
        self.assertIn("deploy.failed", types(self.mesh.events()))


class BadInput(unittest.TestCase):
    """No guest gets as far as to boot: each refusal has its exit code, gives back what it had leased, and is an event."""

    @classmethod
    def setUpClass(cls):
        cls.mesh = GuestMesh()
        cls.addClassCleanup(cls.mesh.close)
        cls.folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(cls.folder.cleanup)

    def refused(self, codes, name="app", text=None, *more):
        compose = HELLO
        if text is not None:
            compose = Path(self.folder.name) / "compose.yaml"
            compose.write_text(text)
        ports = () if "--port" in more else ("--port", "auto:80")
        done = self.mesh.dstack("deploy", "-n", name, "-c", str(compose), *ports, "--timeout", "60s", "--json", *more, check=False)
        self.assertIn(done.returncode, codes, done.stdout + done.stderr)
        document = json.loads(done.stdout)
        self.assertEqual(document["schema"], "dstack.error/v1")
        message = document["error"]["message"]
        self.assertTrue(message and message[0] == message[0].lower(), message)
        self.assertEqual(self.mesh.dstack_json("leases")["data"]["leases"], [])
        self.assertEqual(guests(self.mesh), [])
        return message

    def test_compose_files(self):
        for text in ("{{{ no yaml", "version: 3\n", "services: {}\n", "services:\n  web: 5\n", "# " + "x" * (256 * 1024) + "\nservices:\n  web:\n    image: busybox\n"):
            with self.subTest(text[:30]):
                self.refused((2,), "app", text)

    def test_names(self):
        for name in ("a b", "../x", "a;b", "", "x" * 300):
            with self.subTest(name):
                self.refused((2,), name)

    def test_taken_port(self):
        import socket
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = taken.getsockname()[1]
            before = len(self.mesh.events())
            self.refused((5,), "app", None, "--port", f"{port}:80")
            self.assertGreater(len(self.mesh.events()), before, "the refusal is an event")

    def test_unknown_guest_image(self):
        message = self.refused((2, 3), "app", None, "--image", "no-such-image")
        self.assertIn("no-such-image", message)

    def test_no_vmm(self):
        config = self.mesh.path / "etc/dstack/vmm-local.toml"
        good = config.read_text()
        config.write_text("nonsense = 1\n")
        os.kill(self.mesh.of("vmm-local")["pid"], signal.SIGKILL)
        wait_for(lambda: self.mesh.of("vmm-local")["state"] == "failed", "the VMM is not restarted", 30)
        try:
            message = self.refused((3,), "app")  # not running
            self.assertIn("vmm", message.lower())
            self.assertIn("deploy.failed", types(self.mesh.events()))
        finally:
            config.write_text(good)
            self.mesh.up()


if __name__ == "__main__":
    unittest.main()
