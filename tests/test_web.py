"""HTTP servers, friendly and otherwise."""

import ssl
import subprocess
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import ClassVar

import pytest

from rescue_virt.errors import ImageError, NotFound
from rescue_virt.images import web
from rescue_virt.settings import Settings

CONTENT = bytes(range(256)) * 1000


class Handler(BaseHTTPRequestHandler):
    """Every path is one behaviour; the headers that came are kept."""

    seen: ClassVar[list[dict[str, str]]] = []

    def do_GET(self) -> None:
        self.seen.append({name.lower(): value for name, value in self.headers.items()})
        name = self.path.strip("/").split("?")[0]
        getattr(self, f"_{name}", self._missing)()

    def _image(self) -> None:
        start = int(self.headers.get("Range", "bytes=0-")[6:-1])
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}")
        self._body(CONTENT[start:])

    def _deaf(self) -> None:
        self.send_response(206)
        self.send_header("Content-Range", f"bytes 0-{len(CONTENT) - 1}/{len(CONTENT)}")
        self._body(CONTENT)

    def _unsized(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(CONTENT)

    def _short(self) -> None:
        self.send_response(200)
        self._body(CONTENT[:1000], length=len(CONTENT))

    def _packed(self) -> None:
        self.send_response(200)
        self.send_header("Content-Encoding", "gzip")
        self._body(CONTENT)

    def _broken(self) -> None:
        self.send_response(503)
        self._body(b"")

    def _missing(self) -> None:
        self.send_response(404)
        self._body(b"")

    def _moved(self) -> None:
        self._redirect("/image")

    def _loop(self) -> None:
        self._redirect("/loop")

    def _sideways(self) -> None:
        assert isinstance(self.server, ThreadingHTTPServer)
        self._redirect(f"http://localhost:{self.server.server_port}/image")

    def _downgrade(self) -> None:
        self._redirect("http://127.0.0.1/image")

    def _outside(self) -> None:
        self._redirect("file:///etc/passwd")

    def _redirect(self, location: str) -> None:
        self.send_response(302)
        self.send_header("Location", location)
        self._body(b"")

    def _body(self, content: bytes, *, length: int | None = None) -> None:
        self.send_header("Content-Length", str(length or len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


def serve(context: ssl.SSLContext | None = None) -> Iterator[str]:
    Handler.seen.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    if context:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture
def host() -> Iterator[str]:
    yield from serve()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tls") / "both.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-nodes", "-newkey", "ec", "-pkeyopt",
         "ec_paramgen_curve:P-256", "-subj", "/CN=127.0.0.1", "-days", "1",
         "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(path), "-out", f"{path}.crt"],
        check=True, capture_output=True,
    )  # fmt: skip
    path.write_bytes(path.read_bytes() + Path(f"{path}.crt").read_bytes())
    return path


@pytest.fixture
def tls_host(certificate: Path) -> Iterator[str]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    yield from serve(context)


@pytest.fixture
def options(tmp_path: Path) -> Settings:
    return Settings(state_dir=tmp_path, connect_timeout=1, read_timeout=1)


def read(location: str, options: Settings, offset: int = 0) -> bytes:
    content = b""
    with web.HttpSource(web.parse(location), options).open(offset) as body:
        while chunk := body.read(1 << 20):
            content += chunk
    return content


def test_the_body_and_its_size_arrive(host: str, options: Settings) -> None:
    with web.HttpSource(web.parse(f"http://{host}/image"), options).open(0) as body:
        assert body.size == body.space == len(CONTENT)
        assert body.read(1 << 20) == CONTENT
    assert Handler.seen[0]["accept-encoding"] == "identity"


def test_a_body_of_unknown_size_arrives(host: str, options: Settings) -> None:
    assert read(f"http://{host}/unsized", options) == CONTENT


def test_reading_can_begin_anywhere(host: str, options: Settings) -> None:
    assert read(f"http://{host}/image", options, 1000) == CONTENT[1000:]


def test_an_answer_from_another_offset_is_refused(host: str, options: Settings) -> None:
    with pytest.raises(ImageError, match="sent from another place"):
        read(f"http://{host}/deaf", options, 1000)
    with pytest.raises(ImageError, match="HTTP 200"):
        read(f"http://{host}/unsized", options, 1000)


def test_a_body_that_breaks_off_is_an_error(host: str, options: Settings) -> None:
    with pytest.raises(ImageError, match=r"/short broke off: .*; try again"):
        read(f"http://{host}/short", options)


def test_a_missing_image_is_not_found(host: str, options: Settings) -> None:
    with pytest.raises(NotFound, match=rf"image http://{host}/x does not exist \(HTTP 404\)"):
        read(f"http://{host}/x", options)


def test_a_failing_server_is_an_error_that_names_the_status(host: str, options: Settings) -> None:
    with pytest.raises(ImageError, match="cannot be fetched: HTTP 503"):
        read(f"http://{host}/broken", options)


def test_a_server_that_compresses_all_the_same_is_refused(host: str, options: Settings) -> None:
    with pytest.raises(ImageError, match="is sent compressed"):
        read(f"http://{host}/packed", options)


def test_errors_and_facts_hold_no_credentials(host: str, options: Settings) -> None:
    location = f"http://user:hunter2@{host}/broken?signature=hunter2#hunter2"
    with pytest.raises(ImageError) as caught:
        read(location, options)
    name = web.HttpSource(web.parse(location), options).stat().name
    assert "hunter2" not in f"{caught.value} {name}"
    assert host in name


def test_the_user_of_a_url_is_sent_as_basic_authorization(host: str, options: Settings) -> None:
    read(f"http://user:hunter%40@{host}/image", options)
    assert Handler.seen[0]["authorization"] == "Basic dXNlcjpodW50ZXJA"


def test_a_redirect_is_followed(host: str, options: Settings) -> None:
    assert read(f"http://user:x@{host}/moved", options) == CONTENT
    assert "authorization" in Handler.seen[1]


def test_a_redirect_to_another_host_gets_no_credentials(host: str, options: Settings) -> None:
    assert read(f"http://user:x@{host}/sideways", options) == CONTENT
    assert "authorization" not in Handler.seen[1]


def test_redirects_end_after_three(host: str, options: Settings) -> None:
    with pytest.raises(ImageError, match="redirects more than 3 times"):
        read(f"http://{host}/loop", options)
    assert len(Handler.seen) == 4


def test_a_redirect_to_a_file_is_refused(host: str, options: Settings) -> None:
    with pytest.raises(ImageError, match="redirects to what is no http or https URL"):
        read(f"http://{host}/outside", options)


def test_an_unknown_certificate_is_refused(tls_host: str, options: Settings) -> None:
    with pytest.raises(ImageError, match=r"(?i)cannot be fetched: .*certificate"):
        read(f"https://{tls_host}/image", options)


def test_a_redirect_from_https_to_http_is_refused(
    tls_host: str, options: Settings, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", f"{certificate}.crt")
    assert read(f"https://{tls_host}/image", options) == CONTENT
    with pytest.raises(ImageError, match="redirects from https to http"):
        read(f"https://{tls_host}/downgrade", options)


def test_a_host_that_is_not_there_is_an_error(options: Settings) -> None:
    with pytest.raises(
        ImageError, match=r"image http://127\.0\.0\.1:1/i cannot be fetched: \[Errno 111\]"
    ):
        read("http://127.0.0.1:1/i", options)


def test_no_proxy_and_no_netrc_of_the_environment_is_used(
    host: str, options: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    assert read(f"http://{host}/image", options) == CONTENT


def test_the_fragment_makes_no_other_image(options: Settings) -> None:
    one, two = (web.HttpSource(web.parse(f"https://h/i{end}"), options) for end in ("", "#x"))
    assert one.stat() == two.stat()
