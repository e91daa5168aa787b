"""`dstack trace`: one deploy as a tree, over a real bus, auth, allocator and deployer with a scripted VMM."""
import json
import unittest

import deployer_test
from mesh import wait_for


class TraceTest(unittest.TestCase):
    setUp = deployer_test.DeployerTest.setUp
    dstack = deployer_test.DeployerTest.dstack
    json = deployer_test.DeployerTest.json
    deploy = deployer_test.DeployerTest.deploy
    events = deployer_test.DeployerTest.events

    def trace(self, what, code=0):
        return self.json("trace", what, code=code)

    def flat(self, nodes, depth=0):
        for node in nodes:
            yield depth, node
            yield from self.flat(node["children"], depth + 1)

    def test_a_deploy_is_one_tree(self):
        operation = self.deploy()["data"]["operation"]
        wait_for(lambda: self.events("app.state_changed"), "what the deployer saw")
        document = self.trace("hello")
        self.assertEqual(document["schema"], "dstack.trace/v1")
        trace = document["data"]
        self.assertEqual(len(trace["traceId"]), 32)
        roots = [(node["kind"], node["name"]) for node in trace["spans"]]
        self.assertEqual(roots[:2], [("command", "deploy.create"), ("operation", "create hello")])
        work = trace["spans"][1]
        self.assertEqual(work["status"], "ok")
        self.assertIn("http 200", work["detail"])
        steps = {node["name"]: node for node in work["children"] if node["kind"] == "step"}
        self.assertEqual(list(steps), ["image", "lease", "allow", "create_vm", "bind", "boot", "probe"])
        commands = {name: [child["name"] for child in step["children"] if child["kind"] == "command"] for name, step in steps.items()}
        self.assertEqual(commands["lease"], ["lease.reserve"])
        self.assertEqual(commands["allow"], ["auth.allow_app"])
        self.assertEqual(commands["bind"], ["lease.bind"])
        reserve = next(child for child in steps["lease"]["children"] if child["name"] == "lease.reserve")
        self.assertEqual([child["name"] for child in reserve["children"]], ["lease.granted"] * 2)  # by its span, not by the clock
        self.assertEqual(reserve["status"], "ok")
        decided = [node for _, node in self.flat(trace["spans"]) if node["name"] == "auth.decided"]
        self.assertEqual([node["related"] for node in decided], [True])  # the KMS' question carries no trace
        for _, node in self.flat(trace["spans"]):
            self.assertGreaterEqual(node["offset_ms"], 0)
            self.assertLessEqual(node["offset_ms"] + node.get("duration_ms", 0), trace["duration_ms"] + 10)
        self.assertGreaterEqual(sum(step["duration_ms"] for step in steps.values()), 0)
        self.assertLessEqual(sum(step["duration_ms"] for step in steps.values()), work["duration_ms"] + 10)

        with self.subTest("the same by any name"):
            event = self.events("deploy.step")[0]
            for name in (operation, trace["traceId"], event["traceparent"], event["id"], event["sequence"]):
                self.assertEqual(self.trace(name)["data"]["traceId"], trace["traceId"], name)
        with self.subTest("everything of the operation carries it"):
            for kind in ("deploy.", "lease.", "command."):
                for event in self.events(kind):
                    self.assertEqual(event["traceparent"][3:35], trace["traceId"], event)
            traced = {method: header for method, header in self.vmm.traces if header}
            self.assertEqual(list(traced), ["CreateVm"])
            self.assertEqual(traced["CreateVm"][3:35], trace["traceId"])
        with self.subTest("as text"):
            text = self.dstack("trace", "hello").stdout
            self.assertIn("|- lease", text)
            self.assertIn("lease.reserve  deployer to allocator", text)
            self.assertIn("~ auth.decided", text)

    def test_a_failed_deploy_says_where(self):
        self.vmm.boot_error = "no such image: busybox"
        self.deploy(code=10)
        trace = wait_for(lambda: self.trace("hello")["data"], "the trace")
        work = next(node for node in trace["spans"] if node["kind"] == "operation")
        self.assertTrue(work["bad"])
        self.assertIn("boot: ", work["detail"])
        undone = [node for node in work["children"] if node["status"] == "undone"]
        self.assertIn("lease", [node["name"] for node in undone])
        released = next(node for _, node in self.flat(trace["spans"]) if node["name"] == "lease.release")
        self.assertEqual(released["status"], "ok")
        self.assertIn("RemoveVm", [method for method, header in self.vmm.traces if header and header[3:35] == trace["traceId"]])

    def test_a_stop_is_another_trace(self):
        self.deploy()
        first = self.trace("hello")["data"]["traceId"]
        self.assertEqual(self.dstack("stop", "hello").returncode, 0)
        stop = self.trace("hello")["data"]
        self.assertNotEqual(stop["traceId"], first)
        self.assertEqual({node["name"] for node in stop["spans"]}, {"app.stop", "stop hello"})  # begun within one ms

    def test_what_is_not_there(self):
        self.assertEqual(self.trace("nobody", code=3)["error"]["code"], "not_found")
        self.assertEqual(self.trace("0" * 32, code=3)["error"]["code"], "not_found")
        up = next(event for event in self.events("service.up"))
        self.assertIn("carries no trace", self.trace(up["id"], code=3)["error"]["message"])


if __name__ == "__main__":
    unittest.main()
