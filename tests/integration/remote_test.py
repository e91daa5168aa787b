"""Operators of other hosts: CURVE over tcp, tokens, and refusals that have a name within a second."""
import base64
import json
import os
import shutil
import socket
import subprocess
import threading
import time
import unittest

import zmtp
from mesh import Prefix, bus_config, free_port, need, program, wait_for


def free_port_pair():
    for _ in range(100):
        port = free_port()
        try:
            with socket.socket() as next_one:
                next_one.bind(("127.0.0.1", port + 1))
            if port < 65534:
                return port
        except OSError:
            pass
    raise AssertionError("no two free ports in a row")


class RemoteTest(unittest.TestCase):
    def setUp(self):
        self.prefix = Prefix()
        self.addCleanup(self.prefix.close)
        self.port = free_port_pair()
        self.config = bus_config(self.prefix) + f'\n[tcp]\nlisten = "127.0.0.1:{self.port}"\n'
        self.broker = self.prefix.start("bus", self.config)
        self.followers = []
        self.addCleanup(self.end_followers)

    def end_followers(self):
        for follower in self.followers:
            if follower.poll() is None:
                follower.kill()
            follower.wait(10)
            follower.stdout.close()

    def up(self, *arguments, code=0):
        done = subprocess.run([str(program("dstackup")), *arguments, "--prefix", str(self.prefix.path)], stdin=subprocess.DEVNULL,
                              capture_output=True, text=True, timeout=30)
        self.assertEqual(done.returncode, code, done.stdout + done.stderr)
        return done

    def token(self, name, *arguments):
        """A token file for `name`."""
        path = self.prefix.path / f"{name}.join"
        self.up("token", "create", name, "--out", str(path), *arguments)
        return path

    def remote(self, token, *arguments, code=None, **options):
        started = time.monotonic()
        done = subprocess.run([str(program("dstack")), *arguments, "--token-file", str(token)], stdin=subprocess.DEVNULL, capture_output=True,
                              text=True, timeout=30, **options)
        done.seconds = time.monotonic() - started
        if code is not None:
            self.assertEqual(done.returncode, code, done.stdout + done.stderr)
        return done

    def local_events(self, *filters):
        done = subprocess.run([str(program("dstack")), "events", "--from", "0", "--no-follow", "--json", "--prefix", str(self.prefix.path), *filters],
                              capture_output=True, text=True, timeout=30)
        return [json.loads(line) for line in done.stdout.splitlines()]

    def refusals(self, kind):
        return [event["data"] for event in self.local_events("--type", "bus.peer_refused") if event["data"]["kind"] == kind]

    def follow(self, token):
        process = subprocess.Popen([str(program("dstack")), "events", "-f", "--from", "0", "--token-file", str(token)], stdin=subprocess.DEVNULL,
                                   stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        process.lines = []

        def read():
            for line in process.stdout:
                process.lines.append(line)

        threading.Thread(target=read, daemon=True).start()
        self.followers.append(process)
        wait_for(lambda: any("bus.started" in line for line in process.lines), "the follower reads")
        return process

    def connections(self, name):
        listed = json.loads(self.up("token", "list", "--json").stdout)["data"]["tokens"]
        return next(token["connections"] for token in listed if token["name"] == name)

    def test_a_token_opens_the_bus_and_its_role_is_kept(self):
        viewer, operator, admin = self.token("vic"), self.token("otto", "--role", "operator"), self.token("ada", "--role", "admin")
        self.assertEqual(viewer.stat().st_mode & 0o777, 0o600)
        done = self.remote(viewer, "events", "--from", "0", "--no-follow", "--json", code=0)
        types = [json.loads(line)["type"] for line in done.stdout.splitlines()]
        self.assertEqual(types, ["bus.started", "bus.token_created", "bus.token_created", "bus.token_created"])
        compose = self.prefix.path / "compose.yaml"
        compose.write_text("services:\n  web:\n    image: web\n")
        deploy = ("deploy", "-n", "x", "-c", str(compose), "--no-wait")
        denied = self.remote(viewer, *deploy, code=4)
        self.assertIn("needs the role operator, and you are viewer", denied.stderr)
        # The operator's may; there is nobody here who would do it.
        self.assertIn("never registered", self.remote(operator, *deploy, code=3).stderr)
        self.assertIn("never registered", self.remote(admin, *deploy, code=3).stderr)
        said = wait_for(lambda: self.refusals("access"), "the refusal is an event")[0]
        self.assertEqual((said["token"], said["address"], said["tried"], said["uid"], said["pid"]), ("vic", "127.0.0.1", "deploy.create", 0, 0))
        self.assertEqual(len(said["key"]), 16)
        # The environment names the same.
        env = {**os.environ, "DSTACK_HOST": f"127.0.0.1:{self.port}", "DSTACK_TOKEN_FILE": str(viewer)}
        done = subprocess.run([str(program("dstack")), "events", "--from", "0", "--no-follow"], capture_output=True, text=True, env=env, timeout=30)
        self.assertEqual(done.returncode, 0, done.stderr)

    def test_the_secret_is_nowhere_but_in_the_join_string(self):
        shown = self.up("token", "create", "ann").stdout.strip()
        self.assertEqual(len(shown.splitlines()), 1)
        text = shown.removeprefix("dstack-join-v1.")
        join = json.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))[:-4])
        self.assertEqual(join["address"], f"127.0.0.1:{self.port}")
        token = self.prefix.path / "ann.join"
        token.touch(0o600)
        token.write_text(shown + "\n")
        self.remote(token, "events", "--from", "0", "--no-follow", code=0)
        self.broker.stop()
        for path in self.prefix.path.rglob("*"):
            if path.is_file() and path != token:
                content = path.read_bytes()
                self.assertNotIn(join["secret_key"].encode(), content, path)
                self.assertNotIn(bytes.fromhex(join["secret_key"]), content, path)
        key = self.prefix.state("bus") / "curve.key"
        self.assertEqual(key.stat().st_mode & 0o777, 0o600)
        self.assertEqual((self.prefix.state("bus") / "tokens.json").stat().st_mode & 0o777, 0o600)

    def test_what_is_wrong_with_a_connection_has_a_name_within_a_second(self):
        token = self.token("ann")
        gone = self.token("bob")
        self.up("token", "revoke", "bob")
        banner, mute = self.listener(b"SSH-2.0-other\r\n"), self.listener(b"")
        other_prefix = Prefix()
        self.addCleanup(other_prefix.close)
        other_port = free_port_pair()
        other = other_prefix.start("bus", bus_config(other_prefix) + f'\n[tcp]\nlisten = "127.0.0.1:{other_port}"\n')
        rows = [
            ("revoked", gone, f"127.0.0.1:{self.port}", 4, "refused the token bob"),
            ("another server's key", token, f"127.0.0.1:{other_port}", 4, "does not have the key that the token was made for"),
            ("nobody listens", token, f"127.0.0.1:{free_port()}", 3, "does not answer"),
            ("no bus at all", token, f"127.0.0.1:{banner}", 4, "is no dstack bus"),
        ]
        for what, file, host, code, message in rows:
            with self.subTest(what):
                done = self.remote(file, "ls", "--host", host, code=code)
                self.assertIn(message, done.stderr)
                self.assertIn("hint: ", done.stderr)
                self.assertLess(done.seconds, 1.0)
        self.assertIn("was not made for this broker's key", self.text_of(other, "not made for"))
        # One that accepts and says nothing cannot be told from one that is slow: three seconds.
        done = self.remote(token, "ls", "--host", f"127.0.0.1:{mute}", code=3)
        self.assertIn("accepts the connection, and then does not speak as a bus", done.stderr)
        self.assertLess(done.seconds, 4.0)
        # A client's key that the broker never saw: the same server, a table without it.
        (self.prefix.state("bus") / "tokens.json").unlink()
        self.broker.kill()
        self.broker.start()
        done = self.remote(token, "ls", code=4)
        self.assertIn("refused the token ann", done.stderr)
        self.assertLess(done.seconds, 1.0)
        refused = wait_for(lambda: self.refusals("token"), "the refusal is an event")[-1]
        self.assertEqual((refused["tried"], refused["address"], refused["token"]), ("connect", "127.0.0.1", ""))
        self.assertIn("no token has the key " + refused["key"], refused["reason"])
        # JSON has the same, with the same exit code.
        error = json.loads(self.remote(token, "ls", "--json", code=4).stdout)["error"]
        self.assertEqual(error["code"], "unauthenticated")

    def listener(self, greeting):
        """A port where something else listens, which greets whoever comes."""
        server = socket.create_server(("127.0.0.1", 0))
        peers = []

        def serve():
            while True:
                try:
                    peer, _ = server.accept()
                except OSError:
                    return
                peers.append(peer)
                if greeting:
                    peer.sendall(greeting)

        threading.Thread(target=serve, daemon=True).start()
        self.addCleanup(lambda: [one.close() for one in [server, *peers]])
        return server.getsockname()[1]

    def text_of(self, service, needle):
        return wait_for(lambda: needle in service.text() and service.text(), f"{needle} in the log")

    def test_a_revoked_token_loses_its_connections_at_once(self):
        token = self.token("ann")
        other = self.token("bob")
        follower, bystander = self.follow(token), self.follow(other)
        wait_for(lambda: self.connections("ann") == 2, "both sockets are known")
        started = time.monotonic()
        revoked = json.loads(self.up("token", "revoke", "ann", "--json").stdout)["data"]
        self.assertEqual((revoked["state"], revoked["cut"], revoked["already"]), ("revoked", 2, False))
        self.assertEqual(follower.wait(5), 4)
        self.assertLess(time.monotonic() - started, 1.0)
        wait_for(lambda: any("refused the token ann" in line for line in follower.lines), "the follower says why")
        self.assertFalse(any("token_revoked" in line for line in follower.lines), "an event after the revocation")
        wait_for(lambda: any("token_revoked" in line for line in bystander.lines), "the others go on")
        self.assertIsNone(bystander.poll())
        self.assertEqual(self.connections("ann"), 0)
        self.assertIn("already revoked", self.up("token", "revoke", "ann").stdout)
        # Durable: also after kill -9.
        self.broker.kill()
        self.broker.start()
        self.remote(token, "ls", code=4)
        wait_for(lambda: sum("bus.started" in line for line in bystander.lines) == 2, "the bystander reads on after the restart")
        self.up("token", "revoke", "nobody", code=3)

    def test_an_expired_token_ends_while_it_is_used_and_cannot_come_back(self):
        token = self.token("ann", "--expires", "2s")
        follower = self.follow(token)
        self.assertEqual(follower.wait(8), 4)
        wait_for(lambda: any("token ann expired at" in line for line in follower.lines), "the follower says why")
        done = self.remote(token, "ls", code=4)
        self.assertIn("the token ann expired at", done.stderr)
        self.assertLess(done.seconds, 1.0)
        expired = wait_for(lambda: self.local_events("--type", "bus.token_expired"), "it is an event")
        self.assertEqual([event["subject"] for event in expired], ["ann"])
        self.assertEqual(json.loads(self.up("token", "list", "--json").stdout)["data"]["tokens"][0]["state"], "expired")
        self.token("ann2")
        self.up("token", "create", "ann")  # the name is free again

    def test_tcp_has_nothing_but_curve_and_ipc_nothing_but_null(self):
        for port in (self.port, self.port + 1):
            peer = zmtp.dial(("127.0.0.1", port))
            peer.sendall(zmtp.greeting() + zmtp.ready(b"DEALER") + zmtp.message(zmtp.line("1", "call", "c1", "bus.services", "9999999999999", "", "", "{}")))
            received = b""
            try:
                while got := peer.recv(4096):
                    received += got
            except ConnectionError:
                pass
            self.assertLessEqual(len(received), 64, "no more than a greeting")
            peer.close()
        said = wait_for(lambda: self.refusals("handshake"), "the refusal is an event")[0]
        self.assertIn("does not speak CURVE", said["reason"])
        self.assertIn(said["address"], ("127.0.0.1", "unknown"))  # a peer may be gone before anybody could look
        peer = zmtp.dial(self.prefix.bus / "commands.sock")
        peer.sendall(zmtp.greeting(b"CURVE"))
        try:
            self.assertLessEqual(len(peer.recv(4096)) + len(peer.recv(4096)), 64)
        except ConnectionError:
            pass
        peer.close()

    def test_off_by_default_and_refused_when_it_cannot_be(self):
        other = Prefix()
        self.addCleanup(other.close)
        other.start("bus", bus_config(other))
        self.assertFalse((other.state("bus") / "curve.key").exists())
        done = subprocess.run([str(program("dstackup")), "token", "create", "x", "--prefix", str(other.path)], capture_output=True, text=True, timeout=30)
        self.assertEqual(done.returncode, 7, done.stderr)
        self.assertIn("[tcp] listen", done.stderr)
        self.assertEqual(done.stdout, "")
        # A port that is taken: said by name, and the umask of the process is no concern of anybody's.
        third = Prefix()
        self.addCleanup(third.close)
        service = third.service("bus", bus_config(third) + f'\n[tcp]\nlisten = "127.0.0.1:{self.port}"\n')
        service.launch()
        self.assertEqual(service.wait(), 70)
        self.assertIn(f"127.0.0.1:{self.port}", service.text())

    def test_token_files_and_flags_are_checked_before_anything_is_sent(self):
        token = self.token("ann")
        readable = self.prefix.path / "open.join"
        shutil.copy(token, readable)
        readable.chmod(0o644)
        damaged = self.prefix.path / "damaged.join"
        damaged.touch(0o600)
        damaged.write_text(token.read_text()[:100])
        rows = [
            (("--token-file", str(readable)), 4, "others than its owner may read it"),
            (("--token-file", str(damaged)), 2, "the join string is damaged"),
            (("--token-file", str(self.prefix.path / "none")), 3, "token file: open"),
            (("--host", "127.0.0.1"), 2, "needs a token"),
            (("--host", "x:y", "--token-file", str(token)), 2, "no HOST:PORT"),
            (("--prefix", "/x", "--token-file", str(token)), 2, "--prefix is for an instance on this host"),
        ]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("DSTACK_")}
        for arguments, code, message in rows:
            with self.subTest(arguments):
                done = subprocess.run([str(program("dstack")), "ls", *arguments], capture_output=True, text=True, timeout=30, env=environment)
                self.assertEqual(done.returncode, code, done.stderr)
                self.assertIn(message, done.stderr)
                self.assertNotIn(token.read_text()[40:60], done.stderr)
        self.up("token", "create", "bob", "--out", str(token), code=5)  # never over a file that is there
        self.up("token", "create", "bob", "--role", "root", code=2)
        self.up("token", "create", "BOB", code=2)
        self.up("token", "create", "bob", "--expires", "0d", code=2)
        stdin = subprocess.run([str(program("dstack")), "events", "--from", "0", "--no-follow", "--token-file", "-"], input=token.read_text(),
                               capture_output=True, text=True, timeout=30)
        self.assertEqual(stdin.returncode, 0, stdin.stderr)

    def test_a_stranger_on_this_host_is_refused_by_name(self):
        need(os.geteuid() == 0, "another user is needed to be a stranger")
        for path in (self.prefix.path, self.prefix.bus):
            path.chmod(0o755)
        for name in ("commands.sock", "events.sock"):  # what a careless administrator might do: the handshake still refuses
            (self.prefix.bus / name).chmod(0o666)
        binary = self.prefix.path / "dstack"
        shutil.copy(program("dstack"), binary)
        started = time.monotonic()
        done = subprocess.run([str(binary), "ls", "--prefix", str(self.prefix.path)], capture_output=True, text=True, timeout=30, user=65534, group=65534,
                              extra_groups=[])
        self.assertLess(time.monotonic() - started, 1.0)
        self.assertEqual(done.returncode, 4, done.stderr)
        self.assertIn("refused this user", done.stderr)
        said = wait_for(lambda: self.refusals("connect"), "the refusal is an event")[0]
        self.assertEqual((said["uid"], said["tried"]), (65534, "connect"))
        self.assertGreater(said["pid"], 0)
        self.assertIn("neither a service nor in group", said["reason"])


if __name__ == "__main__":
    unittest.main()
