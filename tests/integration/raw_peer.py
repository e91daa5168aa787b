#!/usr/bin/python3
"""One DEALER on the bus that says what it is told: each line of stdin is a JSON list of frames to send, each message that comes
is printed as one. Knows nothing of the protocol."""
import json
import sys
import zmq

dealer = zmq.Context().socket(zmq.DEALER)
dealer.linger = 0
dealer.connect(f"ipc://{sys.argv[1]}/commands.sock")
poller = zmq.Poller()
poller.register(dealer, zmq.POLLIN)
poller.register(sys.stdin.fileno(), zmq.POLLIN)
while True:
    for source, _ in poller.poll():
        if source is dealer:
            print(json.dumps([frame.decode("utf-8", "replace") for frame in dealer.recv_multipart()]), flush=True)
        else:
            line = sys.stdin.readline()
            if not line:
                sys.exit(0)
            dealer.send_multipart([frame.encode("utf-8", "surrogateescape") for frame in json.loads(line)])
