"""A local development chain (anvil) with TestKms.sol on it."""
import json
import subprocess
import time
import urllib.request
from pathlib import Path

import abi

HERE = Path(__file__).resolve().parent


class NotHere(Exception):
    """This machine cannot have the chain; the text says why."""


def tools():
    """The folder with anvil and the compiler; installs them once."""
    try:
        done = subprocess.run([str(HERE / "install")], capture_output=True, text=True, timeout=600)
    except subprocess.TimeoutExpired:
        raise NotHere("its tools are not installed after 600 s") from None
    if done.returncode == 77:
        raise NotHere(done.stderr.strip().splitlines()[-1])
    if done.returncode != 0:
        raise AssertionError(f"tests/chain/install: {done.stderr}")
    return Path(done.stdout.strip().splitlines()[-1])


class DevChain:
    def __init__(self, port):
        folder = tools()
        programs = sorted(folder.glob("node_modules/@foundry-rs/anvil-*/bin/anvil"))
        if not programs:
            raise NotHere("there is no anvil for this kind of machine")
        compiled = subprocess.run(["node", str(HERE / "compile.js"), str(folder), str(HERE / "contracts/TestKms.sol")], capture_output=True,
                                  text=True, timeout=120)
        assert compiled.returncode == 0, compiled.stderr
        self.contracts = json.loads(compiled.stdout)
        self.url = f"http://127.0.0.1:{port}/"
        # With epochs of one slot the second block from the top is the one called "finalized".
        self.process = subprocess.Popen([str(programs[0]), "--host", "127.0.0.1", "--port", str(port), "--slots-in-an-epoch", "1", "--quiet"],
                                        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.account = self.until_it_answers()

    def until_it_answers(self):
        end = time.monotonic() + 30
        while True:
            try:
                return self.rpc("eth_accounts")[0]
            except OSError:
                if self.process.poll() is not None or time.monotonic() > end:
                    raise AssertionError("anvil does not answer") from None
                time.sleep(0.02)

    def close(self):
        self.process.kill()
        self.process.wait()

    def rpc(self, method, *params):
        body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}).encode()
        request = urllib.request.Request(self.url, data=body, headers={"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=30) as answer:
            reply = json.loads(answer.read())
        assert "error" not in reply, (method, reply)
        return reply["result"]

    def send(self, to, data):
        """A transaction in a block of its own; gives the receipt."""
        transaction = {"from": self.account, "data": "0x" + data, "gas": hex(5_000_000)} | ({"to": to} if to else {})
        name = self.rpc("eth_sendTransaction", transaction)
        end = time.monotonic() + 30
        while (receipt := self.rpc("eth_getTransactionReceipt", name)) is None:  # mined a moment after it was taken
            assert time.monotonic() < end, "the transaction is not mined"
            time.sleep(0.005)
        assert receipt["status"] == "0x1", receipt
        return receipt

    def deploy(self, name):
        return self.send(None, self.contracts[name]["code"])["contractAddress"]

    def selector(self, contract, function):
        found = [value for signature, value in self.contracts[contract]["selectors"].items() if signature.split("(")[0] == function]
        assert len(found) == 1, function
        return found[0]

    def change(self, contract, where, function, *values):
        self.send(where, self.selector(contract, function) + abi.arguments(*values).hex())

    def call(self, contract, where, function, data=b""):
        return bytes.fromhex(self.rpc("eth_call", {"to": where, "data": "0x" + self.selector(contract, function) + data.hex()}, "latest")[2:])

    def finalize(self):
        """Makes what was sent until now part of the finalised block."""
        self.rpc("anvil_mine", "0x3")
