"""As much ZMTP 3.0 as a test needs, on a raw socket: so that it can also be spoken wrongly. NULL only."""
import socket
import struct

SIGNATURE = b"\xff" + b"\0" * 7 + b"\x01\x7f"


def greeting(mechanism=b"NULL", server=0):
    return SIGNATURE + b"\x03\x00" + mechanism.ljust(20, b"\0") + bytes([server]) + b"\0" * 31


def frame(body, more=False, command=False):
    flags = (1 if more else 0) | (4 if command else 0)
    if len(body) > 255:
        return struct.pack(">BQ", flags | 2, len(body)) + body
    return struct.pack(">BB", flags, len(body)) + body


def line(*fields):
    """A request as bus/README.md wants it: one frame, with newlines between the fields."""
    return b"\n".join(field if isinstance(field, bytes) else str(field).encode() for field in fields)


def message(*parts):
    return b"".join(frame(part, more=i + 1 < len(parts)) for i, part in enumerate(parts))


def ready(kind):
    body = b"\x05READY" + b"\x0bSocket-Type" + struct.pack(">I", len(kind)) + kind
    return frame(body, command=True)


def dial(address, timeout=5):
    """A connected socket: a path for ipc, (host, port) for tcp."""
    peer = socket.socket(socket.AF_INET if isinstance(address, tuple) else socket.AF_UNIX)
    peer.settimeout(timeout)
    peer.connect(address if isinstance(address, tuple) else str(address))
    return peer


class Peer:
    """One handshaken connection."""

    def __init__(self, address, kind=b"DEALER", timeout=5):
        self.socket = dial(address)
        self.buffer = b""
        try:
            self.socket.sendall(greeting())
            self.take(64)
            self.socket.sendall(ready(kind))
            flags, body = self.one_frame()
            if not flags & 4 or not body.startswith(b"\x05READY"):
                raise ConnectionError(f"refused: {body!r}")
        except BaseException:
            self.socket.close()
            raise
        self.socket.settimeout(timeout)

    def take(self, size):
        while len(self.buffer) < size:
            got = self.socket.recv(65536)
            if not got:
                raise ConnectionError("closed")
            self.buffer += got
        out, self.buffer = self.buffer[:size], self.buffer[size:]
        return out

    def one_frame(self):
        flags, short = self.take(2)
        size = short
        if flags & 2:
            size = int.from_bytes(bytes([short]) + self.take(7), "big")
        return flags, self.take(size)

    def send(self, *fields):
        self.socket.sendall(message(line(*fields)))

    def receive(self):
        """The fields of the next frame (what an `events` says is in the tenth, newlines and all); commands are skipped."""
        while True:
            flags, body = self.one_frame()
            if not flags & 4:
                return body.split(b"\n", 9)

    def ask(self, *fields):
        self.send(*fields)
        return self.receive()

    def closed(self):
        """Reads on until the other side closes; False when it does not within the time limit."""
        try:
            while self.socket.recv(65536):
                pass
            return True
        except TimeoutError:
            return False
        except ConnectionError:
            return True

    def close(self):
        self.socket.close()
