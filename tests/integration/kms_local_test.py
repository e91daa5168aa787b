"""dstack-kms-local: a guest's key request over TLS, the webhook that decides, and what it refuses."""
import json
import os
import shutil
import ssl
import stat
import unittest

from kms_support import APP, COMPOSE, IMAGE, INSTANCE, SEED, Guest, Webhook, call, kms_config, request, tee_tool, trusting
from mesh import Prefix, bus_config, free_port, need, program, wait_for


def setUpModule():
    need(program("kms-local").exists(), "dstack-kms-local is not built")


class Case(unittest.TestCase):
    bus = False

    def setUp(self):
        self.prefix = Prefix()
        self.addCleanup(self.prefix.close)
        self.webhook = Webhook()
        self.addCleanup(self.webhook.close)
        (self.prefix.path / "tee-host.pub").write_text(tee_tool("host-key", SEED) + "\n")
        self.port = free_port()
        if self.bus:
            self.prefix.start("bus", bus_config(self.prefix))
        self.kms = self.start()

    def start(self, **extra):
        return self.prefix.start("kms-local", kms_config(self.prefix, self.port, self.webhook.url, self.bus, **extra))

    def guest(self, **claims):
        return Guest(self.prefix.path, self.port, **claims)


class KeyRelease(Case):
    def test_a_guest_gets_its_keys(self):
        status, keys = self.guest().get_app_key()
        self.assertEqual(status, 200, keys)
        self.assertEqual(list(keys), ["ca_cert", "disk_crypt_key", "env_crypt_key", "k256_key", "k256_signature", "tproxy_app_id",
                                      "gateway_app_id", "os_image_hash"])
        self.assertEqual((keys["gateway_app_id"], keys["os_image_hash"]), ("gw", IMAGE))
        self.assertEqual([len(keys[key]) for key in ("disk_crypt_key", "env_crypt_key", "k256_key", "k256_signature")], [64, 64, 64, 130])

        method, path, headers, body = self.webhook.asked[-1]
        self.assertEqual((method, path, headers["Content-Type"]), ("POST", "/bootAuth/app", "application/json"))
        self.assertTrue(headers["User-Agent"].startswith("dstack-kms/"))
        boot = json.loads(body)
        self.assertEqual(list(boot), ["teeVariant", "mrAggregated", "osImageHash", "mrSystem", "appId", "composeHash", "instanceId", "deviceId",
                                      "keyProviderInfo", "tcbStatus", "advisoryIds"])
        self.assertEqual((boot["appId"], boot["composeHash"], boot["instanceId"], boot["osImageHash"]), (APP, COMPOSE, INSTANCE, IMAGE))
        self.assertEqual((boot["teeVariant"], boot["keyProviderInfo"], boot["advisoryIds"]), ("dstack-tdx", "", []))

        # The same instance gets the same keys after a restart, another instance another disk key.
        self.kms.kill()
        self.kms = self.start()
        self.assertEqual(self.guest().get_app_key()[1], keys)
        other = self.guest(instance="e" * 40).get_app_key()[1]
        self.assertNotEqual(other["disk_crypt_key"], keys["disk_crypt_key"])
        self.assertEqual(other["env_crypt_key"], keys["env_crypt_key"])

    def test_a_denied_boot_gets_the_reason(self):
        self.webhook.reply = (200, {"isAllowed": False, "gatewayAppId": "", "reason": "compose hash not allowed"})
        status, _, body = request(self.port, "POST", "/prpc/KMS.GetAppKey?json", b"{}")
        self.assertEqual((status, body), (400, b'{\n  "error": "App not allowed: No attestation provided"\n}'))
        self.assertEqual(self.guest().get_app_key(), (400, {"error": "App not allowed: Boot denied: compose hash not allowed"}))

    def test_every_other_answer_of_the_webhook_is_a_refusal(self):
        allowed = {"isAllowed": True, "gatewayAppId": "", "reason": ""}
        url = self.webhook.url + "/bootAuth/app"
        guest = self.guest()
        for reply, error in [((500, allowed), f"App not allowed: auth api {url} returned 500"),
                             ((302, allowed), f"App not allowed: auth api {url} returned 302"),
                             ((200, b"yes"), f"App not allowed: failed to decode response from {url}, status=200, body=yes"),
                             ((200, {"isAllowed": True, "reason": ""}), "App not allowed: failed to decode response"),
                             ((200, {**allowed, "isAllowed": "true"}), "App not allowed: failed to decode response")]:
            with self.subTest(reply=reply):
                self.webhook.reply = reply
                status, answer = guest.get_app_key()
                self.assertEqual(status, 400)
                self.assertIn(error, answer["error"])
        self.webhook.close()
        status, answer = guest.get_app_key()
        self.assertEqual(status, 400)
        self.assertIn("connection_refused", answer["error"])

    def test_a_hanging_webhook_is_a_refusal_in_time(self):
        self.kms.stop()
        self.start(auth_timeout_ms=200)
        guest = self.guest()
        self.webhook.hang.clear()
        status, answer = guest.get_app_key()
        self.assertEqual(status, 400)
        self.assertIn("timeout", answer["error"])

    def test_another_host_is_not_believed(self):
        status, answer = self.guest(seed="22" * 32).get_app_key()
        self.assertEqual(status, 400)
        self.assertEqual(answer["error"], "App not allowed: simulated quote: the statement is not signed by this host's VMM")
        self.assertEqual([entry for entry in self.webhook.asked if entry[0] == "POST"], [])

    def test_bad_requests(self):
        guest = self.guest()
        self.assertEqual(guest.get_app_key(api_version=2), (400, {"error": "Unsupported API version: 2"}))
        status, answer = guest.get_app_key(vm_config={"os_image_hash": "e" * 64})
        self.assertEqual(status, 400)
        self.assertTrue(answer["error"].startswith("App not allowed: Failed to verify os image hash: "), answer)
        self.assertEqual(call(self.port, "GetAppEnvEncryptPubKey", {"app_id": "aa"}), (400, {"error": "app_id must be 20 bytes"}))
        self.assertEqual(call(self.port, "Nonsense"), (400, {"error": "Service not found: Nonsense"}))
        for method, path, body, expected in [("POST", "/prpc/GetAppKey?json", b"[]", 400), ("POST", "/prpc/a/b", b"", 404), ("GET", "/", None, 404),
                                             ("PUT", "/prpc/GetMeta", b"", 404), ("POST", "/prpc/GetMeta", b"", 400)]:
            self.assertEqual(request(self.port, method, path, body)[0], expected, (method, path))

    def test_a_certificate_of_another_authority_ends_the_handshake(self):
        first = self.guest()
        self.kms.stop()
        shutil.rmtree(self.prefix.state("kms-local"))
        self.start()
        with self.assertRaises((ssl.SSLError, ConnectionError, OSError)):
            call(self.port, "GetMeta", {}, trusting(call(self.port, "GetTempCaCert")[1]["ca_cert"], first.identity))


