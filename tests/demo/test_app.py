"""The demo as a server: what it answers, and what it must not."""

from __future__ import annotations

import concurrent.futures
import http.client
import io
import json
import re
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from PIL import Image

from hiergen.data.videos.files import write_gif
from hiergen.demo import app
from hiergen.demo.settings import DemoSettings
from hiergen.pretrained.packaged import PACKAGED

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def client(server) -> Iterator[httpx.Client]:
    """Somebody who has given the password."""
    with httpx.Client(base_url=server.url, timeout=60) as client:
        client.post("/login", data={"username": server.name, "password": server.password}).raise_for_status()
        yield client


def call(client: httpx.Client, name: str, data: list[Any]) -> tuple[str, Any]:
    """Return the last event of a request, "complete" or "error", and what came with it."""
    posted = client.post(f"/gradio_api/call/{name}", json={"data": data})
    if posted.status_code != 200:
        return str(posted.status_code), posted.json()
    answer = client.get(f"/gradio_api/call/{name}/{posted.json()['event_id']}").text
    events = [block.split("\n", 1) for block in answer.strip().split("\n\n")]
    kind, content = events[-1]
    return kind.removeprefix("event: "), json.loads(content.removeprefix("data: "))


def upload(client: httpx.Client, name: str, data: bytes) -> httpx.Response:
    return client.post("/gradio_api/upload", files={"files": (name, data)})


def as_input(path: str) -> dict[str, Any]:
    return {"path": path, "meta": {"_type": "gradio.FileData"}}


def picture(width: int, height: int) -> bytes:
    buffer = io.BytesIO()
    Image.effect_noise((width, height), 90).save(buffer, "PNG")
    return buffer.getvalue()


def test_it_listens_to_this_machine_alone(server) -> None:
    assert urllib.parse.urlparse(server.url).hostname == "127.0.0.1"


def test_a_tab_is_there_for_what_the_models_can_do(client) -> None:
    components = client.get("/config").json()["components"]
    tabs = [component["props"]["label"] for component in components if component["type"] == "tabitem"]
    assert tabs == ["Generate", "Edit", "Reconstruct", "Compare", "Shapes", "Video", "Text"]


def test_the_interface_for_programs_is_what_the_docs_say(client) -> None:
    named = client.get("/gradio_api/info").json()["named_endpoints"]
    documented = (ROOT / "demos" / "README.md").read_text()
    assert set(named) == {"/reconstruct", "/generate", "/edit", "/shapes", "/video", "/compare", "/text"}
    for name, endpoint in named.items():
        parameters = [parameter["parameter_name"] for parameter in endpoint["parameters"]]
        assert f"`{name}` | {', '.join(f'`{parameter}`' for parameter in parameters)} |" in documented


def test_an_upload_is_reconstructed(client) -> None:
    (path,) = upload(client, "noise.png", picture(40, 40)).json()
    kind, answer = call(client, "reconstruct", ["one-dimensional", as_input(path), 0])
    assert kind == "complete"
    seen = client.get(urllib.parse.urlparse(answer[0]["url"]).path)
    with Image.open(io.BytesIO(seen.content)) as shown:
        assert shown.format == "PNG"
        assert shown.size == (32, 32)
    assert answer[-1].startswith("| levels | size |")


def test_an_uploaded_clip_is_reconstructed(client, tmp_path) -> None:
    pytest.importorskip("av")
    write_gif(tmp_path / "clip.gif", torch.linspace(-1, 1, 12)[None, :, None, None].expand(3, 12, 40, 40))
    (path,) = upload(client, "clip.gif", (tmp_path / "clip.gif").read_bytes()).json()
    kind, answer = call(client, "reconstruct", ["clips", as_input(path), 0])
    assert kind == "complete"
    files = [answer[0], *(item["image"] for item in answer[1])]
    assert len(files) == 1 + 6
    for file in files:
        with Image.open(io.BytesIO(client.get(urllib.parse.urlparse(file["url"]).path).content)) as shown:
            assert (shown.format, shown.size) == ("GIF", (48, 48))
            assert shown.is_animated
    assert "| components | size |" in answer[-1]
    assert "Your clip has 12 frames in 1.4 s; the model takes 8, which were taken at even times." in answer[-1]
    (path,) = upload(client, "clip.mp4", picture(40, 40)).json()
    kind, answer = call(client, "reconstruct", ["clips", as_input(path), 0])
    assert kind == "error"
    assert "cannot be read as a clip" in str(answer)


def test_what_comes_out_of_generate_is_lossless_and_complete(client) -> None:
    kind, answer = call(client, "generate", ["one-dimensional", 3, 2, 1.5, 1, 7, "", "", 1])
    assert kind == "complete"
    assert answer[2].startswith("Done: 16 tokens")
    assert len(answer[1]) == 5
    assert all(item["image"]["path"].endswith(".png") for item in answer[1])


