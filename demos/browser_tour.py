"""Use every tab of a running demo as a person would, in Chromium, and keep pictures of what is seen.

    hiergen demo --port 7871 &
    python demos/browser_tour.py --url http://127.0.0.1:7871 --out tour --server $!

Needs selenium, Chromium and its driver. Ends with an error where something a person needs does not come.
"""

import argparse
import base64
import contextlib
import io
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from PIL import Image
from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

FLAGS = (
    "headless",
    "no-sandbox",
    "disable-gpu",
    "disable-quic",
    "no-first-run",
    "disable-background-networking",
    "disable-component-update",
    "disable-sync",
    "hide-scrollbars",
    "enable-unsafe-swiftshader",
)
#: Width and height of the window, in pixels: a desk and a telephone.
WINDOWS = {"desktop": (1280, 1000), "mobile": (390, 844)}
#: Whether all pictures of the page are there. Those far below are fetched when somebody scrolls to them.
COMPLETE = """
for (const picture of document.images) picture.loading = 'eager';
return [...document.images].every(picture => picture.complete);
"""
#: Files that are no pictures to be shown, and what the page says.
BAD_FILES = {"broken.png": "cannot be read as a picture", "notes.png": "it is no PNG", "huge.png": "pixels, at most"}


class Visitor:
    """Somebody in front of the page."""

    def __init__(
        self, url: str, out: Path, window: str, folder: Path, *, patience: float, server: int | None = None
    ) -> None:
        width, height = WINDOWS[window]
        options = Options()
        for flag in (*FLAGS, f"window-size={width},{height}", f"user-data-dir={folder / window}"):
            options.add_argument(f"--{flag}")
        options.binary_location = shutil.which("chromium") or shutil.which("google-chrome") or ""
        self.driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
        # Chromium makes no window narrower than 500 pixels; a telephone is emulated.
        device = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": window == "mobile"}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", device)
        self.url, self.out, self.window, self.folder = url, out, window, folder
        self.patience, self.server = patience, server

    @contextlib.contextmanager
    def timed(self, what: str) -> Iterator[None]:
        """Say how long something took, on the clock and of the server's processors."""
        started, before = time.monotonic(), self._processors()
        yield
        line = f"{self.window}: {what}: {time.monotonic() - started:.1f} s"
        print(line + (f", {self._processors() - before:.1f} s of processors" if self.server else ""))

    def _processors(self) -> float:
        if self.server is None:
            return 0.0
        fields = Path(f"/proc/{self.server}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def find(self, selector: str) -> Any:
        return self.wait(lambda: self.driver.find_elements(By.CSS_SELECTOR, selector), selector)[0]

    def wait(self, condition: Callable[[], Any], what: str) -> Any:
        """Return the first true value of a condition."""
        until = time.monotonic() + self.patience
        while time.monotonic() < until:
            try:
                if found := condition():
                    return found
            except Exception as error:  # the page is redrawn under our hands
                if "stale" not in str(error) and "intercept" not in str(error):
                    raise
            time.sleep(0.1)
        self.keep("failed")
        raise SystemExit(f"{self.window}: {what} did not come within {self.patience:g} s")

    def keep(self, name: str) -> None:
        """Save a picture of the whole page, as soon as its pictures are there and what moves has moved."""
        until = time.monotonic() + 3
        while time.monotonic() < until and not self.driver.execute_script(COMPLETE):
            time.sleep(0.1)
        time.sleep(0.5)
        height = self.driver.execute_script("return document.documentElement.scrollHeight")
        shot = {"captureBeyondViewport": True, "format": "png", "clip": self._clip(height)}
        data = self.driver.execute_cdp_cmd("Page.captureScreenshot", shot)["data"]
        path = self.out / f"{self.window}-{name}.png"
        path.write_bytes(base64.b64decode(data))
        with Image.open(path) as picture:
            # Few colors are in it: a palette makes it a third of the size.
            picture.convert("RGB").quantize(128).save(path, optimize=True)

    def _clip(self, height: int) -> dict[str, float]:
        return {"x": 0, "y": 0, "width": WINDOWS[self.window][0], "height": min(height, 2_400), "scale": 1}

    def click(self, selector: str) -> None:
        def press() -> bool:
            element = self.find(selector)
            self.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)
            element.click()
            return True

        self.wait(press, selector)

    def press_until(self, selector: str, condition: Callable[[], bool]) -> None:
        """Press a button, and again after some seconds: it does nothing while what was stopped is still ending."""

        def happens() -> bool:
            self.click(selector)
            until = time.monotonic() + 4
            while time.monotonic() < until:
                if condition():
                    return True
                time.sleep(0.05)
            return False

        self.wait(happens, f"what {selector} starts")

    def open_tab(self, title: str) -> None:
        def press() -> bool:
            tabs = self.driver.find_elements(By.CSS_SELECTOR, "button[role=tab]")
            named = [tab for tab in tabs if tab.text == title]
            if not named:
                # On a narrow page some tabs are behind the button with the dots.
                self.driver.find_element(By.CSS_SELECTOR, ".overflow-menu > button").click()
                menu = self.driver.find_elements(By.CSS_SELECTOR, ".overflow-dropdown button")
                named = [tab for tab in menu if tab.text == title]
            named[0].click()
            return True

        self.driver.execute_script("window.scrollTo(0, 0)")
        self.wait(press, f"tab {title}")

    def picture(self, name: str) -> str:
        """Return the address of the picture that a part shows; empty without one."""
        found = self.driver.find_elements(By.CSS_SELECTOR, f"#{name} img")
        return found[0].get_attribute("src") if found else ""

    def choices(self, name: str) -> list[str]:
        """Return the words of a menu."""
        components = self.driver.execute_script("return window.gradio_config.components")
        (menu,) = [part for part in components if part["props"].get("elem_id") == name]
        return [word for word, _ in menu["props"]["choices"]]

    def choose(self, name: str, word: str) -> None:
        """Choose a word of a menu."""
        self.click(f"#{name} input")

        def press() -> bool:
            options = self.driver.find_elements(By.CSS_SELECTOR, "ul[role=listbox] li")
            next(option for option in options if word in option.text).click()
            return True

        self.wait(press, f"{word} in the menu {name}")

    def is_shown(self, selector: str) -> bool:
        return any(part.is_displayed() for part in self.driver.find_elements(By.CSS_SELECTOR, selector))

    def colors(self, selector: str) -> int:
        """Return how many colors somebody sees there, who has scrolled to it."""
        part = self.find(selector)
        self.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", part)
        with Image.open(io.BytesIO(part.screenshot_as_png)) as seen:
            return len(seen.convert("RGB").getcolors(2**24))

    def text(self, name: str) -> str:
        return self.find(f"#{name}").text


