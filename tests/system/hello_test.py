"""An app under the units: deployed by an operator, its guest outlives the VMM, its console is collected by another user."""
import json
import sys
import unittest
from pathlib import Path

from container import TOP, Container, wait_for

sys.path.insert(0, str(TOP / "tests/e2e"))
from guest import HELLO, SLOW, guest_files

PAGE = "hello from a dstack development guest"


class Hello(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        files = guest_files()
        cls.machine = Container([(files / "images", "/var/lib/dstack/images"), (files / "oci", "/var/lib/dstack/oci"), (HELLO.parent, "/srv/hello")])
        cls.addClassCleanup(cls.machine.close)
        run = cls.machine.run
        run("systemd-sysusers")
        run("systemd-tmpfiles", "--create", check=False)  # the images are mounted read-only here
        run("useradd", "-m", "-G", "dstack", "operator1")
        digest = next(Path(files / "images").glob("*/digest.txt")).read_text().strip()
        # Which images may have keys is said before the first start.
        run("install", "-d", "-o", "dstack-auth", "-g", "dstack-auth", "-m", "0700", "/var/lib/dstack/auth")
        cls.machine.write("/var/lib/dstack/auth/auth-allowlist.json", json.dumps({"osImages": ["0x" + digest.removeprefix("0x")], "apps": {}}))
        run("chown", "dstack-auth:dstack-auth", "/var/lib/dstack/auth/auth-allowlist.json")
        run("systemctl", "daemon-reload")
        run("systemctl", "enable", "dstack.target", "dstack-vmm-local.socket", "dstack-vmm-local.service", "dstack-kms-local.service")
        run("systemctl", "start", "dstack.target", deadline=120)

    def dstack(self, *words, check=True, deadline=60):
        return self.machine.run("dstack", *words, user="operator1", check=check, deadline=deadline)

    def answers(self):
        url = json.loads(self.dstack("info", "hello", "--json").stdout)["data"]["url"]
        return PAGE in self.machine.run("curl", "-s", "--max-time", "5", url, check=False).stdout

    def guests(self):
        return self.machine.run("pgrep", "-f", "qemu-system.*/vmm-local/vms/", check=False).stdout.split()

    def run(self, result=None):
        """With the journal when something failed."""
        before = len(result.failures) + len(result.errors)
        super().run(result)
        if len(result.failures) + len(result.errors) > before:
            print(f"the journal:\n{self.machine.journal(120)}")

    def test_a_guest_outlives_its_vmm(self):
        done = self.dstack("deploy", "-n", "hello", "-c", "/srv/hello/docker-compose.yaml", "--port", "auto:80", "--timeout", f"{SLOW}s", check=False, deadline=SLOW + 60)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        self.assertTrue(self.answers())
        guests = self.guests()
        self.assertEqual(len(guests), 1)
        # The console belongs to the VMM's user, and dstack-logs has it.
        wait_for(lambda: self.dstack("logs", "hello", check=False).stdout.strip(), "the console is collected", 60, 0.2)

        old = self.machine.show("dstack-vmm-local.service", "MainPID")["MainPID"]
        self.machine.run("systemctl", "restart", "dstack-vmm-local.service")
        self.assertNotEqual(self.machine.show("dstack-vmm-local.service", "MainPID")["MainPID"], old)
        self.assertEqual(self.guests(), guests, "the guest goes on")
        wait_for(lambda: "vm.adopted" in self.dstack("events", "--from", "0", "--no-follow", "--json").stdout, "the next VMM has adopted it", 60, 0.2)
        self.assertTrue(self.answers())

        pid = self.machine.show("dstack-vmm-local.service", "MainPID")["MainPID"]
        self.machine.run("kill", "-9", pid)
        wait_for(lambda: self.machine.show("dstack-vmm-local.service", "MainPID")["MainPID"] not in ("0", pid), "the VMM is back", 60, 0.1)
        self.assertEqual(self.guests(), guests)
        self.assertTrue(self.answers())

        self.dstack("rm", "hello", "--yes", deadline=120)
        wait_for(lambda: self.guests() == [], "the guest has ended", 60, 0.2)


if __name__ == "__main__":
    unittest.main()
