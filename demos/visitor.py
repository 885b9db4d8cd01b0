"""Somebody in front of the page, in Chromium: what `browser_tour.py` looks with."""

import base64
import contextlib
import io
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from PIL import Image
from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.action_chains import ActionChains
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
#: Width and height of the window, in pixels: a desk and a telephone, a tablet and a wide screen.
WINDOWS = {"desktop": (1280, 1000), "mobile": (390, 844), "tablet": (768, 1024), "wide": (2560, 1300)}
#: Whether all pictures of the page are there. Those far below are fetched when somebody scrolls to them.
COMPLETE = """
for (const picture of document.images) picture.loading = 'eager';
return [...document.images].every(picture => picture.complete);
"""
#: Pictures, buttons and fields without a name. A picture in a button that has one needs none.
UNNAMED = """
const by = (e) => (e.getAttribute('aria-labelledby') ?? '').split(' ').map((id) => document.getElementById(id)?.innerText);
const texts = (e) => [e.ariaLabel, e.title, e.placeholder, e.alt, e.innerText, ...by(e), ...[...(e.labels ?? [])].map((label) => label.innerText)];
const says = (e) => texts(e).some((text) => text?.trim()) || [...e.querySelectorAll('img, button')].some(says);
const used = [...document.querySelectorAll('button, input, select, textarea, a[href], [role=button], [role=slider], [role=tab]')];
const pictures = [...document.images].filter((picture) => !(picture.closest('button') && says(picture.closest('button'))));
return [...used, ...pictures].filter((e) => !says(e)).map((e) => e.outerHTML.slice(0, 160));
"""


class Visitor:
    """Somebody in front of the page."""

    def __init__(
        self,
        url: str,
        out: Path,
        window: str,
        folder: Path,
        *,
        patience: float,
        server: int | None = None,
        is_dark: bool = False,
        is_brief: bool = False,
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
        if is_dark:
            dark = {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
            self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", dark)
        self.url, self.out, self.window, self.folder = url, out, window, folder
        self.suffix = "-dark" if is_dark else ""
        self.patience, self.server, self.is_brief = patience, server, is_brief
        #: Title of a model of texts, once one was seen.
        self.of_words = ""

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

    def comes(self, condition: Callable[[], Any], seconds: float = 6.0) -> bool:
        """Return whether something comes soon that need not come."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            if condition():
                return True
            time.sleep(0.1)
        return False

    def keep(self, name: str) -> None:
        """Save a picture of the whole page, as soon as its pictures are there and what moves has moved."""
        until = time.monotonic() + 3
        while time.monotonic() < until and not self.driver.execute_script(COMPLETE):
            time.sleep(0.1)
        time.sleep(0.5)
        height = self.driver.execute_script("return document.documentElement.scrollHeight")
        shot = {"captureBeyondViewport": True, "format": "png", "clip": self._clip(height)}
        data = self.driver.execute_cdp_cmd("Page.captureScreenshot", shot)["data"]
        path = self.out / f"{self.window}-{name}{self.suffix}.png"
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

    def paint(self, selector: str) -> None:
        """Draw a stroke across the middle of a canvas, as with a pressed mouse."""
        canvas = self.find(selector)
        self.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", canvas)
        step = max(canvas.size["width"] // 16, 1)
        actions = (
            ActionChains(self.driver, duration=20).move_to_element_with_offset(canvas, -3 * step, 0).click_and_hold()
        )
        for _ in range(6):
            actions.move_by_offset(step, 0)
        actions.release().perform()

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
        """Return the address of the last picture on a stage; empty without one."""
        found = self.driver.find_elements(By.CSS_SELECTOR, f"#{name} .hg-view.is-shown figure:last-child img")
        return found[0].get_attribute("src") if found else ""

    def count(self, selector: str) -> int:
        """Return how many such parts are on the page."""
        return len(self.driver.find_elements(By.CSS_SELECTOR, selector))

    def unnamed(self) -> list[str]:
        """Return the beginnings of the pictures, buttons and fields that say nothing to whoever cannot see them."""
        return self.driver.execute_script(UNNAMED)

    def choices(self, name: str) -> list[str]:
        """Return the words of a menu."""
        components = self.driver.execute_script("return window.gradio_config.components")
        (menu,) = [part for part in components if part["props"].get("elem_id") == name]
        return [word for word, _ in menu["props"]["choices"]]

    def offered(self, name: str) -> list[str]:
        """Return the words that a menu offers now."""
        self.click(f"#{name} input")
        options = self.wait(
            lambda: [part.text for part in self.driver.find_elements(By.CSS_SELECTOR, "ul[role=listbox] li")], name
        )
        self.driver.switch_to.active_element.send_keys(Keys.ESCAPE)
        return [option.replace("\N{CHECK MARK}", "").strip() for option in options]

    def choose(self, name: str, word: str) -> None:
        """Choose a word of a menu."""
        self.click(f"#{name} input")

        def press() -> bool:
            options = self.driver.find_elements(By.CSS_SELECTOR, "ul[role=listbox] li")
            found = [option for option in options if word in option.text]
            if found:
                found[0].click()
            return bool(found)

        self.wait(press, f"{word} in the menu {name}")

    def value(self, selector: str) -> str:
        """Return what stands in a field for text."""
        return self.find(f"{selector} :is(input, textarea)").get_attribute("value")

    def write(self, selector: str, text: str) -> None:
        """Write a text in a field, in place of what is there."""
        field = self.find(f"{selector} :is(input, textarea)")
        field.send_keys(Keys.CONTROL, "a")
        field.send_keys(text or Keys.DELETE)

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