def reconstruct(visitor: Visitor) -> None:
    with visitor.timed("Reconstruct, the first picture after the page was opened"):
        visitor.wait(lambda: visitor.picture("reconstruct-shown"), "the first picture")
    before = visitor.picture("reconstruct-shown")
    with visitor.timed("Reconstruct, another digit"):
        visitor.click("#reconstruct-examples .gallery-item:nth-child(9) button")
        visitor.wait(lambda: visitor.picture("reconstruct-shown") not in ("", before), "the picture of another digit")
    visitor.wait(lambda: "PSNR" in visitor.text("reconstruct-numbers"), "the table")
    visitor.keep("reconstruct")
    fine = visitor.picture("reconstruct-shown")
    visitor.find("#reconstruct-level input[type=range]").send_keys(Keys.HOME)
    visitor.wait(lambda: visitor.picture("reconstruct-shown") not in ("", fine), "the coarsest level")
    visitor.keep("reconstruct-coarse")


def upload(visitor: Visitor) -> None:
    good = visitor.folder / "mine.png"
    gradient = Image.linear_gradient("L").resize((300, 200))
    gradient.paste(255, (100, 40, 150, 160))
    gradient.convert("RGB").save(good)
    (visitor.folder / "broken.png").write_bytes(good.read_bytes()[:200])
    (visitor.folder / "notes.png").write_text("A text with the name of a picture.")
    Image.new("1", (20_000, 20_000)).save(visitor.folder / "huge.png")
    before = visitor.picture("reconstruct-shown")
    visitor.find("#reconstruct-upload input[type=file]").send_keys(str(good))
    visitor.wait(lambda: visitor.picture("reconstruct-shown") not in ("", before), "the picture of the upload")
    visitor.keep("upload")
    for name, expected in BAD_FILES.items():
        visitor.click(
            "#reconstruct-upload button[aria-label='Clear'], #reconstruct-upload button[aria-label='Remove this file']"
        )
        visitor.find("#reconstruct-upload input[type=file]").send_keys(str(visitor.folder / name))
        said = visitor.wait(lambda: visitor.find(".toast-body").text, f"an answer to {name}")
        if expected not in said:
            raise SystemExit(f"{name} is answered with {said!r}")
        visitor.keep(f"upload-{name.removesuffix('.png')}")
        visitor.click(".toast-close")
        visitor.wait(lambda: not visitor.is_shown(".toast-body"), "the answer going away")
    # The page works on.
    before = visitor.picture("reconstruct-shown")
    visitor.click("#reconstruct-examples .gallery-item:nth-child(2) button")
    visitor.wait(lambda: visitor.picture("reconstruct-shown") not in ("", before), "a picture after bad files")


def generate(visitor: Visitor) -> None:
    visitor.open_tab("Generate")
    with visitor.timed("Generate, from the button to the last picture"):
        visitor.click("#generate-start")
        visitor.wait(lambda: visitor.text("generate-status").startswith("Done"), "the end of generating")
    visitor.keep("generate")
    first = visitor.picture("generate-shown")
    visitor.click("#generate-again")
    visitor.wait(lambda: visitor.picture("generate-shown") not in ("", first), "other pictures from another seed")
    visitor.click("#generate-start")
    visitor.click("#generate-stop")
    # Unless it was faster.
    visitor.wait(lambda: visitor.text("generate-status").startswith(("Stopped", "Done")), "an answer to stopping")


