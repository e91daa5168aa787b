"""The decision ledger as its operator sees it: verify, list, show, export, why, policy test; crashes and full disks under load."""
import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import threading
import unittest

from auth_test import APP, COMPOSE, IMAGE, Auth, boot, open_policy
from mesh import Mesh, Prefix, http, need, program, wait_for
from peers import Peers

OTHER = "4" * 40
INTACT, USAGE, NOT_FOUND, DAMAGED, CHANGES = 0, 2, 3, 6, 11


def dstack(prefix, *arguments, input=""):
    return subprocess.run([str(program("dstack")), *arguments, "--prefix", str(prefix.path)], input=input, capture_output=True, text=True, timeout=60)


def dstack_json(prefix, *arguments, code=0, input=""):
    done = dstack(prefix, *arguments, "--json", input=input)
    assert done.returncode == code, (arguments, done.returncode, done.stdout, done.stderr)
    return json.loads(done.stdout)


def files_of(folder):
    """Oldest first, the active one last."""
    return sorted(folder.glob("decisions-*.ndjson")) + [folder / "decisions.ndjson"]


def records_of(folder):
    """Every record of all files, with the chain walked as an outsider would."""
    previous, records = "0" * 64, []
    for path in files_of(folder):
        for line in path.read_bytes().rstrip(b"\0").split(b"\n")[:-1]:
            record = json.loads(line)
            assert record["seq"] == len(records) + 1 and record["prev"] == previous, f"{path}: record {record['seq']} breaks the chain"
            previous = hashlib.sha256(line).hexdigest()
            records.append(record)
    return records


class Ledger(Auth):
    """dstack-auth with small files."""

    def __init__(self, prefix, policy, settings="", bus=False):
        self.settings = settings
        real = prefix.start

        def start(name, config):
            self.full = config.replace("[auth]\n", "[auth]\nledger_segment_kib = 64\n" + settings)
            return real(name, self.full)

        prefix.start = start
        try:
            super().__init__(prefix, policy, bus=bus)
        finally:
            prefix.start = real
        self.folder = self.ledger.parent

    def verify(self, *arguments, code=INTACT):
        return dstack_json(self.prefix, "audit", "verify", *arguments, code=code)["data"]


