"""Just enough of Ethereum's contract ABI to speak to TestKms.sol; written apart from the one in services/auth/chain."""


def word(value):
    return int(value).to_bytes(32, "big")


def text(value):
    data = value.encode() if isinstance(value, str) else value
    return word(len(data)) + data + bytes(-len(data) % 32)


def arguments(*values):
    """bytes of 20 or 32: an address, a bytes32; bool, int: a number; str: a string."""
    head, tail = b"", b""
    for value in values:
        if isinstance(value, str):
            head += word(32 * len(values) + len(tail))
            tail += text(value)
        elif isinstance(value, bytes):
            head += bytes(32 - len(value)) + value
        else:
            head += word(value)
    return head + tail


def boot_tuple(boot):
    """The tuple of a boot as the KMS posts it (dstack-protocol.md, E.7), as the only argument of a call."""
    head = b"".join(bytes.fromhex(boot[key]).rjust(32, b"\0") for key in
                    ("appId", "composeHash", "instanceId", "deviceId", "mrAggregated", "mrSystem", "osImageHash"))
    status = text(boot["tcbStatus"])
    items = [text(item) for item in boot["advisoryIds"]]
    offsets, at = b"", 32 * len(items)
    for item in items:
        offsets += word(at)
        at += len(item)
    return word(32) + head + word(288) + word(288 + len(status)) + status + word(len(items)) + offsets + b"".join(items)


def ruling(allowed, reason=""):
    return arguments(allowed, reason)
