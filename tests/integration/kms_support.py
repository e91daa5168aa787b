"""For the tests of the two KMS services: a scriptable authorization webhook, TLS requests, and a guest's RA-TLS identity."""
import http.client
import json
import ssl
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from mesh import BUILD

TEE_TOOL = BUILD / "tests/unit/attestation/tee_tool"
SEED = "11" * 32
APP, COMPOSE, INSTANCE, IMAGE = "a" * 40, "b" * 64, "c" * 40, "d" * 64
INFO = {"status": "ok", "kmsContractAddr": "", "gatewayAppId": "gw", "chainId": 0, "appImplementation": ""}


def tee_tool(*arguments):
    return subprocess.run([str(TEE_TOOL), *map(str, arguments)], check=True, capture_output=True, text=True).stdout.strip()


class Webhook:
    """An authorization webhook that answers what the test says, and remembers what it was asked."""

    def __init__(self, port=0):
        self.reply = (200, {"isAllowed": True, "gatewayAppId": "gw", "reason": ""})
        self.info = (200, INFO)
        self.asked = []
        self.hang = threading.Event()
        self.hang.set()  # cleared: requests wait
        webhook = self

        class Handler(BaseHTTPRequestHandler):
            def answer(self, status, body):
                webhook.hang.wait(30)
                data = body if isinstance(body, bytes) else json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                try:
                    self.wfile.write(data)
                except BrokenPipeError:
                    pass  # the KMS had stopped waiting

            def do_GET(self):
                webhook.asked.append(("GET", self.path, dict(self.headers), b""))
                self.answer(*webhook.info)

            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                webhook.asked.append(("POST", self.path, dict(self.headers), body))
                self.answer(*webhook.reply)

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.server.daemon_threads = True
        self.port = self.server.server_address[1]
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self.thread.start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    def close(self):
        self.hang.set()
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


def unverified():
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def trusting(ca_pem, identity=None):
    context = ssl.create_default_context(cadata=ca_pem)
    if identity is not None:
        context.load_cert_chain(*map(str, identity))
    return context


def request(port, method, path, body=None, context=None, headers=None, host="127.0.0.1"):
    """(status, headers, bytes)"""
    connection = http.client.HTTPSConnection(host, port, timeout=20, context=context or unverified())
    try:
        connection.request(method, path, body=body, headers=headers or {})
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read()
    finally:
        connection.close()


def call(port, method, arguments=None, context=None):
    """(status, decoded JSON) of a prpc call, as upstream's clients make it: ?json and no Content-Type."""
    status, _, body = request(port, "POST", f"/prpc/{method}?json", json.dumps(arguments or {}).encode(), context)
    return status, json.loads(body)


def kms_config(prefix, port, auth_url, bus=True, **extra):
    lines = {"port": port, "state_dir": str(prefix.state("kms-local")), "auth_url": auth_url,
             "tee_host_key_file": str(prefix.path / "tee-host.pub"), **extra}
    text = "[kms]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in lines.items())
    return text + (f'\n[bus]\ndirectory = "{prefix.bus}"\n' if bus else "")


class Guest:
    """What the guest agent does: temporary CA without verification, then a quote-bearing certificate and a verified connection."""

    def __init__(self, folder, port, seed=SEED, app=APP, compose=COMPOSE, instance=INSTANCE, image=IMAGE):
        self.port = port
        status, temp = call(port, "GetTempCaCert")
        assert status == 200, temp
        self.ca_cert = temp["ca_cert"]
        paths = {name: folder / f"guest-{name}" for name in ("tee", "ca.crt", "ca.key", "crt", "key")}
        paths["tee"].write_text(tee_tool("config", seed, app, compose, instance, image, "vm-1"))
        paths["ca.crt"].write_text(temp["temp_ca_cert"])
        paths["ca.key"].write_text(temp["temp_ca_key"])
        tee_tool("identity", paths["tee"], paths["ca.crt"], paths["ca.key"], paths["crt"], paths["key"])
        self.identity = (paths["crt"], paths["key"])

    def get_app_key(self, api_version=1, vm_config=None):
        arguments = {"api_version": api_version, "vm_config": json.dumps({"os_image_hash": IMAGE} if vm_config is None else vm_config)}
        return call(self.port, "GetAppKey", arguments, trusting(self.ca_cert, self.identity))
