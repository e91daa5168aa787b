#!/usr/bin/python3
"""raw_peer.py DIRECTORY [commands|events]: one socket on the bus that says what it is told: each line of stdin is a JSON list of
frames to send, each message that comes is printed as one. Knows nothing of the protocol."""
import json
import sys
import zmq

name = (sys.argv[2:] or ["commands"])[0]
peer = zmq.Context().socket(zmq.DEALER if name == "commands" else zmq.SUB)
peer.linger = 0
if name == "events":
    peer.subscribe(b"")
peer.connect(f"ipc://{sys.argv[1]}/{name}.sock")
poller = zmq.Poller()
poller.register(peer, zmq.POLLIN)
poller.register(sys.stdin.fileno(), zmq.POLLIN)
while True:
    for source, _ in poller.poll():
        if source is peer:
            print(json.dumps([frame.decode("utf-8", "replace") for frame in peer.recv_multipart()]), flush=True)
        else:
            line = sys.stdin.readline()
            if not line:
                sys.exit(0)
            peer.send_multipart([frame.encode("utf-8", "surrogateescape") for frame in json.loads(line)])
