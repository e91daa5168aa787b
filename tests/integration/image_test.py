"""dstackup image import: layouts and archives become the store's disk, or are refused without a trace."""
import gzip
import hashlib
import io
import json
import shutil
import subprocess
import tarfile
import unittest
from pathlib import Path

from mesh import Prefix, need, program


def blob(layout, data):
    digest = hashlib.sha256(data).hexdigest()
    (layout / "blobs/sha256").mkdir(parents=True, exist_ok=True)
    (layout / "blobs/sha256" / digest).write_bytes(data)
    return {"digest": f"sha256:{digest}", "size": len(data), "mediaType": "application/octet-stream"}


def layer(files):
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return raw.getvalue()


def make_layout(folder, files, name="example/app:1", layers=None):
    raws = [layer(f) for f in ([files] if layers is None else layers)]
    descriptors = [blob(folder, gzip.compress(raw)) for raw in raws]
    config = blob(folder, json.dumps({"architecture": "amd64", "os": "linux", "config": {"Cmd": ["sh"], "Env": ["A=b"]},
                                      "rootfs": {"type": "layers", "diff_ids": ["sha256:" + hashlib.sha256(raw).hexdigest() for raw in raws]}}).encode())
    manifest = blob(folder, json.dumps({"schemaVersion": 2, "config": config, "layers": descriptors}).encode())
    manifest["annotations"] = {"org.opencontainers.image.ref.name": name}
    (folder / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [manifest]}))
    (folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    return manifest["digest"], descriptors


class Import(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        need(shutil.which("mksquashfs") and shutil.which("unsquashfs"), "squashfs-tools is not installed")

    def setUp(self):
        self.prefix = Prefix()
        self.addCleanup(self.prefix.close)
        self.layout = self.prefix.path / "layout"
        self.layout.mkdir()
        self.oci = self.prefix.path / "var/lib/dstack/oci"

    def run_image(self, *arguments):
        return subprocess.run([program("dstackup"), "image", *arguments, "--json", "--prefix", self.prefix.path], capture_output=True, text=True)

    def refused(self, code, *words, path=None):
        done = self.run_image("import", path or self.layout)
        self.assertEqual(done.returncode, code, done.stdout + done.stderr)
        message = json.loads(done.stdout)["error"]["message"]
        for word in words:
            self.assertIn(word, message)
        self.assertFalse((self.oci / "store.squashfs").exists())
        self.assertEqual([p.name for p in (self.oci / "store").glob("*/image.json")] if (self.oci / "store").exists() else [], [])

    def disk(self):
        target = self.prefix.path / "disk"
        shutil.rmtree(target, ignore_errors=True)
        subprocess.run(["unsquashfs", "-quiet", "-no-progress", "-d", target, self.oci / "store.squashfs"], check=True, capture_output=True)
        return target

    def test_layout_twice(self):
        digest, _ = make_layout(self.layout, {"bin/app": b"program"})
        first = json.loads(self.run_image("import", self.layout).stdout)["data"]["images"]
        self.assertEqual(first, [{"already": False, "manifest_digest": digest, "reference": "docker.io/example/app:1"}])
        again = json.loads(self.run_image("import", self.layout).stdout)["data"]["images"]
        self.assertTrue(again[0]["already"])
        disk = self.disk()
        index = json.loads((disk / "dstack-store.json").read_text())["images"]
        self.assertEqual([(i["reference"], i["manifest_digest"], i["config"]["cmd"], i["config"]["env"]) for i in index],
                         [("docker.io/example/app:1", digest, ["sh"], ["A=b"])])
        self.assertEqual((disk / index[0]["folder"] / "rootfs/bin/app").read_bytes(), b"program")

    def test_layers_with_whiteouts(self):
        make_layout(self.layout, None, layers=[{"etc/a": b"1", "etc/b": b"2"}, {"etc/.wh.a": b"", "etc/c": b"3"}])
        self.assertEqual(self.run_image("import", self.layout).returncode, 0)
        etc = next(self.disk().glob("*/rootfs/etc"))
        self.assertEqual(sorted(p.name for p in etc.iterdir()), ["b", "c"])

    def test_archive_and_name(self):
        make_layout(self.layout, {"a": b"1"})
        archive = self.prefix.path / "image.tar"
        with tarfile.open(archive, "w") as tar:
            tar.add(self.layout, arcname=".")
        done = self.run_image("import", archive, "--name", "other:2")
        self.assertEqual(json.loads(done.stdout)["data"]["images"][0]["reference"], "docker.io/library/other:2")
        listed = json.loads(self.run_image("ls").stdout)["data"]["images"]
        self.assertEqual([image["reference"] for image in listed], ["docker.io/library/other:2"])

    def test_docker_archive(self):
        raw = layer({"bin/app": b"x"})
        config = json.dumps({"config": {"Cmd": ["app"]}, "rootfs": {"diff_ids": ["sha256:" + hashlib.sha256(raw).hexdigest()]}}).encode()
        (self.layout / "l.tar").write_bytes(raw)
        (self.layout / "c.json").write_bytes(config)
        (self.layout / "manifest.json").write_text(json.dumps([{"Config": "c.json", "RepoTags": ["app:1"], "Layers": ["l.tar"]}]))
        done = self.run_image("import", self.layout)
        self.assertEqual(json.loads(done.stdout)["data"]["images"][0]["reference"], "docker.io/library/app:1")
        (self.layout / "l.tar").write_bytes(layer({"bin/app": b"y"}))
        done = self.run_image("import", self.layout, "--name", "changed:1")
        self.assertEqual(done.returncode, 6, done.stdout)

    def test_damaged_layer(self):
        _, layers = make_layout(self.layout, {"a": b"1"})
        path = self.layout / "blobs/sha256" / layers[0]["digest"][7:]
        path.write_bytes(path.read_bytes() + b"x")
        self.refused(6, "the manifest says")

    def test_paths_that_lead_out(self):
        make_layout(self.layout, {"../../../../evil": b"1"})
        self.refused(2, "leads out")
        self.assertFalse(Path("/evil").exists())

    def test_no_layout_at_all(self):
        self.refused(2, "no OCI layout")
        self.refused(3, "nowhere", path="/nowhere/at/all")
        text = self.prefix.path / "text"
        text.write_bytes(b"hello" * 500)
        self.refused(6, "tar archive", path=text)


if __name__ == "__main__":
    unittest.main()
