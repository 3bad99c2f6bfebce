import re
import socket
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, HTTPServer

import numpy as np
import pytest

from selfspec.cli import main
from selfspec.data import text8
from selfspec.data.corpus import open_corpus

SIZES = {"train": 900, "valid": 50, "test": 50}


@pytest.fixture
def text(monkeypatch):
    """A text8 of a thousand characters."""
    monkeypatch.setattr(text8, "SIZES", SIZES)
    letters = np.frombuffer(b" abcdefghijklmnopqrstuvwxyz", dtype="u1")
    return np.random.default_rng(0).choice(letters, 1000).tobytes().decode()


@pytest.fixture
def plain(text, tmp_path):
    path = tmp_path / "text8"
    path.write_text(text)
    return path


@pytest.fixture
def packed(plain, tmp_path):
    path = tmp_path / "text8.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(plain, "text8")
    return path


def texts(folder):
    tokenizer, stores = open_corpus(folder)
    return {split: tokenizer.decode(store.tokens) for split, store in stores.items()}


def expected(text):
    return {"train": text[:900], "valid": text[900:950], "test": text[950:]}


def test_the_split_is_90_5_5_million_by_position():
    parts = text8.split(b"a" * 90_000_000 + b"b" * 5_000_000 + b"c" * 5_000_000)
    assert {k: (len(v), v.count(v[:1]), v[:1]) for k, v in parts.items()} == {
        "train": (90_000_000, 90_000_000, b"a"),
        "valid": (5_000_000, 5_000_000, b"b"),
        "test": (5_000_000, 5_000_000, b"c"),
    }


def test_zip_and_plain_file_give_the_same_stores(text, plain, packed, tmp_path):
    for source in (plain, packed):
        text8.prepare(source, tmp_path / "out", progress=False)
        assert texts(tmp_path / "out") == expected(text)


def test_a_long_text_is_cut_into_pieces_without_seam(text, plain, tmp_path, monkeypatch):
    monkeypatch.setattr(text8, "_PIECE", 7)
    text8.prepare(plain, tmp_path / "out", progress=False)
    assert texts(tmp_path / "out") == expected(text)


@pytest.mark.parametrize("change", [lambda t: t[:-1], lambda t: t + "a", lambda t: ""])
def test_a_wrong_length_is_refused(plain, tmp_path, change):
    plain.write_text(change(plain.read_text()))
    with pytest.raises(ValueError, match="`source` must hold 1,000 characters, got"):
        text8.prepare(plain, tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("bad", ["A", "7", "\n", "é"])
@pytest.mark.parametrize("index", [0, 500, 999])
def test_a_foreign_character_is_named(plain, tmp_path, bad, index):
    text = plain.read_text()
    plain.write_bytes((text[:index] + bad + text[index + 1 :]).encode("latin-1"))
    with pytest.raises(ValueError, match=r"a-z and spaces, got ") as caught:
        text8.prepare(plain, tmp_path / "out", progress=False)
    assert repr(bad.encode("latin-1")) in str(caught.value)


@pytest.mark.parametrize("kept", [2, 100, -1])
def test_a_truncated_zip_is_one_clear_error(packed, tmp_path, kept):
    packed.write_bytes(packed.read_bytes()[:kept])
    with pytest.raises(ValueError, match=r"`source` must be text8 or text8\.zip, got .*text8\.zip"):
        text8.prepare(packed, tmp_path / "out", progress=False)


@pytest.mark.parametrize("index", [35, 200])  # the type of the first packed block; its middle
def test_an_altered_zip_is_one_clear_error(packed, tmp_path, index):
    data = bytearray(packed.read_bytes())
    data[index] ^= 0xFF
    packed.write_bytes(data)
    with pytest.raises(ValueError, match="`source` must be text8"):
        text8.prepare(packed, tmp_path / "out", progress=False)


def test_a_zip_of_something_else_and_a_missing_file_are_refused(plain, tmp_path):
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.write(plain, "enwik8")
    for source in (tmp_path / "other.zip", tmp_path / "nowhere", tmp_path):
        with pytest.raises(ValueError, match="`source` must be text8"):
            text8.prepare(source, tmp_path / "out", progress=False)


# --- download -------------------------------------------------------------------------------


@pytest.fixture
def serve():
    """A local server that announces `missing` bytes more than it sends, and counts its answers."""
    state: dict = {"data": b"", "missing": 0, "answers": 0, "chunked": False}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            state["answers"] += 1
            data, size = state["data"], len(state["data"]) + state["missing"]
            if self.path == "/moved":
                self.send_response(301)
                self.send_header("Location", "/text8.zip")
            else:
                self.send_response(200 if data else 404)
            if state["chunked"]:
                self.send_header("Transfer-Encoding", "chunked")
                data = f"{size:x}\r\n".encode() + data + b"\r\n0\r\n\r\n"[: -state["missing"] or 99]
            else:
                self.send_header("Content-Length", str(size))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format, *args):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    state["url"] = f"http://127.0.0.1:{server.server_port}/text8.zip"
    yield state
    server.shutdown()
    server.server_close()


