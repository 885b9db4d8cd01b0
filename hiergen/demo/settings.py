"""Settings of the web demo, safe where nothing is said: this machine only, no link, small files, a short queue."""

from __future__ import annotations

import dataclasses
import ipaddress
from pathlib import Path

from hiergen.checked import Checked

#: Shortest password that is taken for a demo that others can reach.
MIN_PASSWORD = 8


@dataclasses.dataclass(frozen=True)
class DemoSettings(Checked):
    """Look at models in the browser: reconstruct, generate, compare.

    Attributes:
        models: Folders or Hub ids of pipelines and tokenizers, beside the small ones that come with the package.
        packaged: Offer the models that come with the package.
        host: Address to listen at. Any address but this machine's own needs `auth_file`.
        port: Port to listen at; 0 takes a free one from 7860 on.
        auth_file: File of lines `name:password`, one per person who may enter.
        share: Ask gradio for a public link; needs `auth_file`.
        root_path: Path under which a proxy serves the demo, e.g. "/hiergen".
        device: Device on which the models run; "auto" is a GPU where there is one.
        max_upload_mb: Largest file that is taken, in MiB.
        max_pixels: Largest picture that is decoded.
        max_queue: Number of requests that may wait; further ones are told that the queue is full.
        concurrency: Number of requests that are worked on at the same time.
        max_seconds: Seconds after which a request is stopped.
        ready_seconds: Seconds that each model may take, before the page opens, to make the results that it opens with; 0 makes none.
        open_browser: Open the page in this machine's browser.

    Raises:
        ValueError: If a number is out of range, or others could reach the demo without a password.
    """

    models: tuple[str, ...] = ()
    packaged: bool = True
    host: str = "127.0.0.1"
    port: int = 0
    auth_file: str | None = None
    share: bool = False
    root_path: str = ""
    device: str = "auto"
    max_upload_mb: int = 20
    max_pixels: int = 16_000_000
    max_queue: int = 32
    concurrency: int = 1
    max_seconds: float = 60.0
    ready_seconds: float = 4.0
    open_browser: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("max_upload_mb", "max_pixels", "max_queue", "concurrency"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected at least 1")
        if not 0 <= self.port <= 65_535:
            raise ValueError(f"port is {self.port}, expected 0 (any free one) to 65535")
        if self.max_seconds <= 0:
            raise ValueError(f"max_seconds is {self.max_seconds}, expected a positive number")
        if not self.ready_seconds >= 0:
            raise ValueError(f"ready_seconds is {self.ready_seconds}, expected 0 or more")
        if self.auth_file is None and not is_loopback(self.host):
            raise ValueError(
                f"host is {self.host!r}, which others can reach: name a file of passwords with --auth-file, "
                "or listen at 127.0.0.1"
            )
        if self.auth_file is None and self.share:
            raise ValueError(
                "share is on, so anybody with the link can enter: name a file of passwords with --auth-file"
            )


def is_loopback(host: str) -> bool:
    """Return whether an address is reached from this machine alone. Names other than "localhost" count as reachable."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def read_accounts(path: str | Path) -> list[tuple[str, str]]:
    """Return the (name, password) pairs of a file with a line `name:password` each; blank lines are passed over.

    Raises:
        ValueError: If the file is missing, holds no account, or a line is no pair or has a short password (its number is named,
            its content is not).
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"auth_file {str(path)!r} cannot be read: {error}") from error
    accounts = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        name, colon, password = line.partition(":")
        if not (colon and name.strip()):
            raise ValueError(f"auth_file {str(path)!r}, line {number}: expected name:password")
        if len(password) < MIN_PASSWORD:
            raise ValueError(
                f"auth_file {str(path)!r}, line {number}: the password has {len(password)} characters, "
                f"expected at least {MIN_PASSWORD}"
            )
        accounts.append((name.strip(), password))
    if not accounts:
        raise ValueError(f"auth_file {str(path)!r} holds no account; expected lines name:password")
    return accounts