class Metadata(Case):
    def test_meta_names_the_identity_and_needs_the_webhook(self):
        status, meta = call(self.port, "GetMeta")
        self.assertEqual(status, 200, meta)
        self.assertEqual((meta["gateway_app_id"], meta["chain_id"], meta["simulated"]), ("gw", 0, True))
        self.assertEqual(len(meta["k256_pubkey"]), 66)
        self.assertEqual(self.webhook.asked[-1][:2], ("GET", "/"))
        recorded = json.loads((self.prefix.state("kms-local") / "identity.json").read_text())
        (self.prefix.path / "ca.crt").write_text(meta["ca_cert"])
        self.assertEqual(recorded, {"ca_fingerprint": tee_tool("fingerprint", self.prefix.path / "ca.crt"), "k256_pubkey": meta["k256_pubkey"]})
        # The server's own certificate is the CA's, for the names that the host and the guest use.
        self.assertEqual(call(self.port, "GetMeta", {}, trusting(meta["ca_cert"]))[0], 200)
        self.assertEqual(request(self.port, "GET", "/prpc/GetMeta", host="localhost", context=trusting(meta["ca_cert"]))[0], 200)

        self.webhook.info = (503, b"down")
        self.assertEqual(call(self.port, "GetMeta")[0], 400)
        status, headers, body = request(self.port, "GET", "/health")
        self.assertEqual((status, body), (200, b"OK"))
        self.assertTrue(headers["X-App-Version"])

    def test_env_key_by_get_and_post(self):
        by_post = call(self.port, "GetAppEnvEncryptPubKey", {"app_id": "0x" + APP})
        status, _, body = request(self.port, "GET", f"/prpc/GetAppEnvEncryptPubKey?app_id={APP}")
        self.assertEqual((by_post[0], status), (200, 200))
        self.assertEqual(json.loads(body)["public_key"], by_post[1]["public_key"])


