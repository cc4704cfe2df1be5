"""Downloads from a real HTTP server on this machine, well-behaved and not."""

import hashlib
import http.server
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from vpexp.errors import WeightsError
from vpexp.models.download import download_file, get_cache_dir

CONTENT = bytes(range(256)) * 12_000  # about 3 MB: several chunks
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.requests.append(self.headers.get("Range"))
        manner = self.path.strip("/")
        if manner == "missing":
            self.send_error(404)
            return
        content = b"something else" if manner == "wrong" else CONTENT
        start = 0
        if manner != "no-ranges" and self.headers.get("Range"):
            start = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-"))
            if start >= len(content):
                self.send_error(416)
                return
        self.send_response(206 if start else 200)
        body = content[start:]
        if manner != "no-length":
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if manner == "slow":
            time.sleep(1.0)
        self.wfile.write(body[: len(body) // 2] if manner in self.server.cut else body)

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.requests, server.cut = [], {"cut", "cut-later-whole"}
    server.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def left_over(path: Path) -> list[str]:
    return sorted(other.name for other in path.parent.iterdir() if not other.name.endswith(".lock"))


@pytest.mark.parametrize("manner", ["plain", "no-length"])
def test_download_file__whole_and_only_once(server, tmp_path, manner):
    path = tmp_path / "new" / "folder" / "weights.pth"
    for _ in range(2):
        assert download_file(f"{server.url}/{manner}", path, SHA256) == path
    assert path.read_bytes() == CONTENT
    assert len(server.requests) == 1
    assert left_over(path) == ["weights.pth"]


def test_download_file__cut_connection_leaves_nothing_at_the_final_name_and_is_resumed(server, tmp_path):
    path = tmp_path / "weights.pth"
    url = f"{server.url}/cut-later-whole"
    with pytest.raises(WeightsError, match=rf"cut after {len(CONTENT) // 2} of {len(CONTENT)} bytes") as error:
        download_file(url, path, SHA256)
    assert "\n" not in str(error.value)
    assert left_over(path) == ["weights.pth.part"]
    server.cut.clear()
    download_file(url, path, SHA256)
    assert path.read_bytes() == CONTENT
    assert server.requests == [None, f"bytes={len(CONTENT) // 2}-"]
    assert left_over(path) == ["weights.pth"]


def test_download_file__server_that_does_not_resume(server, tmp_path):
    path = tmp_path / "weights.pth"
    (tmp_path / "weights.pth.part").write_bytes(CONTENT[:1000])
    download_file(f"{server.url}/no-ranges", path, SHA256)
    assert path.read_bytes() == CONTENT


@pytest.mark.parametrize("rest", [b"of another file", CONTENT + b"too much"])
def test_download_file__wrong_rest_is_thrown_away(server, tmp_path, rest):
    path = tmp_path / "weights.pth"
    (tmp_path / "weights.pth.part").write_bytes(rest)
    download_file(f"{server.url}/plain", path, SHA256)
    assert path.read_bytes() == CONTENT
    assert server.requests == [f"bytes={len(rest)}-", None]


def test_download_file__rest_that_is_already_whole(server, tmp_path):
    path = tmp_path / "weights.pth"
    (tmp_path / "weights.pth.part").write_bytes(CONTENT)
    download_file(f"{server.url}/plain", path, SHA256)
    assert path.read_bytes() == CONTENT
    assert len(server.requests) == 1


def test_download_file__wrong_hash_leaves_nothing(server, tmp_path):
    path = tmp_path / "weights.pth"
    with pytest.raises(WeightsError, match=rf"sha256 is \w+… instead of {SHA256[:12]}…, nothing was kept"):
        download_file(f"{server.url}/wrong", path, SHA256)
    assert left_over(path) == []


def test_download_file__not_found_says_what_to_do(server, tmp_path):
    path = tmp_path / "weights.pth"
    with pytest.raises(WeightsError) as error:
        download_file(f"{server.url}/missing", path, SHA256)
    message = str(error.value)
    assert "could not download weights.pth (the server answered 404 Not Found)" in message
    assert f"fetch {server.url}/missing and put it at {path}" in message
    assert "\n" not in message
    assert left_over(path) == []


def test_download_file__not_reachable(server, tmp_path):
    with pytest.raises(WeightsError, match="not reachable"):
        download_file("http://127.0.0.1:9/weights.pth", tmp_path / "weights.pth", SHA256)


def test_download_file__folder_that_cannot_be_made(server, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(WeightsError, match="could not download"):
        download_file(f"{server.url}/plain", tmp_path / "file" / "weights.pth", SHA256)


def test_download_file__processes_at_once_download_once(server, tmp_path):
    path = tmp_path / "weights.pth"
    code = (
        "import pathlib, sys; from vpexp.models.download import download_file;"
        "download_file(sys.argv[1], pathlib.Path(sys.argv[2]), sys.argv[3])"
    )
    command = [sys.executable, "-c", code, f"{server.url}/slow", str(path), SHA256]
    root = Path(__file__).parents[3]
    processes = [subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE) for _ in range(3)]
    outputs = [process.communicate()[0].decode() for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert path.read_bytes() == CONTENT
    assert len(server.requests) == 1
    assert sum("another process is downloading weights.pth" in output for output in outputs) == 2


def test_get_cache_dir__argument_then_variable_then_home(tmp_path, monkeypatch):
    monkeypatch.delenv("VPEXP_CACHE_DIR", raising=False)
    assert get_cache_dir() == Path("~/.cache/vpexp/weights").expanduser()
    monkeypatch.setenv("VPEXP_CACHE_DIR", str(tmp_path))
    assert get_cache_dir() == tmp_path / "weights"
    assert get_cache_dir("elsewhere") == Path("elsewhere")
