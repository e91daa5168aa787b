"""The units as files: systemd accepts them, their exposure is bounded, every daemon has one, and what is open says why."""
import os
import re
import shutil
import subprocess
import tempfile
import unittest
from pathlib import Path

from container import BUILD, DAEMONS, TOP, need, program

UNITS = BUILD / "deploy"
EXPOSURE = {"vmm-local": 40}  # tenths; it drives hardware
MOST = 15
# What each daemon has, unless the unit gives a reason right above the line ("# Open: ...").
CLOSED = {"NoNewPrivileges": "yes", "CapabilityBoundingSet": "", "AmbientCapabilities": "", "ProtectSystem": "strict", "ProtectHome": "yes",
          "PrivateTmp": "yes", "PrivateDevices": "yes", "DevicePolicy": "closed", "PrivateUsers": "yes", "PrivateIPC": "yes", "PrivateNetwork": "yes",
          "IPAddressDeny": "any", "ProtectProc": "invisible", "ProcSubset": "pid", "ProtectHostname": "yes", "ProtectClock": "yes",
          "ProtectKernelTunables": "yes", "ProtectKernelModules": "yes", "ProtectKernelLogs": "yes", "ProtectControlGroups": "yes",
          "RestrictNamespaces": "yes", "RestrictRealtime": "yes", "RestrictSUIDSGID": "yes", "RemoveIPC": "yes", "LockPersonality": "yes",
          "MemoryDenyWriteExecute": "yes", "KeyringMode": "private", "SystemCallArchitectures": "native"}
CALLS = ["@system-service", "~@privileged @resources"]
BOUNDED = ["WatchdogSec", "Restart", "MemoryMax", "TasksMax", "StateDirectory", "User", "TimeoutStartSec", "TimeoutStopSec"]


def settings(text):
    """[(name, value, the comment right above)]"""
    out, comment = [], ""
    for line in text.splitlines():
        if line.startswith("#"):
            comment += line + "\n"
        elif "=" in line:
            name, _, value = line.partition("=")
            above = out[-1][2] if out and out[-1][0] == name and not comment else comment  # one reason for a list of lines
            out.append((name, value, above))
            comment = ""
        else:
            comment = ""
    return out


def unit_file(name):
    return TOP / f"deploy/systemd/dstack-{name}.service.in"


def programs_of_the_tree():
    """Every program whose main calls run_daemon, but the guest's, by its folder."""
    mains = [TOP / "bus/broker/main.cpp", *sorted((TOP / "services").glob("*/main.cpp"))]
    found = set()
    for main in mains:
        name = re.search(r'\{"dstack-([a-z-]+)"', main.read_text())
        if name and "run_daemon" in main.read_text() and name.group(1) != "guest-agent":
            found.add(name.group(1))
    return found


class Units(unittest.TestCase):
    def test_every_daemon_has_a_unit_and_every_unit_a_daemon(self):
        self.assertEqual(programs_of_the_tree(), set(DAEMONS))
        files = {path.name.removeprefix("dstack-").removesuffix(".service.in") for path in (TOP / "deploy/systemd").glob("*.service.in")}
        self.assertEqual(files, set(DAEMONS))

    def test_every_daemon_has_a_user_and_the_bus_knows_it(self):
        users = set(re.findall(r"^u (\S+)", (TOP / "deploy/sysusers.d/dstack.conf").read_text(), re.M))
        known = dict(re.findall(r'^(\S+) = "user:(\S+)"', (TOP / "deploy/etc/dstack/bus.toml").read_text(), re.M))
        for name in DAEMONS:
            user = [value for key, value, _ in settings(unit_file(name).read_text()) if key == "User"]
            self.assertEqual(user, [f"dstack-{name}"])
            self.assertIn(user[0], users)
            if name != "bus":
                self.assertEqual(known.get(name), user[0])

    def test_what_is_open_says_why(self):
        for name in DAEMONS:
            found = settings(unit_file(name).read_text())
            for key, closed in CLOSED.items():
                with self.subTest(unit=name, directive=key):
                    lines = [(value, comment) for k, value, comment in found if k == key]
                    self.assertEqual(len(lines), 1, "each unit says it once")
                    self.assertTrue(lines[0][0] == closed or "# Open: " in lines[0][1], f"{key}={lines[0][0]} without a reason")
            calls = [(value, comment) for k, value, comment in found if k == "SystemCallFilter"]
            self.assertTrue([value for value, _ in calls] == CALLS or all("# Open: " in comment for _, comment in calls), f"{name}: SystemCallFilter")

    def test_every_unit_is_bounded_and_watched(self):
        for name in DAEMONS:
            keys = {key: value for key, value, _ in settings(unit_file(name).read_text())}
            self.assertEqual(keys["Type"], "notify")
            for key in BOUNDED:
                with self.subTest(unit=name, directive=key):
                    self.assertTrue(keys.get(key))

    def test_shipped_configurations_are_accepted(self):
        for name in DAEMONS:
            with self.subTest(daemon=name):
                done = subprocess.run([program(name), "--config", TOP / f"deploy/etc/dstack/{name}.toml", "--check-config"], capture_output=True, text=True, timeout=60)
                self.assertEqual(done.returncode, 0, done.stdout + done.stderr)

    def test_exposure(self):
        need(shutil.which("systemd-analyze"), "systemd-analyze is not installed")
        for name in DAEMONS:
            with self.subTest(unit=name):
                threshold = EXPOSURE.get(name, MOST)
                done = subprocess.run(["systemd-analyze", "security", "--offline=true", "--no-pager", f"--threshold={threshold}", UNITS / f"dstack-{name}.service"], capture_output=True, text=True, timeout=60)
                level = re.search(r"exposure level for \S+: ([0-9.]+)", done.stdout)
                self.assertTrue(level, done.stdout + done.stderr)
                self.assertEqual(done.returncode, 0, f"exposure {level.group(1)}, at most {threshold / 10}")
                print(f"note: exposure of dstack-{name}: {level.group(1)}")

    def test_systemd_accepts_them(self):
        need(shutil.which("systemd-analyze"), "systemd-analyze is not installed")
        with tempfile.TemporaryDirectory() as folder:
            for path in sorted({*UNITS.glob("*.service"), *(TOP / "deploy/systemd").glob("*.socket"), *(TOP / "deploy/systemd").glob("*.target")}):
                # The programs where they were built, since nothing is installed here.
                text = re.sub(r"^ExecStart=\S*/dstack-([a-z-]+) ", lambda m: f"ExecStart={program(m.group(1))} ", path.read_text(), flags=re.M)
                (Path(folder) / path.name).write_text(text)
            names = sorted(os.listdir(folder))
            self.assertEqual(len(names), len(DAEMONS) + 4, names)
            done = subprocess.run(["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", *names], cwd=folder, capture_output=True, text=True, timeout=60,
                                  env={**os.environ, "SYSTEMD_UNIT_PATH": f"{folder}:"})
            ours = [line for line in done.stderr.splitlines() if "dstack" in line]
            self.assertEqual((done.returncode, ours), (0, []), done.stderr)


if __name__ == "__main__":
    unittest.main()