class RootKeys(Case):
    def test_keys_are_private_and_never_made_again(self):
        state = self.prefix.state("kms-local")
        for name in ("root-ca.key", "tmp-ca.key", "root-k256.key"):
            self.assertEqual(stat.S_IMODE((state / "keys" / name).stat().st_mode), 0o600)
        before = (state / "identity.json").read_text()
        self.kms.stop()

        (state / "keys/root-k256.key").rename(self.prefix.path / "kept")
        refused = self.prefix.service("kms-local", None).launch()
        self.assertEqual(refused.wait(), 70)
        self.assertIn("root-k256.key is missing", refused.text())

        (state / "keys/root-k256.key").write_bytes(os.urandom(32))
        refused = self.prefix.service("kms-local", None).launch()
        self.assertEqual(refused.wait(), 70)
        self.assertIn("root keys are not the recorded ones", refused.text())

        shutil.move(state / "keys", self.prefix.path / "keys-kept")
        refused = self.prefix.service("kms-local", None).launch()
        self.assertEqual(refused.wait(), 70)
        self.assertIn("an identity was recorded", refused.text())
        self.assertFalse((state / "keys").exists())

        shutil.move(self.prefix.path / "keys-kept", state / "keys")
        shutil.move(self.prefix.path / "kept", state / "keys/root-k256.key")
        self.prefix.service("kms-local", None).start()
        self.assertEqual((state / "identity.json").read_text(), before)

    def test_a_bootstrap_that_was_cut_short_starts_anew(self):
        self.kms.stop()
        state = self.prefix.state("kms-local")
        shutil.rmtree(state / "keys")
        (state / "identity.json").unlink()
        (state / "keys.new").mkdir()
        (state / "keys.new/root-ca.key").write_text("half")
        self.prefix.service("kms-local", None).start()
        self.assertFalse((state / "keys.new").exists())
        self.assertEqual(call(self.port, "GetMeta")[0], 200)

    def test_the_missing_host_key_is_named_and_read_when_it_comes(self):
        key = self.prefix.path / "tee-host.pub"
        kept = key.read_text()
        key.unlink()
        guest = self.guest()
        status, answer = guest.get_app_key()
        self.assertEqual(status, 400)
        self.assertIn("key of the simulated TEE", answer["error"])
        key.write_text(kept)
        self.assertEqual(guest.get_app_key()[0], 200)


class Events(Case):
    bus = True

    def journal(self):
        import sqlite3
        path = next(self.prefix.state("bus").glob("*.db"))
        with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as database:
            tables = [row[0] for row in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
            return str([row for table in tables for row in database.execute(f'SELECT * FROM "{table}"')])

    def test_bootstrap_release_and_refusal_are_events(self):
        guest = self.guest()
        self.assertEqual(guest.get_app_key()[0], 200)
        self.webhook.reply = (200, {"isAllowed": False, "gatewayAppId": "", "reason": "device not allowed"})
        self.assertEqual(guest.get_app_key()[0], 400)
        for word in ("kms.bootstrapped", "key.released", "key.refused", "device not allowed"):
            wait_for(lambda word=word: word in self.journal(), f"{word} in the journal")


if __name__ == "__main__":
    unittest.main()