def test_programs_ask_in_words(client) -> None:
    asked = ["words", 0, 1, 2.0, 1, 7]
    kind, answer = call(client, "generate", [*asked, "red heart", "hat", 2])
    assert (kind, len(answer[1])) == ("complete", 2)
    kind, answer = call(client, "generate", [*asked, "", "", 1])
    assert kind == "error"
    kind, answer = call(client, "edit", ["words", None, 0, None, None, "paint", 0, 0.5, 0, 2.0, 7, "red heart", ""])
    assert (kind, len(answer[1])) == ("complete", 1)


def test_a_picture_is_edited_under_a_mask(client) -> None:
    mask = Image.new("L", (32, 32))
    mask.paste(255, (8, 8, 24, 24))
    mask.save(buffer := io.BytesIO(), "PNG")
    (path,) = upload(client, "mask.png", buffer.getvalue()).json()
    values = ["one-dimensional", None, 0, as_input(path), None, "paint", 3, 1, 2, 1.5, 7, "", ""]
    kind, answer = call(client, "edit", values)
    assert kind == "complete"
    assert [item["image"]["path"].endswith(".png") for item in answer[1]] == [True]
    kind, answer = call(client, "edit", [*values[:3], None, None, "blend", *values[6:]])
    assert kind == "complete"
    assert len(answer[1]) == 6


def test_what_is_painted_is_kept_within_limits(client) -> None:
    """Gradio's editor would keep any number of layers of any size in memory."""
    config = client.get("/config").json()
    (editor,) = [part for part in config["components"] if part["props"].get("elem_id") == "edit-painter"]

    def send(index: str, content: bytes, kind: str = "layer") -> int:
        form = {
            **{"component_id": str(editor["id"]), "fn_name": "accept_blobs", "session_hash": "a"},
            **{"type": kind, "index": index, "id": "painting"},
        }
        return client.post(
            "/gradio_api/component_server", data=form, files={"file": ("layer.png", content)}
        ).status_code

    for index, content in (("0", b"x"), ("9" * 9, b"x"), ("-1", b"x"), ("x", b"x")):
        assert send(index, content) == 200
    assert send("1", bytes(2**20 + 1)) == 413
    assert send("null", b"x", "composite") == 200


def test_shapes_come_as_glb_files(client) -> None:
    kind, answer = call(client, "shapes", ["shapes", 1, None, 0, 1.0, 5, 0])
    assert kind == "complete"
    assert client.get(urllib.parse.urlparse(answer[1]["url"]).path).content[:4] == b"glTF"
    assert "triangles" in answer[2]


def test_a_picture_becomes_a_shape(client) -> None:
    (path,) = upload(client, "object.png", picture(40, 30)).json()
    kind, answer = call(client, "shapes", ["seen", None, as_input(path), 0, 1.0, 5, 0])
    assert kind == "complete"
    assert answer[2].startswith("16 tokens: ")
    (path,) = upload(client, "object.png", b"no picture").json()
    kind, answer = call(client, "shapes", ["seen", None, as_input(path), 0, 1.0, 5, 0])
    assert kind == "error"
    assert "it is no PNG" in answer["error"]


def test_clips_come_as_gifs_with_the_plan(client) -> None:
    kind, answer = call(client, "video", ["clips", 1, 0.3, 1.5, 0])
    assert kind == "complete"
    for item in answer[:2]:
        with Image.open(io.BytesIO(client.get(urllib.parse.urlparse(item["url"]).path).content)) as clip:
            assert clip.format == "GIF"
            # A frame that equals the one before is kept as its duration.
            assert 1 < clip.n_frames <= 8
    assert answer[2]["path"].endswith(".png")
    assert "| pyramid sparse |" in answer[3]


def test_two_models_are_compared(client) -> None:
    kind, answer = call(client, "compare", ["one-dimensional", None, 5, "two-dimensional"])
    assert kind == "complete"
    assert len(answer[1]) == 5
    assert len(answer[2]) == 3


@pytest.mark.parametrize(
    ("name", "data", "sentence"),
    [
        ("reconstruct", ["one-dimensional", None, 77], "Example is 77, expected 0 to 9"),
        (
            "generate",
            ["one-dimensional", 3, 2, 1.5, 1, 2**40, "", "", 1],
            "is greater than maximum value|expected 0 to",
        ),
        ("generate", ["one-dimensional", 99, 2, 1.5, 1, 0, "", "", 1], "not in the list of choices|expected 0 to 9"),
        ("generate", ["one-dimensional", 3, 999, 1.5, 1, 0, "", "", 1], "greater than maximum value"),
        ("reconstruct", ["../../../etc", None, 0], "not in the list of choices"),
        ("shapes", ["shapes", 1, None, 0, 1.0, 12, 0], "not in the list of choices"),
    ],
)
def test_a_wrong_request_is_answered_in_a_sentence(client, name, data, sentence) -> None:
    kind, answer = call(client, name, data)
    assert kind == "error"
    assert re.search(sentence, str(answer)), answer


