"""dstackup dev: starts the mesh, keeps it running, adopts it, stops it and nothing else."""
import json
import os
import shutil
import signal
import socket
import subprocess
import unittest
from pathlib import Path

from mesh import BUILD, Mesh, Prefix, alive, free_port, http, processes_of, program, start_time, wait_for

SERVICES = ["bus", "auth", "allocator", "logs", "deployer", "kms-supervisor", "vmm-local"]


def pids(mesh):
    return {service["name"]: service["pid"] for service in mesh.status()["services"]}


class Life(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.mesh = Mesh()
        cls.addClassCleanup(cls.mesh.close)

    def ready_with_new(self, name, old):
        """Until the service runs as another process than `old`."""
        return wait_for(lambda: (lambda s: s["state"] == "ready" and s["pid"] != old and s)(self.mesh.of(name)), f"{name} is back", 30)

    def test_everything_is_ready(self):
        status = self.mesh.status()
        self.assertTrue(status["ready"])
        self.assertEqual([s["name"] for s in status["services"]][:7], SERVICES)
        for service in status["services"]:
            self.assertTrue(alive(service["pid"]), service)
            self.assertGreater(service["rss_bytes"], 100_000, service)
        self.assertEqual(http(f"http://127.0.0.1:{self.mesh.auth_port}/")[0], 200)

    def test_generated_configurations_are_accepted(self):
        for name in SERVICES + ["kms-local"]:
            with self.subTest(name):
                done = subprocess.run([program(name), "--config", self.mesh.path / "etc/dstack" / f"{name}.toml", "--check-config"], capture_output=True, text=True)
                self.assertEqual(done.returncode, 0, done.stdout + done.stderr)

    def test_up_again_changes_nothing(self):
        before = pids(self.mesh)
        self.assertTrue(self.mesh.up()["already_up"])
        self.assertEqual(pids(self.mesh), before)

    def test_other_ports_are_refused_while_it_is_up(self):
        done = self.mesh.dstackup("dev", "up", "--auth-port", str(free_port()), check=False)
        self.assertEqual(done.returncode, 5, done.stderr)
        self.assertIn("other ports", done.stderr)

    def test_what_dies_is_restarted(self):
        first = self.mesh.of("auth")
        os.kill(first["pid"], signal.SIGKILL)
        before = self.ready_with_new("auth", first["pid"])  # a child of this supervisor, not an adopted one
        os.kill(before["pid"], signal.SIGKILL)
        after = self.ready_with_new("auth", before["pid"])
        self.assertEqual(after["restarts"], first["restarts"] + 2)
        self.assertEqual(after["last_exit"], "killed by signal 9")

    def test_supervisor_is_replaced_and_adopts(self):
        before = pids(self.mesh)
        supervisor = self.mesh.status()["supervisor_pid"]
        os.kill(supervisor, signal.SIGKILL)
        wait_for(lambda: not alive(supervisor), "the supervisor is gone")
        self.assertEqual(self.mesh.dstackup("dev", "status", check=False).returncode, 10)
        self.mesh.up()
        self.assertEqual(pids(self.mesh), before)
        # and it is watched again, although it is not the new supervisor's child
        os.kill(before["logs"], signal.SIGKILL)
        self.ready_with_new("logs", before["logs"])

    def test_refused_configuration_is_failed_until_mended(self):
        config = self.mesh.path / "etc/dstack/allocator.toml"
        good = config.read_text()
        config.write_text("[allocator]\nnonsense = 1\n")
        old = self.mesh.of("allocator")["pid"]
        os.kill(old, signal.SIGKILL)
        failed = wait_for(lambda: (lambda s: s["state"] == "failed" and s)(self.mesh.of("allocator")), "it was given up", 30)
        self.assertEqual(failed["reason"], "config")
        self.assertEqual(self.mesh.dstackup("dev", "status", check=False).returncode, 10)
        done = self.mesh.dstackup("dev", "up", check=False)
        self.assertEqual(done.returncode, 10, done.stderr)
        self.assertIn("nonsense", done.stderr)
        config.write_text(good)
        self.mesh.up()
        self.assertEqual(self.mesh.of("allocator")["state"], "ready")

    def test_crash_loop_is_given_up(self):
        def kill_it():
            now = self.mesh.of("logs")
            if now["state"] == "ready":
                os.kill(now["pid"], signal.SIGKILL)
            return now["state"] == "failed" and now
        failed = wait_for(kill_it, "it was given up", 60)
        self.assertEqual(failed["reason"], "crash_loop")
        self.mesh.up()
        self.assertEqual(self.mesh.of("logs")["state"], "ready")


class Down(unittest.TestCase):
    def test_down_stops_all_it_started_and_nothing_else(self):
        with Mesh() as mesh:
            # A bystander that looks like one of ours, with another prefix.
            bystander = subprocess.Popen(["/bin/sh", "-c", "read x", "dstack-auth", "--config", "/nowhere/etc/dstack/auth.toml"], stdin=subprocess.PIPE)
            self.addCleanup(bystander.communicate)
            self.addCleanup(bystander.kill)
            before = pids(mesh)
            self.assertGreaterEqual(len(before), 8, "kms-local is shown too")
            self.assertFalse(mesh.down()["already_down"])
            self.assertEqual([pid for pid in before.values() if alive(pid)], [])
            self.assertEqual(processes_of(f"{mesh.path}/"), {})
            self.assertTrue(alive(bystander.pid))
            self.assertTrue(mesh.down()["already_down"])
            self.assertTrue((mesh.path / "var/lib/dstack/bus").is_dir(), "data stays")
            mesh.up()  # with the same ports
            self.assertTrue(mesh.status()["ready"])

    def test_down_without_its_supervisor(self):
        with Mesh() as mesh:
            before = pids(mesh)
            os.kill(mesh.status()["supervisor_pid"], signal.SIGKILL)
            mesh.down()
            self.assertEqual([pid for pid in before.values() if alive(pid)], [])

    def test_purge_asks_and_removes_only_its_own(self):
        with Mesh() as mesh:
            mine = mesh.path / "mine.txt"
            mine.write_text("kept")
            done = mesh.dstackup("dev", "down", "--purge", check=False)
            self.assertEqual(done.returncode, 7, done.stderr)
            self.assertTrue(mesh.status()["ready"], "nothing was done without --yes")
            mesh.down("--purge", "--yes")
            self.assertEqual([path.name for path in mesh.path.iterdir()], ["mine.txt"])

    def test_status_of_nothing(self):
        with Prefix() as prefix:
            done = subprocess.run([program("dstackup"), "dev", "status", "--json", "--prefix", prefix.path], capture_output=True, text=True)
            self.assertEqual(done.returncode, 3)
            self.assertEqual(json.loads(done.stdout)["error"]["code"], "not_found")


class Rebuilt(unittest.TestCase):
    def test_services_whose_program_was_replaced_are_restarted(self):
        with Mesh() as mesh:
            tree = mesh.path / "libexec/dstack"  # the last place where programs are looked for: a copy that may be replaced
            mesh.down()
            tree.mkdir(parents=True)
            for name in SERVICES + ["kms-local"]:
                shutil.copy(program(name), tree)
            shutil.copy(program("dstackup"), mesh.path / "dstackup")

            def up():
                done = subprocess.run([mesh.path / "dstackup", "dev", "up", "--prefix", mesh.path], capture_output=True, text=True)
                self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
                return done.stderr
            up()
            before = pids(mesh)
            (tree / "dstack-allocator").unlink()
            shutil.copy(program("allocator"), tree)
            self.assertIn("restarting 1 services", up())
            after = pids(mesh)
            self.assertEqual([name for name in SERVICES if before[name] != after[name]], ["allocator"])
            self.assertTrue(mesh.status()["ready"])


class Refusals(unittest.TestCase):
    def test_taken_port(self):
        with socket.socket() as taken, Mesh(up=False) as mesh:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = taken.getsockname()[1]
            done = mesh.dstackup("dev", "up", "--auth-port", str(port), "--vmm-port", "0", "--kms-port", "0", check=False)
            self.assertEqual(done.returncode, 5, done.stderr)
            self.assertIn(f"port {port} on 127.0.0.1 is taken", done.stderr)
            self.assertEqual(processes_of(f"{mesh.path}/"), {})

    def test_edited_configuration_is_kept(self):
        with Mesh() as mesh:
            config = mesh.path / "etc/dstack/allocator.toml"
            mesh.down()
            config.write_text(config.read_text() + "# mine\n")
            done = mesh.dstackup("dev", "up")
            self.assertIn("was edited", done.stderr)
            self.assertTrue(config.read_text().endswith("# mine\n"))

    def test_unknown_verbs(self):
        for arguments in (["frob"], ["dev", "frob"], ["dev", "up", "--frob"], []):
            done = subprocess.run([program("dstackup"), *arguments], capture_output=True, text=True)
            self.assertEqual(done.returncode, 2, arguments)
            self.assertIn("--help", done.stderr)


if __name__ == "__main__":
    unittest.main()
