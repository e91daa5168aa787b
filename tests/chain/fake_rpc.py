"""An RPC endpoint that behaves as badly as a test wants: rate limits, hangs, garbage, another chain, another opinion."""
import json
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import abi

IS_APP_ALLOWED, IS_KMS_ALLOWED, GATEWAY, IMPLEMENTATION = "1e079198", "e067ec9d", "95f51931", "25a992da"


class FakeRpc:
    """`mode` is a function(handler, calls) that answers one request; None: as the fields say."""

    def __init__(self, port=0, context=None):
        self.chain_id, self.allowed, self.reason, self.gateway = 31337, True, "", "gw"
        self.head, self.finalized, self.block_age = 1000, 990, 60
        self.mode = None
        self.requests = []  # (path, headers, decoded body)
        self.ending = threading.Event()
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                calls = json.loads(body)
                fake.requests.append((self.path, dict(self.headers), calls))
                try:
                    (fake.mode or FakeRpc.answer_well)(fake, self, calls)
                except OSError:
                    self.close_connection = True

            def log_message(self, *_):
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128

            def handle_error(self, *_):
                pass  # who hangs up in the middle is what these tests are about

        self.server = Server(("127.0.0.1", port), Handler)
        if context is not None:
            self.server.socket = context.wrap_socket(self.server.socket, server_side=True, do_handshake_on_connect=False)
        self.port = self.server.server_address[1]
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self.thread.start()

    def close(self):
        self.ending.set()
        self.server.shutdown()
        self.server.server_close()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}/key-SECRET?token=SECRET"

    @property
    def label(self):
        return f"127.0.0.1:{self.port}"

    def questions(self):
        """The requests that asked for a verdict."""
        return [calls for _, _, calls in list(self.requests)
                if any(call["method"] == "eth_call" and call["params"][0]["data"][2:10] in (IS_APP_ALLOWED, IS_KMS_ALLOWED) for call in calls)]

    def block(self, tag):
        number = self.finalized if tag == "finalized" else int(tag, 16)
        if number > self.head:
            return None
        return {"number": hex(number), "hash": "0x" + f"{number:064x}", "timestamp": hex(int(time.time()) - self.block_age), "transactions": []}

    def result(self, call):
        method, params = call["method"], call["params"]
        if method == "eth_chainId":
            return hex(self.chain_id)
        if method == "eth_blockNumber":
            return hex(self.head)
        if method == "eth_getBlockByNumber":
            return self.block(params[0])
        selector = params[0]["data"][2:10]
        if selector in (IS_APP_ALLOWED, IS_KMS_ALLOWED):
            return "0x" + abi.ruling(self.allowed, self.reason).hex()
        if selector == GATEWAY:
            return "0x" + abi.arguments(self.gateway).hex()
        return "0x" + abi.arguments(bytes([0x77] * 20)).hex()

    def replies(self, calls):
        return [{"jsonrpc": "2.0", "id": call["id"], "result": self.result(call)} for call in calls]

    def answer_well(self, handler, calls):
        send(handler, 200, json.dumps(self.replies(calls)).encode())


def send(handler, status, body=b"", **headers):
    handler.send_response(status)
    handler.send_header("Content-Type", "application/json")
    handler.send_header("Content-Length", str(len(body)))
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(body)


def status(code, **headers):
    """Answers everything with this status."""
    return lambda fake, handler, calls: send(handler, code, b"nothing for you", **headers)


def raw(body):
    return lambda fake, handler, calls: send(handler, 200, body)


def changed(change):
    """A good answer after `change(replies)` (which may also give another document)."""
    def answer(fake, handler, calls):
        replies = fake.replies(calls)
        other = change(replies)
        send(handler, 200, json.dumps(replies if other is None else other).encode())
    return answer


def hang(fake, handler, calls):
    """Takes the request and says nothing, until the client goes or the test ends."""
    handler.connection.settimeout(0.2)
    while not fake.ending.is_set():
        try:
            if handler.connection.recv(1) == b"":
                break
        except TimeoutError:
            continue
    handler.close_connection = True


def drip(fake, handler, calls):
    """One byte of a body without an end, ten times a second."""
    handler.send_response(200)
    handler.send_header("Content-Length", "100000")
    handler.end_headers()
    while not fake.ending.wait(0.1):
        handler.wfile.write(b" ")
        handler.wfile.flush()


def flood(fake, handler, calls):
    """As many bytes as the client takes."""
    handler.send_response(200)
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    chunk = b"10000\r\n" + b" " * 65536 + b"\r\n"
    sent = 0
    while not fake.ending.is_set() and sent < 1 << 30:
        handler.wfile.write(chunk)
        sent += 65536


def many_fields(fake, handler, calls):
    handler.wfile.write(b"HTTP/1.1 200 OK\r\n" + b"".join(b"X-%d: %s\r\n" % (i, b"y" * 1000) for i in range(1000)) + b"\r\n")


def hang_up(fake, handler, calls):
    handler.connection.shutdown(socket.SHUT_RDWR)
    handler.close_connection = True
