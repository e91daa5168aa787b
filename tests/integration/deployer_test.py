"""dstack-deployer and the dstack client as real processes, on a real bus with the real auth and allocator; the VMM is a scripted
one that speaks prpc, asks the real webhook as a KMS would, and opens the published port when its guest has "booted"."""
import hashlib
import http.server
import json
import random
import signal
import socket
import subprocess
import threading
import unittest
import uuid

from mesh import Prefix, bus_config, free_port, http as get, need, program, wait_for

IMAGE_HASH = "b" * 64
COMPOSE = "services:\n  web:\n    image: busybox\n    ports: ['80:80']\n"


class Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", "5")
        self.end_headers()
        self.wfile.write(b"hello")

    def log_message(self, *_):
        pass


class Vmm:
    """Upstream's VMM API, as far as the deployer uses it."""

    def __init__(self, auth_port, port=0):
        self.auth_port = auth_port
        self.lock = threading.Lock()
        self.vms = {}
        self.pages = {}
        self.created = 0
        self.calls = []
        self.traces = []        # (method, traceparent header)
        self.hold = {}          # method -> threading.Event: the answer waits for it
        self.boots = True
        self.boot_error = ""
        self.panics = False
        self.refuses = {}       # method -> error text
        vmm = self

        class Api(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or b"{}")
                method = self.path.split("?")[0].rsplit("/", 1)[1]
                vmm.traces.append((method, self.headers.get("traceparent")))
                status, answer = vmm.answer(method, body)
                data = json.dumps(answer).encode()
                try:
                    self.send_response(status)
                    self.send_header("Content-Type", "application/json")
                    self.send_header("Content-Length", str(len(data)))
                    self.end_headers()
                    self.wfile.write(data)
                except OSError:
                    pass  # the deployer was killed while it waited

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", port), Api)
        self.server.daemon_threads = True
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def answer(self, method, body):
        with self.lock:
            self.calls.append(method)
            refusal = self.refuses.get(method)
            if method == "RemoveVm" and body["id"] not in self.vms:
                refusal = "Failed to remove VM: VM not found"
            result = None if refusal else getattr(self, method)(body)
        gate = self.hold.get(method)
        if gate is not None:
            gate.wait(60)
        return (400, {"error": refusal}) if refusal else (200, result)

    def ListImages(self, _):
        return {"images": [{"name": "dstack-dev-0.5.6", "version": "0.5.6", "description": "", "is_dev": True}]}

    def CreateVm(self, body):
        self.created += 1
        vm_id = str(uuid.uuid4())
        self.vms[vm_id] = {"id": vm_id, "name": body["name"], "app_id": body["app_id"], "status": "running", "boot_progress": "",
                           "boot_error": "", "instance_id": None, "configuration": body}
        threading.Thread(target=self.boot, args=(vm_id,), daemon=True).start()
        return {"id": vm_id}

    def Status(self, _):
        return {"vms": [{**vm, "configuration": None} for vm in self.vms.values()], "total": len(self.vms), "port_mapping_enabled": True}

    def GetInfo(self, body):
        vm = self.vms.get(body["id"])
        return {"found": vm is not None, "info": vm}

    def StartVm(self, body):
        self.vms[body["id"]].update(status="running", boot_progress="", boot_error="")
        threading.Thread(target=self.boot, args=(body["id"],), daemon=True).start()

    def StopVm(self, body):
        self.vms[body["id"]]["status"] = "stopped"
        self.close_page(body["id"])

    ShutdownVm = StopVm

    def RemoveVm(self, body):
        self.vms.pop(body["id"])
        self.close_page(body["id"])

    def boot(self, vm_id):
        with self.lock:
            vm = self.vms[vm_id]
            config = vm["configuration"]
        vm["boot_progress"] = "requesting app keys"
        if self.panics:
            vm["status"] = "exited"
            return
        document = config["compose_file"]
        if json.loads(document)["kms_enabled"]:
            decision = self.ask(hashlib.sha256(document.encode()).hexdigest(), config["app_id"])
            if not decision["isAllowed"]:
                vm["boot_error"] = "kms refused the keys: " + decision["reason"]
                return
        vm["boot_progress"] = "starting containers"
        if self.boot_error:
            vm["boot_error"] = self.boot_error
            return
        if not self.boots:
            return
        ports = [port for port in config["ports"] if port["protocol"] == "tcp"]
        if ports:
            page = http.server.ThreadingHTTPServer(("127.0.0.1", ports[0]["host_port"]), Page)
            page.daemon_threads = True
            self.pages[vm_id] = page
            threading.Thread(target=page.serve_forever, args=(0.05,), daemon=True).start()
        vm["boot_progress"] = "done"

    def ask(self, compose_hash, app_id):
        body = {"teeVariant": "dstack-tdx", "mrAggregated": "a" * 64, "osImageHash": IMAGE_HASH, "mrSystem": "c" * 64, "appId": app_id,
                "composeHash": compose_hash, "instanceId": "2" * 40, "deviceId": "e" * 64, "keyProviderInfo": "", "tcbStatus": "UpToDate",
                "advisoryIds": []}
        _, answer = get(f"http://127.0.0.1:{self.auth_port}/bootAuth/app", json.dumps(body).encode(), {"Content-Type": "application/json"})
        return json.loads(answer)

    def close_page(self, vm_id):
        page = self.pages.pop(vm_id, None)
        if page is not None:
            page.shutdown()
            page.server_close()  # before the answer: the next start listens on the same port

    def close(self):
        for gate in self.hold.values():
            gate.set()
        for vm_id in list(self.pages):
            self.close_page(vm_id)
        self.server.shutdown()
        self.server.server_close()