def shapes(visitor: Visitor) -> None:
    visitor.open_tab("Shapes")
    if visitor.is_shown("#shapes-class"):
        make_shape(visitor, "shapes")
        # Another class, and a picture of what is seen then: the viewers must take a second mesh.
        visitor.click("#shapes-class input")
        visitor.click("ul[role=listbox] li:nth-child(4)")
        visitor.click("#shapes-start")
        visitor.click("#shapes-stop")
        visitor.wait(lambda: visitor.text("shapes-status") == "Stopped.", "an answer to stopping")
        make_shape(visitor, "shapes-again")
    else:
        make_shape(visitor, "shapes-picture")
    for title in visitor.choices("shapes-model")[1:]:
        shape_of_a_view(visitor, title)


def shape_of_a_view(visitor: Visitor, title: str) -> None:
    visitor.choose("shapes-model", title)
    visitor.wait(lambda: not visitor.is_shown("#shapes-class"), "the menu of classes going away")
    before = visitor.picture("shapes-seen")
    visitor.click("#shapes-examples .gallery-item:nth-child(2) button")
    visitor.wait(lambda: visitor.picture("shapes-seen") not in ("", before), "another view")
    make_shape(visitor, "shapes-picture")


def make_shape(visitor: Visitor, name: str) -> None:
    with visitor.timed(f"{name}, from the button to the finest mesh"):
        visitor.press_until("#shapes-start", lambda: visitor.text("shapes-status").startswith("Step"))
        visitor.wait(lambda: visitor.text("shapes-status").startswith("Done"), "the end of generating")
    # A viewer draws its mesh once it has been fetched, and only while it is on the screen.
    for part in ("coarse", "fine"):
        visitor.wait(lambda part=part: visitor.colors(f"#shapes-{part} canvas") > 100, f"the {part} mesh")
    visitor.keep(name)


def video(visitor: Visitor) -> None:
    visitor.open_tab("Video")
    with visitor.timed("Video, from the button to the dense clip"):
        visitor.click("#video-start")
        visitor.wait(lambda: visitor.picture("video-dense"), "the dense clip")
    visitor.wait(lambda: visitor.text("video-status").startswith("Done"), "the end of generating")
    visitor.wait(lambda: visitor.picture("video-sparse") and visitor.picture("video-plan"), "the sparse clip")
    visitor.keep("video")


def compare(visitor: Visitor) -> None:
    visitor.open_tab("Compare")
    before = visitor.wait(lambda: visitor.text("compare-table"), "the table")
    with visitor.timed("Compare, another digit"):
        visitor.click("#compare-examples .gallery-item:nth-child(6) button")
        visitor.wait(lambda: visitor.text("compare-table") not in ("", before), "the table of another digit")
    visitor.keep("compare")


def tour(visitor: Visitor, login: str | None) -> None:
    try:
        visitor.driver.get(visitor.url)
        if login is not None:
            name, _, password = login.partition(":")
            for selector, value in (("input:not([type=password])", name), ("input[type=password]", password)):
                visitor.find(selector).send_keys(value)
            visitor.find("input[type=password]").send_keys(Keys.ENTER)
        reconstruct(visitor)
        upload(visitor)
        tabs = {
            tab["props"]["label"]
            for tab in visitor.driver.execute_script("return window.gradio_config.components")
            if tab["type"] == "tabitem"
        }
        for title, visit in (("Generate", generate), ("Shapes", shapes), ("Video", video), ("Compare", compare)):
            if title in tabs:
                visit(visitor)
        width = visitor.driver.execute_script("return document.documentElement.scrollWidth")
        if width > WINDOWS[visitor.window][0]:
            raise SystemExit(f"{visitor.window}: the page is {width} pixels wide, wider than its window")
        errors = [entry["message"] for entry in visitor.driver.get_log("browser") if entry["level"] == "SEVERE"]
        # The viewer of meshes asks for WebGPU first and says aloud that there is none.
        if errors := [text for text in errors if "WebGPU" not in text]:
            raise SystemExit(f"{visitor.window}: the browser's console holds {errors}")
        print(f"{visitor.window}: {', '.join(sorted(tabs))} answered")
    finally:
        visitor.driver.quit()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:7860")
    parser.add_argument("--out", default="tour", help="folder for the pictures")
    parser.add_argument("--login", help="name:password, where the demo asks for them")
    parser.add_argument("--windows", nargs="+", default=list(WINDOWS), choices=list(WINDOWS))
    parser.add_argument(
        "--server", type=int, help="number of the demo's process, to say how much of processors it took"
    )
    parser.add_argument("--patience", type=float, default=90.0, help="seconds to wait for what must come")
    options = parser.parse_args()
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        for window in options.windows:
            visitor = Visitor(options.url, out, window, Path(folder), patience=options.patience, server=options.server)
            tour(visitor, options.login)


if __name__ == "__main__":
    main()