class Load:
    """Connections that ask without a pause and note what they were answered."""

    def __init__(self, port, connections=8, depth=8):
        self.port, self.depth = port, depth
        self.stop = threading.Event()
        self.lock = threading.Lock()
        self.answered = []  # (compose hash, allowed)
        self.threads = [threading.Thread(target=self.run, args=(number,)) for number in range(connections)]
        for thread in self.threads:
            thread.start()

    def run(self, number):
        count = 0
        while not self.stop.is_set():
            try:
                with socket.create_connection(("127.0.0.1", self.port), timeout=10) as client, client.makefile("rb") as stream:
                    while not self.stop.is_set():
                        hashes = []
                        for _ in range(self.depth):
                            count += 1
                            hashes.append(f"{number:02x}{count:062x}")
                        bodies = [json.dumps(boot(composeHash=one)).encode() for one in hashes]
                        client.sendall(b"".join(b"POST /bootAuth/app HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(body) + body for body in bodies))
                        for one in hashes:
                            self.take(one, stream)
            except (OSError, ValueError):
                continue  # it is just being killed

    def take(self, compose, stream):
        if not stream.readline().startswith(b"HTTP/1.1 200"):
            raise ValueError("no whole answer")
        length = 0
        while (line := stream.readline()) not in (b"\r\n", b""):
            name, _, value = line.partition(b":")
            if name.lower() == b"content-length":
                length = int(value)
        body = stream.read(length)
        answer = json.loads(body)
        with self.lock:
            self.answered.append((compose, answer["isAllowed"]))

    def end(self):
        self.stop.set()
        for thread in self.threads:
            thread.join(30)


class CrashTest(unittest.TestCase):
    def setUp(self):
        self.prefix = Prefix()
        self.addCleanup(self.prefix.close)

    def test_kill_9_in_a_loop_under_load(self):
        policy = open_policy(apps={APP: {"composeHashes": {"any": True}, "allowAnyDevice": True}})
        auth = Ledger(self.prefix, policy)
        load = Load(auth.port)
        self.addCleanup(load.end)
        for _ in range(8):
            before = len(load.answered)
            wait_for(lambda: len(load.answered) > before + 200, "decisions", 30)
            auth.service.kill(signal.SIGKILL)
            report = auth.verify()
            self.assertTrue(report["intact"], report)
            auth.service.start()
        load.end()
        auth.service.stop()
        report = auth.verify()
        written = {(record["boot"]["composeHash"], record["allowed"]) for record in records_of(auth.folder) if record["kind"] == "app"}
        self.assertGreater(report["files"], 2)
        self.assertEqual(report["signedRecords"], report["records"])  # a clean stop signs the rest
        self.assertGreater(len(load.answered), 1600)
        self.assertEqual([one for one in load.answered if one not in written], [], "answered, and not in the ledger")

    def test_verify_beside_the_service_under_load(self):
        auth = Ledger(self.prefix, open_policy(apps={APP: {"composeHashes": {"any": True}, "allowAnyDevice": True}}))
        load = Load(auth.port)
        self.addCleanup(load.end)
        seen = []
        for _ in range(15):
            before = len(load.answered)
            wait_for(lambda: len(load.answered) > before + 50, "decisions", 30)
            report = auth.verify()
            self.assertTrue(report["intact"], report)
            seen.append(report["records"])
        self.assertEqual(seen, sorted(set(seen)))

    def test_with_an_interval_a_clean_stop_loses_nothing(self):
        auth = Ledger(self.prefix, open_policy(apps={APP: {"composeHashes": {"any": True}, "allowAnyDevice": True}}), 'ledger_flush = "20ms"\n')
        load = Load(auth.port, 4)
        self.addCleanup(load.end)
        wait_for(lambda: len(load.answered) > 2000, "decisions", 30)
        load.end()
        auth.service.stop()
        written = {(record["boot"]["composeHash"], record["allowed"]) for record in records_of(auth.folder) if record["kind"] == "app"}
        self.assertEqual([one for one in load.answered if one not in written], [])
        self.assertTrue(auth.verify()["intact"])

    def test_a_full_disk_under_load(self):
        disk = self.prefix.state("auth")
        need(os.geteuid() == 0 and subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k", "none", str(disk)], capture_output=True).returncode == 0,
             "cannot mount a small tmpfs here")
        self.addCleanup(subprocess.run, ["umount", "-l", str(disk)], check=True)
        self.addCleanup(lambda: self.prefix.services["auth"].kill())
        auth = Ledger(self.prefix, open_policy(apps={APP: {"composeHashes": {"any": True}, "allowAnyDevice": True}}))
        load = Load(auth.port, 4, 4)
        self.addCleanup(load.end)
        wait_for(lambda: sum(not allowed for _, allowed in list(load.answered)) > 100, "denials", 30)
        url = f"http://127.0.0.1:{auth.port}/health"
        self.assertEqual(http(url)[0], 503)
        self.assertIn("no space left", json.loads(http(url)[1])["ledger"])
        subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
        allowed = sum(one for _, one in load.answered)
        wait_for(lambda: sum(one for _, one in list(load.answered)) > allowed + 100, "it allows again", 30)
        self.assertEqual(http(url)[0], 200)
        load.end()
        auth.service.kill()
        self.assertTrue(auth.verify()["intact"])
        records = records_of(auth.folder)
        written = {record["boot"]["composeHash"] for record in records if record["kind"] == "app"}
        self.assertEqual([one for one, allowed in load.answered if allowed and one not in written], [])
        repaired = [record["reason"] for record in records if record["kind"] == "repair"]
        self.assertTrue(repaired and "decisions were denied" in repaired[0] and "no space left" in repaired[0], repaired)

    def test_damage_that_the_start_did_not_look_at_ends_the_process(self):
        auth = Auth(self.prefix, open_policy(apps={APP: {"composeHashes": {"any": True}, "allowAnyDevice": True}}))
        load = Load(auth.port)
        self.addCleanup(load.end)
        wait_for(lambda: auth.ledger.stat().st_size > 2_500_000, "a large file", 60)
        load.end()
        auth.service.stop()
        whole = auth.ledger.read_bytes()
        place = whole.index(b'"allowed":true', 100_000)
        auth.ledger.write_bytes(whole[:place] + b'"allowed":null' + whole[place + 14:])
        auth.service.start()
        self.assertEqual(auth.service.wait(30), 70)
        self.assertIn(f"decisions.ndjson, offset {whole.index(10, place) + 1}: record", auth.service.text())

    def test_it_recovers_without_being_asked(self):
        auth = Ledger(self.prefix, open_policy())
        away = auth.ledger.with_suffix(".away")
        auth.ledger.rename(away)
        self.assertIn("could not be recorded", auth.ask(boot())[1]["reason"])
        url = f"http://127.0.0.1:{auth.port}/health"
        self.assertEqual(http(url)[0], 503)
        away.rename(auth.ledger)
        wait_for(lambda: http(url)[0] == 200, "healthy again")
        self.assertEqual(records_of(auth.folder)[-1]["kind"], "repair")


class VerifyTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.prefix = Prefix()
        cls.addClassCleanup(cls.prefix.close)
        auth = Ledger(cls.prefix, open_policy())
        for number in range(250):
            auth.ask(boot(composeHash=COMPOSE if number % 2 else f"{number:064x}"))
        auth.service.stop()
        cls.auth = auth
        cls.key = cls.prefix.path / "pinned.pub"
        shutil.copy(auth.folder / "checkpoint.pub", cls.key)

    def copy(self):
        folder = self.prefix.path / "copy"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(self.auth.folder, folder)
        return folder

    def test_what_was_done_to_it_is_found(self):
        def lines(index, change):
            def apply(folder):
                path = (files_of(folder) + [folder / "checkpoints.ndjson"])[index]
                text = path.read_bytes().split(b"\n")[:-1]
                change(text)
                path.write_bytes(b"".join(line + b"\n" for line in text))
            return apply

        def flip(number):
            def change(text):
                self.assertIn(b'"allowed":false', text[number])
                text[number] = text[number].replace(b'"allowed":false', b'"allowed":true ')
            return change

        denied = next(i for i, line in enumerate(files_of(self.auth.folder)[1].read_bytes().split(b"\n")) if b'"allowed":false' in line)
        pop, swap = (lambda text: text.pop(4)), (lambda text: text.insert(4, text.pop(5)))
        rows = [("a record changed", lines(1, flip(denied)), "does not continue the chain"),
                ("a record removed", lines(1, pop), "is missing"),
                ("records reordered", lines(1, swap), "is missing"),
                ("cut at the end", lines(-2, lambda text: text.pop()), "records were removed at the end"),
                ("cut in the middle of a record", lambda folder: os.truncate(folder / "decisions.ndjson", (folder / "decisions.ndjson").stat().st_size - 5),
                 "records were removed at the end"),
                ("a file removed", lambda folder: files_of(folder)[1].unlink(), "is missing"),
                ("a checkpoint forged", lines(-1, lambda text: text.__setitem__(-1, text[-1].replace(b'"records":', b'"records":1'))), "not by this key"),
                ("a checkpoint removed", lines(-1, lambda text: text.pop(1)), "is missing"),
                ("all checkpoints removed", lambda folder: (folder / "checkpoints.ndjson").unlink(), "no checkpoints")]
        folder = self.copy()
        arguments = ("audit", "verify", "--dir", str(folder), "--key", str(self.key))
        whole = dstack_json(self.prefix, *arguments)["data"]
        self.assertEqual((whole["intact"], whole["records"], whole["signedRecords"]), (True, 251, 251))
        self.assertGreater(whole["files"], 2)
        for what, change, finding in rows:
            with self.subTest(what):
                folder = self.copy()
                change(folder)
                report = dstack_json(self.prefix, *arguments, code=DAMAGED)["data"]
                self.assertFalse(report["intact"])
                self.assertIn(finding, json.dumps(report["findings"]))
                text = dstack(self.prefix, *arguments)
                self.assertEqual(text.returncode, DAMAGED)
                self.assertIn("NOT as it was written", text.stdout)
                self.assertIn("offset", text.stdout)

    def test_a_forger_with_another_key_and_what_was_noted_elsewhere(self):
        whole = self.auth.verify()
        noted = f"{whole['records']}:{whole['head']}"
        self.assertTrue(self.auth.verify("--expect", noted)["intact"])
        # Everything made anew, in itself right: by another key, or cut together with its checkpoints.
        folder = self.copy()
        for path in folder.iterdir():
            path.unlink()
        policy = self.auth.policy
        config = self.prefix.path / "etc/forger.toml"
        config.write_text(self.auth.full.replace(str(self.auth.folder), str(folder)))
        forger = self.prefix.service("auth", self.auth.full.replace(str(self.auth.folder), str(folder)))
        forger.start()
        self.assertTrue(policy.exists())
        forger.stop()
        arguments = ("audit", "verify", "--dir", str(folder))
        self.assertTrue(dstack_json(self.prefix, *arguments)["data"]["intact"])
        report = dstack_json(self.prefix, *arguments, "--key", str(self.key), code=DAMAGED)["data"]
        self.assertIn("not by this key", report["findings"][0]["what"])
        report = dstack_json(self.prefix, *arguments, "--expect", noted, code=DAMAGED)["data"]
        self.assertIn("was expected", report["findings"][0]["what"])
        self.assertEqual(dstack(self.prefix, *arguments, "--expect", "1").returncode, USAGE)
        self.assertEqual(dstack(self.prefix, "audit", "verify", "--dir", str(folder / "nowhere")).returncode, NOT_FOUND)

    def test_openssl_agrees_about_a_checkpoint(self):
        need(shutil.which("openssl"), "no openssl program")
        line = (self.auth.folder / "checkpoints.ndjson").read_bytes().splitlines()[-1]
        signed, _, rest = line.partition(b',"signature":"')
        message, signature = self.prefix.path / "message", self.prefix.path / "signature"
        message.write_bytes(signed)
        signature.write_bytes(bytes.fromhex(rest[:128].decode()))
        command = ["openssl", "pkeyutl", "-verify", "-pubin", "-inkey", str(self.key), "-rawin", "-in", str(message), "-sigfile", str(signature)]
        self.assertEqual(subprocess.run(command, capture_output=True).returncode, 0)
        message.write_bytes(signed.replace(b"records", b"recordz"))
        self.assertNotEqual(subprocess.run(command, capture_output=True).returncode, 0)


class ExplainTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.prefix = Peers("auth")
        cls.addClassCleanup(cls.prefix.close)
        cls.auth = Ledger(cls.prefix, open_policy(), bus=True)

        def registered():
            return cls.prefix.call("auth.decisions", {}, who="operator")[0] == "ok"

        wait_for(registered, "dstack-auth is on the bus")

    def newest(self):
        return dstack_json(self.prefix, "audit", "list", "--limit", "1")["data"]["records"][0]["seq"]

    def test_list_show_and_export(self):
        start = self.newest()
        app = "7" * 40
        for _ in range(3):
            self.assertFalse(self.auth.allowed(boot(appId=app)))
        self.assertTrue(self.auth.allowed())
        listed = dstack_json(self.prefix, "audit", "list", "--app", app)["data"]["records"]
        self.assertEqual([(one["seq"], one["allowed"], one["rule"]) for one in listed], [(start + n, False, "app") for n in (3, 2, 1)])
        self.assertEqual([one["seq"] for one in dstack_json(self.prefix, "audit", "list", "--limit", "2")["data"]["records"]], [start + 4, start + 3])
        self.assertEqual([one["seq"] for one in dstack_json(self.prefix, "audit", "list", "--denied", "--limit", "1")["data"]["records"]], [start + 3])
        self.assertEqual([one["seq"] for one in dstack_json(self.prefix, "audit", "list", "--allowed", "--limit", "1")["data"]["records"]], [start + 4])
        self.assertEqual(dstack_json(self.prefix, "audit", "list", "--kind", "policy", "--limit", "1")["data"]["records"][0]["kind"], "policy")
        self.assertEqual(len(dstack_json(self.prefix, "audit", "list", "--since", "1h", "--app", app)["data"]["records"]), 3)
        self.assertEqual(dstack_json(self.prefix, "audit", "list", "--since", "2100-01-01T00:00:00Z")["data"]["records"], [])
        text = dstack(self.prefix, "audit", "list", "--app", app)
        self.assertEqual(text.returncode, 0)
        self.assertEqual(text.stdout.count("DENIED"), 3)

        shown = dstack_json(self.prefix, "audit", "show", str(start + 1))["data"]
        self.assertEqual(shown["boot"]["appId"], app)
        failed = [check for check in shown["checks"] if not check["pass"]]
        self.assertEqual([(check["rule"], check["got"]) for check in failed], [("app", app)])
        self.assertIn("FAIL", dstack(self.prefix, "audit", "show", str(start + 1)).stdout)
        self.assertEqual(dstack(self.prefix, "audit", "show", "99999999").returncode, NOT_FOUND)

        exported = dstack(self.prefix, "audit", "export")
        self.assertEqual(exported.returncode, 0)
        lines = exported.stdout.splitlines()
        self.assertEqual([json.loads(line)["seq"] for line in lines], list(range(1, len(lines) + 1)))
        self.assertEqual(hashlib.sha256(lines[start].encode()).hexdigest(), shown["hash"])  # the lines are the evidence itself
        self.assertEqual(len(dstack(self.prefix, "audit", "export", "--app", app).stdout.splitlines()), 3)

    def test_why_a_boot_was_denied_and_what_would_allow_it(self):
        app, allowed, refused = OTHER, "a" * 64, "a" * 63 + "b"
        self.prefix.ok("auth.allow_app", {"app_id": app, "compose_hash": "c" * 64, "reason": "first"}, who="operator")
        self.prefix.ok("auth.allow_app", {"app_id": app, "compose_hash": allowed, "reason": "release 2"}, who="operator")
        self.assertFalse(self.auth.allowed(boot(appId=app, composeHash=refused)))
        number = self.newest()
        why = dstack_json(self.prefix, "why", app)["data"]
        self.assertEqual((why["decision"]["seq"], why["decision"]["allowed"], why["decision"]["rule"]), (number, False, "compose_hash"))
        self.assertEqual(why["nearest"], {"value": allowed, "distance": 1, "is": "a compose hash of the same app"})
        self.assertEqual(why["commands"], [f"dstack allow {refused} --app {app}"])
        self.assertEqual((why["policyRecord"]["change"], why["policyRecord"]["reason"]), ("allow_app", "release 2"))
        self.assertIsNone(why["allowedBy"])
        self.assertEqual(why["now"], {"samePolicy": True, "allowed": False, "rule": "compose_hash", "reason": why["decision"]["reason"]})
        text = dstack(self.prefix, "why", str(number))
        self.assertEqual(text.returncode, 0, text.stderr)
        for part in (f"decision {number}: DENIED", "FAIL", "nearest allowed: " + allowed, "differs in 1 of 64", f"dstack allow {refused} --app {app}", "by admin:uid=0"):
            self.assertIn(part, text.stdout)

        self.prefix.ok("auth.allow_app", {"app_id": app, "compose_hash": refused, "reason": "as why said"}, who="operator")
        again = dstack_json(self.prefix, "why", str(number))["data"]
        self.assertEqual((again["now"]["samePolicy"], again["now"]["allowed"], again["commands"]), (False, True, []))
        self.assertTrue(self.auth.allowed(boot(appId=app, composeHash=refused)))
        chain = dstack_json(self.prefix, "why", app)["data"]
        self.assertTrue(chain["decision"]["allowed"])
        self.assertEqual((chain["allowedBy"]["reason"], chain["allowedBy"]["compose_hash"]), ("as why said", refused))
        self.prefix.ok("auth.revoke_app", {"app_id": app, "compose_hash": refused, "reason": "withdrawn"}, who="operator")
        self.assertFalse(self.auth.allowed(boot(appId=app, composeHash=refused)))
        self.assertEqual(dstack_json(self.prefix, "why", app)["data"]["revokedBy"]["reason"], "withdrawn")
        # by the instance
        self.assertFalse(self.auth.allowed(boot(appId=app, composeHash=refused, instanceId="6" * 40)))
        self.assertEqual(dstack_json(self.prefix, "why", "6" * 40)["data"]["decision"]["boot"]["instanceId"], "6" * 40)

        self.assertEqual(dstack(self.prefix, "why", "8" * 40).returncode, NOT_FOUND)
        self.assertEqual(dstack(self.prefix, "why", "1").returncode, USAGE)  # a change of the policy, not a decision
        self.assertEqual(dstack(self.prefix, "why", "no-such-app").returncode, NOT_FOUND)

    def test_why_names_what_is_near_for_each_rule(self):
        rows = [({"osImageHash": "b" * 63 + "c"}, "os_image", IMAGE, "dstack allow --image " + "b" * 63 + "c"),
                ({"tcbStatus": "UpToDat"}, "tcb_status", "UpToDate", "allowedTcbStatuses"),
                ({"appId": "3" * 40}, "app", APP, "dstack allow " + COMPOSE + " --app " + "3" * 40)]
        for changes, rule, nearest, command in rows:
            with self.subTest(rule):
                self.assertFalse(self.auth.allowed(boot(**changes)))
                why = dstack_json(self.prefix, "why", str(self.newest()))["data"]
                self.assertEqual((why["decision"]["rule"], why["nearest"]["value"]), (rule, nearest))
                self.assertIn(command, why["commands"][0])

    def test_the_command_for_the_policy_file_does_what_it_says(self):
        need(shutil.which("jq") and shutil.which("flock"), "no jq or no flock")
        body = boot(tcbStatus="OutOfDate", advisoryIds=["INTEL-SA-00001"])
        before = self.auth.policy.read_text()
        self.addCleanup(self.auth.write, before)
        self.assertFalse(self.auth.allowed(body))
        why = dstack_json(self.prefix, "why", str(self.newest()))["data"]
        self.assertEqual(len(why["commands"]), 2)
        for command in why["commands"]:
            subprocess.run(["/bin/sh", "-c", command], check=True)
        self.assertTrue(self.auth.allowed(body))
        self.assertTrue(self.auth.allowed())

    def test_policy_test_lists_flips_and_changes_nothing(self):
        for _ in range(2):
            self.assertTrue(self.auth.allowed())
        self.assertFalse(self.auth.allowed(boot(appId="5" * 40)))
        number, policy, ledger = self.newest(), self.auth.policy.read_bytes(), self.auth.ledger.read_bytes()
        new = self.prefix.path / "new.json"
        new.write_text(json.dumps(open_policy(apps={"5" * 40: {"composeHashes": [COMPOSE], "allowAnyDevice": True}})))
        body = self.prefix.path / "boot.json"
        body.write_text(json.dumps(boot()))

        same = dstack_json(self.prefix, "policy", "test", "--last", "3", "--exit-code")["data"]
        self.assertEqual((same["tested"], same["toAllowed"], same["toDenied"], same["results"]), (3, 0, 0, []))
        flips = dstack_json(self.prefix, "policy", "test", "--last", "3", "--with", str(new), "--exit-code", code=CHANGES)["data"]
        self.assertEqual((flips["tested"], flips["toAllowed"], flips["toDenied"]), (3, 1, 2))
        self.assertEqual([(one["decision"], one["was"], one["now"]) for one in flips["results"]],
                         [(number, False, True), (number - 1, True, False), (number - 2, True, False)])
        self.assertEqual(flips["results"][1]["rule"], "app")
        self.assertEqual(flips["policyHash"], hashlib.sha256(new.read_bytes()).hexdigest())
        text = dstack(self.prefix, "policy", "test", "--last", "3", "--with", str(new))
        self.assertEqual(text.returncode, 0)
        self.assertIn("3 boots tested: 1 would become allowed, 2 would become denied", text.stdout)

        one = dstack_json(self.prefix, "policy", "test", "--decision", str(number), "--with", str(new), "--exit-code", code=CHANGES)["data"]["results"]
        self.assertEqual([(one[0]["was"], one[0]["now"])], [(False, True)])
        self.assertTrue(all(check["pass"] for check in one[0]["checks"]))
        given = dstack_json(self.prefix, "policy", "test", "--boot-info", str(body), "--exit-code")["data"]["results"][0]
        self.assertEqual((given["was"], given["now"]), (True, True))
        given = dstack_json(self.prefix, "policy", "test", "--boot-info", "-", "--with", str(new), input=body.read_text())["data"]["results"][0]
        self.assertEqual((given["was"], given["now"], given["rule"]), (True, False, "app"))
        self.assertEqual(dstack(self.prefix, "policy", "test", "--boot-info", str(body), "--kind", "kms", "--exit-code").returncode, 0)

        self.assertEqual(dstack(self.prefix, "policy", "test").returncode, USAGE)
        self.assertEqual(dstack(self.prefix, "policy", "test", "--boot-info", "-", input="{}").returncode, USAGE)
        wrong = dstack(self.prefix, "policy", "test", "--last", "1", "--with", "-", input='{"osImage":[]}')
        self.assertEqual(wrong.returncode, USAGE)
        self.assertIn("osImage: unknown key", wrong.stderr)
        self.assertEqual((self.newest(), self.auth.policy.read_bytes(), self.auth.ledger.read_bytes()), (number, policy, ledger), "something was written")


class StatusTest(unittest.TestCase):
    def test_the_mesh_is_unhealthy_while_the_ledger_cannot_be_written(self):
        with Mesh() as mesh:
            self.assertEqual(mesh.dstackup("dev", "status").returncode, 0)
            ledger = mesh.path / "var/lib/dstack/auth/decisions.ndjson"
            ledger.rename(ledger.with_suffix(".away"))
            url = f"http://127.0.0.1:{mesh.auth_port}/bootAuth/app"
            self.assertIn(b"could not be recorded", http(url, json.dumps(boot()).encode())[1])
            wait_for(lambda: mesh.of("auth")["note"].startswith("unhealthy: every boot is denied"), "auth says so")
            self.assertEqual(mesh.dstackup("dev", "status", check=False).returncode, 10)
            ledger.with_suffix(".away").rename(ledger)
            wait_for(lambda: mesh.dstackup("dev", "status", check=False).returncode == 0, "healthy again")


class SpaceTest(unittest.TestCase):
    def test_an_early_warning(self):
        prefix = Peers("auth")
        self.addCleanup(prefix.close)
        disk = prefix.state("auth")
        need(os.geteuid() == 0 and subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "none", str(disk)], capture_output=True).returncode == 0,
             "cannot mount a small tmpfs here")
        self.addCleanup(subprocess.run, ["umount", "-l", str(disk)], check=True)
        self.addCleanup(lambda: prefix.services["auth"].kill())
        auth = Ledger(prefix, open_policy(), bus=True)
        (disk / "ballast").write_bytes(b"x" * 1900 * 1024)
        health = f"http://127.0.0.1:{auth.port}/health"
        wait_for(lambda: "of the disk" in json.loads(http(health)[1])["ledgerWarning"], "a warning", 30)
        self.assertEqual(http(health)[0], 200)
        self.assertTrue(auth.allowed())
        (disk / "ballast").unlink()
        wait_for(lambda: json.loads(http(health)[1])["ledgerWarning"] == "", "no warning", 30)

        def told():
            return [data["state"] for _, data in prefix.events("auth.ledger_changed")][-2:] == ["low", "ok"]

        wait_for(told, "both as events", 30)


if __name__ == "__main__":
    unittest.main()