class DeployerTest(unittest.TestCase):
    def setUp(self):
        self.prefix = Prefix()
        self.addCleanup(self.prefix.close)
        self.auth_port = free_port()
        policy = self.prefix.path / "etc/policy.json"
        policy.write_text(json.dumps({"osImages": [IMAGE_HASH], "gatewayAppId": "any", "apps": {}}))
        on_bus = f'[bus]\ndirectory = "{self.prefix.bus}"\n'
        self.prefix.start("bus", bus_config(self.prefix))
        self.prefix.start("auth", f'[auth]\nport = {self.auth_port}\npolicy_file = "{policy}"\nledger_dir = "{self.prefix.state("auth")}"\n' + on_bus)
        # A range of its own: leases of another prefix are not known here, and a stopped VM's port is bound by nobody.
        ports = random.randrange(20_000, 30_000, 50)
        self.prefix.start("allocator", f'[allocator]\nstate_dir = "{self.prefix.state("allocator")}"\nleases = "{self.prefix.lease_database}"\nport_first = {ports}\nport_last = {ports + 49}\n' + on_bus)
        self.policy = policy
        self.vmm = Vmm(self.auth_port)
        self.addCleanup(self.vmm.close)
        self.deployer = self.prefix.start("deployer", f'[deployer]\nstate_dir = "{self.prefix.state("deployer")}"\nobserve_ms = 300\n'
                                          f'[vmm]\nurl = "http://127.0.0.1:{self.vmm.port}"\npatience_ms = 200\n' + on_bus)
        self.compose = self.prefix.path / "compose.yaml"
        self.compose.write_text(COMPOSE)

    # What the tests say.

    def dstack(self, *arguments, deadline=60):
        return subprocess.run([str(program("dstack")), *arguments, "--prefix", str(self.prefix.path)], stdin=subprocess.DEVNULL,
                              capture_output=True, text=True, timeout=deadline)

    def begin(self, *arguments):
        return subprocess.Popen([str(program("dstack")), *arguments, "--prefix", str(self.prefix.path)], stdin=subprocess.DEVNULL,
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def json(self, *arguments, code=0):
        done = self.dstack(*arguments, "--json")
        self.assertEqual(done.returncode, code, done.stdout + done.stderr + self.deployer.text())
        return json.loads(done.stdout)

    def deploy(self, *more, name="hello", code=0):
        return self.json("deploy", "-n", name, "-c", str(self.compose), "--port", "auto:80", *more, code=code)

    def events(self, kind=""):
        done = self.dstack("events", "--from", "0", "--json", "--type", kind)
        self.assertEqual(done.returncode, 0, done.stderr)
        return [json.loads(line) for line in done.stdout.splitlines()]

    def leases(self):
        return self.json("leases")["data"]["leases"]

    def allowed(self):
        apps = json.loads(self.policy.read_text())["apps"]
        return [compose_hash for app in apps.values() for compose_hash in app["composeHashes"]]

    def assert_nothing_left(self):
        self.assertEqual(self.leases(), [])
        self.assertEqual(self.allowed(), [])
        self.assertEqual(self.vmm.vms, {})
        self.assertEqual(self.json("ls")["data"]["apps"], [])

    def failed_event(self):
        return wait_for(lambda: self.events("deploy.failed"), "deploy.failed")[-1]["data"]

    # The tests.

    def test_deploy_answers_and_everything_is_an_event(self):
        done = self.dstack("deploy", "-n", "hello", "-c", str(self.compose), "--port", "auto:80")
        self.assertEqual(done.returncode, 0, done.stderr + self.deployer.text())
        url = next(word for word in done.stdout.split() if word.startswith("http://127.0.0.1:"))
        self.assertEqual(get(url), (200, b"hello"))
        self.assertIn("app id:", done.stdout)
        for phase in ("image", "lease: cid", "allow", "create_vm", "boot", "probe: http 200"):
            self.assertIn(phase, done.stderr)
        names = [event["type"] for event in self.events() if event["type"].startswith("deploy.")]
        self.assertEqual(names, ["deploy.started"] + ["deploy.step"] * 7 + ["deploy.succeeded"])

        app = self.json("info", "hello")["data"]
        self.assertEqual(app["state"], "ready")
        self.assertIn("http 200", app["evidence"])
        self.assertEqual(url, app["url"])
        document = self.vmm.vms[app["vmId"]]["configuration"]["compose_file"]
        self.assertEqual(hashlib.sha256(document.encode()).hexdigest(), app["composeHash"])
        self.assertEqual(app["composeHash"][:40], app["appId"])
        self.assertEqual({lease["state"] for lease in self.leases()}, {"bound"})
        self.assertEqual(self.json("info", app["vmId"][:8])["data"]["name"], "hello")

        again = self.deploy()["data"]  # the same command again
        self.assertTrue(again["already"])
        self.assertEqual(again["vmId"], app["vmId"])
        self.assertEqual(self.vmm.created, 1)
        other = self.deploy("--memory", "1G", code=5)["error"]
        self.assertEqual(other["code"], "already_exists")
        self.assertIn("dstack rm hello", other["hint"])

        self.assertEqual(self.dstack("stop", "hello").stdout, "stopped hello\n")
        self.assertEqual(self.dstack("stop", "hello").stdout, "already stopped hello\n")
        self.assertEqual(len(self.leases()), 2)
        self.assertEqual(self.dstack("start", "hello").stdout, "started hello\n")
        self.assertEqual(get(url), (200, b"hello"))
        self.assertEqual(self.dstack("rm", "hello").returncode, 2)  # nobody to ask
        self.assertEqual(self.dstack("rm", "hello", "--yes").stdout, "removed hello\n")
        self.assert_nothing_left()
        self.assertEqual(self.dstack("info", "hello").returncode, 3)

    def test_a_dry_run_changes_nothing(self):
        plan = self.deploy("--dry-run")["data"]
        self.assertEqual(hashlib.sha256(plan["appCompose"].encode()).hexdigest(), plan["composeHash"])
        self.assertEqual(self.events("deploy."), [])
        self.assert_nothing_left()

    def test_killed_at_any_step_it_goes_on(self):
        for method in ("ListImages", "Status", "CreateVm", "GetInfo"):
            with self.subTest(method=method):
                gate = self.vmm.hold[method] = threading.Event()
                before = self.vmm.created
                self.vmm.calls.clear()
                name = "app-" + method
                client = self.begin("deploy", "-n", name, "-c", str(self.compose), "--port", "auto:80")
                wait_for(lambda: [e for e in self.events("deploy.started") if e["subject"] == name], "deploy.started")
                wait_for(lambda: method in self.vmm.calls, method)
                self.deployer.kill()
                del self.vmm.hold[method]
                gate.set()
                self.deployer.start()
                out, err = client.communicate(timeout=60)
                self.assertEqual(client.returncode, 0, out + err + self.deployer.text())
                self.assertIn("resumed", err)
                self.assertEqual(self.vmm.created, before + 1)
                self.assertEqual(len([vm for vm in self.vmm.vms.values() if vm["name"] == name]), 1)

    def test_denied_by_policy(self):
        error = self.deploy("--no-allow", code=9)["error"]
        self.assertEqual(error["code"], "permission_denied")
        self.assertTrue(error["details"]["denied"])
        self.assertIn("denied by rule", error["message"])
        decided = self.events("auth.decided")[-1]["data"]
        self.assertFalse(decided["allowed"])
        self.assertIn(decided["rule"], error["message"])
        self.assertTrue(self.failed_event()["denied"])
        self.assert_nothing_left()

    def test_what_goes_wrong_is_said_once_and_leaves_nothing(self):
        taken = socket.socket()
        self.addCleanup(taken.close)
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]

        def write(text):
            self.compose.write_text(text)

        rows = [
            ("no YAML", lambda: write("{ no: [yaml"), (), 2, "validate", "compose"),
            ("no services", lambda: write("version: '3'\n"), (), 2, "validate", "services"),
            ("too large", lambda: write("# " + "x" * 300_000 + "\n" + COMPOSE), (), 2, "validate", "256 KiB"),
            ("name", lambda: write(COMPOSE), ("--name", "a/b"), 2, "validate", "'/'"),
            ("image", lambda: write(COMPOSE), ("--image", "nope"), 3, "image", "nope"),
            ("taken port", lambda: write(COMPOSE), ("--port", f"{port}:81"), 5, "lease", str(port)),
        ]
        for what, prepare, more, code, step, words in rows:
            with self.subTest(what=what):
                prepare()
                arguments = ["deploy", "-c", str(self.compose), *more] + ([] if "--name" in more else ["-n", "hello"])
                error = self.json(*arguments, code=code)["error"]
                self.assertIn(words, error["message"])
                failed = self.failed_event()
                self.assertEqual(failed["step"], step)
                self.assertIn(failed["reason"], error["message"])
                self.assert_nothing_left()

    def test_a_vmm_that_refuses_or_a_guest_that_fails(self):
        self.vmm.refuses["CreateVm"] = "Port mapping is not allowed for tcp:1"
        error = self.deploy(code=7)["error"]
        self.assertIn("vmm CreateVm: Port mapping is not allowed for tcp:1", error["message"])
        self.assert_nothing_left()
        self.vmm.refuses.clear()

        self.vmm.boot_error = "image nope:1 is not in the store"
        error = self.deploy(code=10)["error"]
        self.assertIn(self.vmm.boot_error, error["message"])
        self.assert_nothing_left()
        self.vmm.boot_error = ""

        self.vmm.panics = True
        error = self.deploy(code=10)["error"]
        self.assertIn("exited while booting", error["message"])
        self.assert_nothing_left()
        self.vmm.panics = False

        self.vmm.boots = False
        error = self.deploy("--timeout", "1s", code=8)["error"]
        self.assertIn("starting containers", error["message"])
        self.assert_nothing_left()

    def test_no_vmm(self):
        self.vmm.server.shutdown()
        self.vmm.server.server_close()
        error = self.deploy(code=3)["error"]
        self.assertEqual(error["code"], "unavailable")
        self.assertIn("VMM", error["message"])
        self.assertEqual(self.failed_event()["code"], "unavailable")
        self.assertEqual(self.leases(), [])
        self.assertEqual(self.allowed(), [])
        self.vmm.server = http.server.HTTPServer(("127.0.0.1", 0), Page)  # something for close()
        threading.Thread(target=self.vmm.server.serve_forever, args=(0.05,), daemon=True).start()

    def test_remove_pre_empts_a_running_deploy(self):
        self.vmm.boots = False
        client = self.begin("deploy", "-n", "hello", "-c", str(self.compose), "--port", "auto:80")
        wait_for(lambda: self.vmm.vms, "the VM")
        removed = self.dstack("rm", "hello", "-y")
        self.assertEqual(removed.returncode, 0, removed.stderr)
        out, err = client.communicate(timeout=60)
        self.assertEqual(client.returncode, 5, out + err)
        self.assertIn("pre-empted", err)
        self.assert_nothing_left()

    def test_killed_while_it_removes(self):
        self.deploy()
        gate = self.vmm.hold["RemoveVm"] = threading.Event()
        client = self.begin("rm", "hello", "-y")
        wait_for(lambda: "RemoveVm" in self.vmm.calls, "RemoveVm")
        self.deployer.kill()
        gate.set()
        self.deployer.start()
        out, err = client.communicate(timeout=60)
        self.assertEqual(client.returncode, 0, out + err + self.deployer.text())
        self.assert_nothing_left()

    def test_the_state_follows_the_vm(self):
        vm_id = self.deploy()["data"]["vmId"]
        self.vmm.close_page(vm_id)
        self.vmm.vms[vm_id]["status"] = "exited"
        wait_for(lambda: self.json("info", "hello")["data"]["state"] == "exited", "exited")
        wait_for(lambda: self.events("app.state_changed")[-1]["data"]["to"] == "exited", "an event says so")
        self.deployer.kill()
        self.deployer.start()
        wait_for(lambda: self.json("info", "hello")["data"]["state"] == "exited", "exited after a restart")
        self.vmm.vms.pop(vm_id)
        wait_for(lambda: self.json("info", "hello")["data"]["state"] == "failed", "the VM is gone")
        self.dstack("rm", "hello", "-y")
        self.assert_nothing_left()

    def test_a_full_disk(self):
        state = self.prefix.state("deployer")
        self.deployer.stop()
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(state)], capture_output=True, text=True)
        need(mounted.returncode == 0, f"cannot mount a small file system: {mounted.stderr.strip()}")
        self.addCleanup(subprocess.run, ["umount", "-l", str(state)])
        self.deployer.start()
        filler = state / "filler"
        with open(filler, "wb", buffering=0) as file:
            try:
                while True:
                    file.write(b"x" * 4096)
            except OSError:
                pass
        # What fits into the pages that the database has already does; a large compose file does not.
        self.compose.write_text(COMPOSE + "# " + "x" * 100_000 + "\n")
        error = self.deploy(code=7)["error"]
        self.assertEqual(error["code"], "resource_exhausted")
        self.assertIn("full", error["message"])
        self.assertIn("free space", error["hint"])
        self.assertEqual(self.vmm.vms, {})
        self.assertEqual(self.leases(), [])
        filler.unlink()
        self.assertEqual(self.deploy()["data"]["state"], "ready")
        self.assertEqual(self.dstack("rm", "hello", "-y").returncode, 0)

    def test_signals_and_pipes(self):
        follow = self.begin("events", "-f", "--from", "0")
        self.assertTrue(follow.stdout.readline())
        follow.send_signal(signal.SIGINT)
        self.assertEqual(follow.wait(10), 130)
        follow.communicate()
        follow = self.begin("events", "-f", "--from", "0")
        self.assertTrue(follow.stdout.readline())
        follow.stdout.close()
        self.deploy("--dry-run")
        self.deploy()
        self.assertEqual(follow.wait(20), 0)  # quietly
        self.assertEqual(follow.stderr.read(), "")
        follow.stderr.close()


if __name__ == "__main__":
    unittest.main()
