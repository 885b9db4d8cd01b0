"""The demo behind a proxy that serves it under a path, as demos/README.md sets one up."""

from __future__ import annotations

import http.server
import io
import threading
from collections.abc import Iterator

import httpx
import pytest
from PIL import Image

PATH = "/hiergen"


class Proxy(http.server.BaseHTTPRequestHandler):
    """Hands on what begins with the path, without the path."""

    behind = ""

    def do_GET(self) -> None:
        self.hand_on(b"")

    def do_POST(self) -> None:
        self.hand_on(self.rfile.read(int(self.headers["Content-Length"])))

    def hand_on(self, body: bytes) -> None:
        host = self.headers["Host"]
        headers = {name: value for name, value in self.headers.items() if name.lower() not in ("host", "connection")}
        headers |= {"Host": host, "X-Forwarded-Host": host, "X-Forwarded-Proto": "http"}
        path = self.path.removeprefix(PATH)
        answer = httpx.request(self.command, f"{self.behind}{path}", headers=headers, content=body, timeout=60)
        self.send_response(answer.status_code)
        self.send_header("Content-Type", answer.headers["Content-Type"])
        self.send_header("Content-Length", str(len(answer.content)))
        self.end_headers()
        self.wfile.write(answer.content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def address(library, run_demo, tmp_path) -> Iterator[str]:
    pytest.importorskip("gradio", reason="the demo's page needs gradio")
    with run_demo({"one-dimensional": library.get("one-dimensional")}, tmp_path, ["--root_path", PATH]) as found:
        # The address that is printed has the path already, which the proxy takes away.
        Proxy.behind = found.removesuffix(PATH)
        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Proxy) as server:
            thread = threading.Thread(target=server.serve_forever)
            thread.start()
            yield f"http://127.0.0.1:{server.server_port}"
            server.shutdown()
            thread.join()


def test_the_page_an_answer_and_its_pictures_come_through_the_proxy(address) -> None:
    with httpx.Client(base_url=f"{address}{PATH}", timeout=60) as visitor:
        assert "hiergen" in visitor.get("/").text
        assert visitor.get("/config").json()["root"] == f"{address}{PATH}"
        posted = visitor.post("/gradio_api/call/reconstruct", json={"data": ["one-dimensional", None, 3]})
        answer = visitor.get(f"/gradio_api/call/reconstruct/{posted.json()['event_id']}").text
        assert "event: complete" in answer
        url = answer.split('"url": "')[1].split('"')[0]
        assert url.startswith(f"{address}{PATH}/gradio_api/file=")
        with Image.open(io.BytesIO(httpx.get(url).content)) as seen:
            assert seen.size == (32, 32)