@pytest.mark.parametrize(
    ("name", "data", "sentence"),
    [
        ("a.png", b"", "it is no PNG"),
        ("a.png", b"not a picture at all", "it is no PNG"),
        ("a.svg", b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>", "it is no PNG"),
        ("a.png", picture(64, 64)[:600], "cannot be read"),
        ("a.png", picture(501, 500), "501x500 pixels, at most 250,000 are read"),
        (
            "a.pkl",
            b"\x80\x04\x95\x1b\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x94\x8c\x06system\x94\x93\x94.",
            "it is no PNG",
        ),
    ],
    ids=["empty", "text", "svg", "truncated", "too many pixels", "pickle"],
)
def test_a_bad_upload_is_answered_in_a_sentence(client, name, data, sentence) -> None:
    (path,) = upload(client, name, data).json()
    kind, answer = call(client, "reconstruct", ["one-dimensional", as_input(path), 0])
    assert kind == "error"
    assert sentence in answer["error"]
    assert "Traceback" not in str(answer)


def test_a_file_that_is_too_large_is_refused(client) -> None:
    response = upload(client, "large.png", b"\x89PNG" + bytes(2**20 + 1_000))
    assert response.status_code == 413
    assert "size" in response.text.lower()


FORBIDDEN = [
    "/gradio_api/file=/etc/passwd",
    f"/gradio_api/file={ROOT / 'pyproject.toml'}",
    "/gradio_api/file=pyproject.toml",
    "/gradio_api/file=../../../../../../etc/passwd",
    "/gradio_api/file=%2e%2e/%2e%2e/%2e%2e/%2e%2e/etc/passwd",
    "/gradio_api/file=/tmp/gradio/../../etc/passwd",
    "/gradio_api/file=/tmp/gradio/%2e%2e/%2e%2e/etc/passwd",
    "/gradio_api/file=/proc/self/environ",
    "/gradio_api/file=file:///etc/passwd",
    "/gradio_api/file=C:\\Windows\\win.ini",
    "/gradio_api/file=//etc/passwd",
    f"/gradio_api/file={PACKAGED / 'digits-1d' / 'demo.json'}",
    "/static/../../../../etc/passwd",
    "/assets/..%2f..%2f..%2f..%2fetc/passwd",
    "/svelte/../../../etc/passwd",
    "/file=/etc/passwd",
    "/gradio_api/file=/etc/passwd%00.png",
]


@pytest.mark.parametrize("path", FORBIDDEN)
def test_no_other_file_is_served(client, path) -> None:
    # Not httpx, which would tidy the path.
    connection = http.client.HTTPConnection(client.base_url.host, client.base_url.port, timeout=30)
    cookies = "; ".join(f"{name}={value}" for name, value in client.cookies.items())
    connection.request("GET", path, headers={"Cookie": cookies})
    response = connection.getresponse()
    body = response.read()
    connection.close()
    assert response.status in (400, 403, 404), body[:200]
    for secret in (b"root:", b"[project]", b"PATH=", b'"sampling"'):
        assert secret not in body


@pytest.mark.parametrize(
    "path",
    ["/etc/passwd", str(ROOT / "README.md"), "README.md", "/tmp/gradio/../../etc/passwd", "http://127.0.0.1:1/x.png"],
)
def test_a_path_in_a_request_opens_no_file(client, path) -> None:
    kind, answer = call(client, "reconstruct", ["one-dimensional", as_input(path), 0])
    assert kind == "error"
    assert "root:" not in str(answer)


def test_an_upload_cannot_choose_its_folder(client) -> None:
    (path,) = upload(client, "../../../../tmp/hiergen-evil.png", picture(8, 8)).json()
    assert not Path("/tmp/hiergen-evil.png").exists()
    assert ".." not in path


def test_many_at_once_are_served_or_told_that_the_queue_is_full(client, server) -> None:
    def ask(number: int) -> tuple[str, Any]:
        # Fifty visitors, not one with fifty requests: each has a connection of its own.
        with httpx.Client(base_url=server.url, cookies=client.cookies, timeout=60) as visitor:
            return call(visitor, "reconstruct", ["one-dimensional", None, number % 10])

    with concurrent.futures.ThreadPoolExecutor(50) as pool:
        answers = list(pool.map(ask, range(50)))
    served = [kind for kind, _ in answers if kind == "complete"]
    full = [answer for kind, answer in answers if kind == "503"]
    assert len(served) + len(full) == 50
    assert served
    assert all("Queue is full" in str(answer) for answer in full)
    # And it goes on working.
    assert call(client, "reconstruct", ["one-dimensional", None, 1])[0] == "complete"


def test_nothing_is_answered_before_the_password_is_given(server) -> None:
    with httpx.Client(base_url=server.url, timeout=60) as stranger:
        assert stranger.get("/config").status_code == 401
        assert stranger.get("/gradio_api/info").status_code == 401
        assert stranger.post("/gradio_api/call/reconstruct", json={"data": []}).status_code == 401
        assert upload(stranger, "a.png", picture(8, 8)).status_code == 401
        wrong = stranger.post("/login", data={"username": server.name, "password": "wrong horse"})
        assert wrong.status_code == 400


def test_the_models_run_on_a_gpu_where_there_is_one(monkeypatch) -> None:
    def load(sources: tuple[str, ...], *, packaged: bool, device: str) -> None:
        raise InterruptedError(device)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(app, "load_library", load)
    with pytest.raises(InterruptedError, match="cuda:0"):
        app.launch(DemoSettings())