def test_a_url_is_fetched_once_and_kept(text, packed, tmp_path, serve):
    serve["data"] = packed.read_bytes()
    for _ in range(2):
        text8.prepare(serve["url"], tmp_path / "out", progress=False)
        assert texts(tmp_path / "out") == expected(text)
    assert serve["answers"] == 1


def test_a_url_may_be_of_the_plain_file_or_lead_elsewhere(text, plain, packed, tmp_path, serve):
    for url, source in (("text8", plain), ("moved", packed)):
        serve["data"] = source.read_bytes()
        out = tmp_path / "out" / url
        text8.prepare(serve["url"].replace("text8.zip", url), out, progress=False)
        assert texts(out) == expected(text)


WRONG = {
    "a page": (lambda zipped: b"<html>moved</html>", "must hold 1,000 characters, got 18"),
    "cut before it was served": (lambda zipped: zipped[:-40], "must be text8 or text8.zip, got"),
    "altered": (lambda zipped: zipped[:200] + b"?" + zipped[201:], "must be text8 or text8.zip"),
    "upper case": (lambda zipped: b"A" * 1000, "must hold a-z and spaces, got b'A'"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_not_text8_is_not_kept(text, packed, tmp_path, serve, name):
    change, message = WRONG[name]
    serve["data"] = change(packed.read_bytes())
    with pytest.raises(ValueError, match=f"`source` {message}"):
        text8.prepare(serve["url"], tmp_path / "out", progress=False)
    assert list((tmp_path / "out").iterdir()) == []
    serve["data"] = packed.read_bytes()
    text8.prepare(serve["url"], tmp_path / "out", progress=False)
    assert texts(tmp_path / "out") == expected(text)


def test_a_file_that_was_there_is_left_as_it_is(plain, tmp_path, serve):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "text8.zip").write_text("mine")
    with pytest.raises(ValueError, match="`source` must hold 1,000 characters, got 4"):
        text8.prepare(serve["url"], tmp_path / "out", progress=False)
    assert (tmp_path / "out" / "text8.zip").read_text() == "mine"
    assert serve["answers"] == 0


@pytest.mark.parametrize("chunked", [False, True])
def test_a_broken_download_leaves_nothing(packed, tmp_path, serve, chunked):
    serve |= {"data": packed.read_bytes(), "missing": 10, "chunked": chunked}
    with pytest.raises(ValueError, match=r"`source` must be readable, got http.*(bytes came|read)"):
        text8.prepare(serve["url"], tmp_path / "out", progress=False)
    assert list((tmp_path / "out").iterdir()) == []


def test_an_unknown_url_is_one_clear_error(tmp_path, serve):
    with pytest.raises(ValueError, match=r"`source` must be readable, got http.*404"):
        text8.prepare(serve["url"], tmp_path / "out", progress=False)


def test_a_host_that_does_not_answer_is_one_clear_error(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}/text8.zip"
    with pytest.raises(ValueError, match=r"`source` must be readable, got http.*refused"):
        text8.prepare(url, tmp_path / "out", progress=False)
    assert list((tmp_path / "out").iterdir()) == []


def test_on_the_command_line(text, packed, tmp_path, serve, capsys):
    command = ["prepare", "text8", "--source", serve["url"], "--out", str(tmp_path / "out")]
    assert main(command) == 2
    assert re.fullmatch(r"selfspec: `source` must be readable, got http.*404.*\n",
                        capsys.readouterr().err)  # fmt: skip
    serve["data"] = packed.read_bytes()
    assert main(command) == 0
    assert texts(tmp_path / "out") == expected(text)
