"""Released checkpoints: found in a folder, downloaded from a server on this machine."""

import hashlib
import http.server
import threading
from pathlib import Path

import numpy as np
import pytest

from jclip_fewshot.clip.download import Release, available_models, download, find_checkpoint, released
from jclip_fewshot.errors import UserError


def test_the_nine_models():
    assert available_models() == ["RN50", "RN101", "RN50x4", "RN50x16", "RN50x64", "ViT-B/32", "ViT-B/16",
                                  "ViT-L/14", "ViT-L/14@336px"]
    readme = (Path(__file__).parents[2] / "weights" / "README.md").read_text(encoding="utf-8")
    for name in available_models():
        entry = released(name)
        assert len(entry.sha256) == 64 and entry.url.split("/")[-2:] == [entry.sha256, entry.file]
        assert entry.url in readme and name in readme


def test_names_find_files(tmp_path):
    for name, file in [("ViT-B/32", "ViT-B-32.safetensors"), ("ViT-B/32", "ViT-B-32.pkl"),
                       ("ViT-B/32", "ViT-B-32.pt"),
                       ("ViT-L/14@336px", "ViT-L-14-336px.pt"), ("RN50", "RN50.pt")]:
        (tmp_path / file).touch()
        assert find_checkpoint(name, tmp_path) == tmp_path / file
    assert find_checkpoint("ViT-B-32", tmp_path) == tmp_path / "ViT-B-32.pt"
    assert find_checkpoint(tmp_path / "RN50.pt") == tmp_path / "RN50.pt"
    with pytest.raises(UserError, match="neither a file or folder nor one of RN50, "):
        find_checkpoint("ViT-B/31", tmp_path)


CONTENT = np.random.RandomState(0).bytes(300_000)
DIGEST = hashlib.sha256(CONTENT).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    """Sends CONTENT; the server's `limit` breaks the connection after so many bytes, `ranges` may be off."""

    def do_GET(self):
        server, begin = self.server, 0
        wanted = self.headers.get("Range")
        server.seen.append(wanted)
        if wanted and server.ranges:
            begin = int(wanted[len("bytes="):-1])
        if begin >= len(CONTENT):
            self.send_error(416)
            return
        self.send_response(206 if wanted and server.ranges else 200)
        self.send_header("Content-Length", str(len(CONTENT) - begin))
        self.end_headers()
        body = CONTENT[begin:]
        self.wfile.write(body[:server.limit] if server.limit else body)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        running.seen, running.limit, running.ranges = [], None, True
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def source(server, sha256=DIGEST):
    return Release("model.pt", f"http://127.0.0.1:{server.server_address[1]}/model.pt", sha256, 12)


def test_download(tmp_path, server):
    assert download(source(server), tmp_path / "new").read_bytes() == CONTENT
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["model.pt"]


@pytest.mark.parametrize("ranges", [True, False])
def test_download_goes_on_after_a_break(tmp_path, server, ranges):
    server.limit = 100_000
    with pytest.raises(UserError, match="100000 bytes of it are kept in model.pt.part; run again"):
        download(source(server), tmp_path)
    assert not (tmp_path / "model.pt").exists()
    server.limit, server.ranges = None, ranges
    assert download(source(server), tmp_path).read_bytes() == CONTENT
    assert server.seen == [None, "bytes=100000-"]
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt"]


def test_a_complete_part_needs_no_more(tmp_path, server):
    (tmp_path / "model.pt.part").write_bytes(CONTENT)
    assert download(source(server), tmp_path).read_bytes() == CONTENT


def test_a_wrong_hash_takes_no_final_name(tmp_path, server):
    with pytest.raises(UserError, match="came with SHA-256 .* instead of 0000"):
        download(source(server, "0" * 64), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_without_a_network_one_message_says_it_all(tmp_path, server):
    server.server_close()
    unreachable = source(server)
    with pytest.raises(UserError) as caught:
        download(unreachable, tmp_path, timeout=2)
    message = str(caught.value)
    for part in (unreachable.url, unreachable.sha256, "12 MiB", str(tmp_path), "model.pt"):
        assert part in message
    assert "\n" not in message and list(tmp_path.iterdir()) == []


def test_two_downloads_at_once(tmp_path, server):
    fcntl = pytest.importorskip("fcntl")
    with open(tmp_path / "model.pt.part", "ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another process"):
            download(source(server), tmp_path)
