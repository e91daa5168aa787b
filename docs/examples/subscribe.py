#!/usr/bin/python3
"""Every matching durable event of the bus exactly once and in order, one JSON object a line. Written from bus/README.md alone.

    subscribe.py DIRECTORY [FROM] [FILTER]        subscribe.py /run/dstack/bus 0 '{"type":"vm.","severity":"warning"}'

FROM: 0, now, time:UNIX_MS, or the `sequence` of the last event that was seen. Needs pyzmq (the package python3-zmq).
"""
import json
import sys
import zmq

SEVERITIES, PASSING = ["debug", "info", "warning", "error"], (b"unavailable", b"deadline_exceeded", b"resource_exhausted")


def matches(event, wanted):
    enough = SEVERITIES.index(event["severity"]) >= SEVERITIES.index(wanted.get("severity") or "debug")
    return (enough and event["type"].startswith(wanted.get("type", "")) and wanted.get("subject") in (None, "", event.get("subject"))
            and wanted.get("source") in (None, "", event["source"].removeprefix("/dstack/")))


class Bus:
    def __init__(self, directory):
        self.context, self.directory, self.commands, self.asked = zmq.Context(), directory, None, 0
        self.live = self.context.socket(zmq.SUB)
        self.live.subscribe(b"")  # e. and h: only the whole sequence shows a hole
        self.live.connect(f"ipc://{directory}/events.sock")

    def read(self, after, wanted):
        """One page of the journal. An answer that was lost with a broker is asked for again, on a new connection."""
        while True:
            if self.commands is None:
                self.commands = self.context.socket(zmq.DEALER)
                self.commands.linger = 0
                self.refusals = self.commands.get_monitor_socket(zmq.EVENT_HANDSHAKE_FAILED_AUTH)
                self.commands.connect(f"ipc://{self.directory}/commands.sock")
                self.commands.send(b"1\nhello\n\nsubscribe.py")
            self.asked += 1
            correlation = b"r%d" % self.asked
            self.commands.send(b"\n".join([b"1", b"read", correlation, after.encode(), b"1000", json.dumps(wanted).encode()]))
            while self.commands.poll(1000):
                answer = self.commands.recv().split(b"\n", 9)  # the last field of `events`, the tenth, has newlines of its own
                if answer[1:3] == [b"events", correlation]:
                    return [int(number) for number in answer[3:8]] + [answer[8].decode()], [json.loads(line) for line in answer[9].splitlines()]
                if answer[1] == b"refused" or answer[1:3] == [b"reading_failed", correlation] and answer[3] not in PASSING:
                    sys.exit(f"{answer[-2].decode()}: {json.loads(answer[-1])['message']}")
            if self.refusals.poll(0):
                sys.exit("the bus refused this user: be a member of the dstack group, or root")
            self.commands.disable_monitor()
            self.commands = self.commands.close()  # None


def subscribe(bus, position, wanted):
    said = False
    while True:
        behind = True
        while behind:  # the journal, page by page
            (epoch, sequence, last, gap_from, gap_to, reason), events = bus.read(position, wanted)
            if gap_to:
                yield {"gap": {"from": gap_from, "to": gap_to, "reason": reason}}
            yield from events
            position, behind = f"{epoch}:{sequence}", sequence < last
        if not said:
            said = True
            yield {"caught_up": position}
        while not behind:  # live, as long as no sequence is missing; what was read already comes again and is dropped
            topic, number, payload = bus.live.recv().split(b"\n", 2)
            if topic == b"h":
                behind = int(number) > sequence or int(payload) != epoch
            elif int(number) > sequence:
                event, sequence = json.loads(payload), sequence + 1
                behind = event["sequence"] != f"{epoch}:{sequence}"
                position = position if behind else event["sequence"]
                if not behind and matches(event, wanted):
                    yield event


if __name__ == "__main__":
    for item in subscribe(Bus(sys.argv[1]), (sys.argv[2:] or ["now"])[0], json.loads((sys.argv[3:] or ["{}"])[0])):
        print(json.dumps(item, separators=(",", ":")), flush=True)
