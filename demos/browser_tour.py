"""Use every tab of a running demo as a person would, in Chromium, and keep pictures of what is seen.

    hiergen demo --port 7871 &
    python demos/browser_tour.py --url http://127.0.0.1:7871 --out tour --server $!

Needs selenium, Chromium and its driver. Ends with an error where something a person needs does not come.
"""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

from PIL import Image
from selenium.webdriver.common.keys import Keys
from visitor import WINDOWS, Visitor

#: Files that are no pictures to be shown, and what the page says.
BAD_FILES = {"broken.png": "cannot be read as a picture", "notes.png": "it is no PNG", "huge.png": "pixels, at most"}


def generate(visitor: Visitor) -> None:
    with visitor.timed("Generate, finished results after the page was opened"):
        visitor.wait(lambda: visitor.picture("generate-stage"), "a finished result on the stage")
    ready = visitor.count("#generate-strip button")
    visitor.keep("start")
    first = visitor.picture("generate-stage")
    with visitor.timed("Generate, from the button to the last picture"):
        visitor.click("#generate-start")
        visitor.wait(lambda: visitor.text("generate-status") == "Done.", "the end of generating")
    visitor.wait(lambda: visitor.picture("generate-stage") not in ("", first), "another picture from a new seed")
    visitor.wait(lambda: visitor.count("#generate-strip button") == ready + 1, "the new result in the strip")
    visitor.keep("generate")
    if visitor.is_brief:
        share(visitor, "generate")
        return
    made = visitor.picture("generate-stage")
    # The slider, and the way back.
    slide(visitor, "generate-stage")
    visitor.wait(lambda: visitor.picture("generate-stage") not in ("", made), "the coarsest level")
    visitor.click("#generate-strip button:last-child")
    visitor.wait(lambda: visitor.picture("generate-stage") not in ("", made), "the result that was chosen")
    visitor.click("#generate-strip button:first-child")
    visitor.wait(lambda: visitor.picture("generate-stage") == made, "the new result again")
    # From the same seed comes the same picture, and the dice gives another.
    visitor.click("#generate-settings button")
    visitor.click("#generate-new-seed input")
    visitor.click("#generate-start")
    visitor.wait(lambda: visitor.count("#generate-strip button") == ready + 2, "a result from the same seed")
    visitor.wait(lambda: visitor.picture("generate-stage") == made, "the same picture from the same seed")
    seed = visitor.find("#generate-seed input").get_attribute("value")
    visitor.click("#generate-dice")
    visitor.wait(lambda: visitor.find("#generate-seed input").get_attribute("value") != seed, "another seed")
    visitor.click("#generate-start")
    visitor.click("#generate-stop")
    # Unless it was faster.
    visitor.wait(lambda: visitor.text("generate-status").startswith(("Stopped", "Done")), "an answer to stopping")
    for title in visitor.choices("generate-model")[1:]:
        menus(visitor, title)
    share(visitor, "generate")


def share(visitor: Visitor, name: str) -> None:
    """Take the address of what is on the stage, and come back by it: the same picture is made again."""
    shown = visitor.picture(f"{name}-stage")
    visitor.click(f"#{name}-stage .hg-tools [data-link]")
    address = visitor.driver.current_url
    if f"tab={name}" not in address:
        raise SystemExit(f"The address of a result is {address}")
    visitor.driver.get("about:blank")
    visitor.driver.get(address)
    visitor.wait(lambda: visitor.text(f"{name}-status") == "Done.", "a result made again by its address")
    visitor.wait(lambda: visitor.picture(f"{name}-stage") == shown, "the same picture by its address")


def menus(visitor: Visitor, title: str) -> None:
    """Choose another model; where its classes are paths, a group, and see what the menu behind it offers then."""
    before = visitor.text("generate-strip")
    visitor.choose("generate-model", title)
    visitor.wait(lambda: visitor.text("generate-strip") != before, f"the results of {title}")
    if visitor.is_shown("#generate-words"):
        visitor.of_words = title
        words(visitor)
    if not visitor.is_shown("#generate-class1"):
        return
    groups = visitor.offered("generate-class")
    before = visitor.offered("generate-class1")
    visitor.choose("generate-class", groups[-1])
    visitor.wait(lambda: visitor.offered("generate-class1") != before, "the subgroups of a group alone")
    visitor.keep("menus")


def words(visitor: Visitor) -> None:
    """Say in words what is wanted, by an example and by hand; and say nothing."""
    before = visitor.count("#generate-strip button")
    visitor.click("#generate-tries button:last-child")
    example = visitor.text("generate-tries").splitlines()[-1]
    visitor.wait(lambda: visitor.value("#generate-prompt") == example, "the example in the field for words")
    visitor.write("#generate-prompt", "blue heart")
    visitor.click("#generate-avoid button")
    visitor.write("#generate-negative", "hat")
    visitor.click("#generate-start")
    visitor.wait(lambda: visitor.count("#generate-strip button") == before + 1, "the picture of words")
    visitor.wait(lambda: visitor.text("generate-strip").splitlines()[1] == "blue heart", "the words below it")
    visitor.keep("words")
    visitor.write("#generate-prompt", "")
    visitor.click("#generate-start")
    said = visitor.wait(lambda: visitor.find(".toast-body").text, "an answer to no words")
    if "say what you want to see" not in said:
        raise SystemExit(f"No words are answered with {said!r}")
    visitor.click(".toast-close")
    visitor.wait(lambda: not visitor.is_shown(".toast-body"), "the answer going away")


def edit(visitor: Visitor) -> None:
    visitor.open_tab("Edit")
    visitor.wait(lambda: visitor.colors("#edit-painter canvas") > 3, "the picture to paint on")
    before = visitor.count("#edit-strip button")
    visitor.paint("#edit-painter canvas")
    visitor.keep("edit-painted")
    with visitor.timed("Edit, from the button to the picture"):
        visitor.click("#edit-start")
        visitor.wait(lambda: visitor.count("#edit-strip button") == before + 1, "what was painted over, made anew")
    visitor.keep("edit")
    made = visitor.picture("edit-stage")
    edit_in_words(visitor, before + 1)
    for title in visitor.choices("edit-model"):
        visitor.choose("edit-model", title)
        if visitor.comes(lambda: visitor.is_shown("#edit-way label:nth-child(3)")):
            break
    else:
        return
    # Variations, and both pictures' levels put together.
    for number, name in ((2, "vary"), (3, "blend")):
        visitor.click(f"#edit-way label:nth-child({number})")
        visitor.click("#edit-start")
        visitor.wait(lambda old=made: visitor.picture("edit-stage") not in ("", old), f"the picture of {name}")
        visitor.wait(lambda: visitor.text("edit-status") == "Done.", f"the end of {name}")
        made = visitor.picture("edit-stage")
        visitor.keep(f"edit-{name}")
    share(visitor, "edit")
    slide(visitor, "edit-stage")


def edit_in_words(visitor: Visitor, before: int) -> None:
    """Take the model of texts, where there is one, and have what is painted over made of its first example."""
    if not visitor.of_words:
        return
    visitor.choose("edit-model", visitor.of_words)
    visitor.wait(lambda: visitor.is_shown("#edit-words"), "the field for words")
    visitor.wait(lambda: visitor.value("#edit-prompt"), "words to try")
    visitor.wait(lambda: visitor.colors("#edit-painter canvas") > 3, "the picture to paint on")
    visitor.paint("#edit-painter canvas")
    visitor.click("#edit-start")
    visitor.wait(lambda: visitor.count("#edit-strip button") == before + 1, "what was painted over, made of words")
    visitor.keep("edit-words")


def slide(visitor: Visitor, name: str) -> None:
    """Draw the slider of a stage to the coarsest level."""
    visitor.find(f"#{name} input[type=range]").send_keys(Keys.HOME)


def reconstruct(visitor: Visitor) -> None:
    visitor.open_tab("Reconstruct")
    with visitor.timed("Reconstruct, the first picture"):
        visitor.wait(lambda: visitor.picture("reconstruct-stage"), "the first picture")
    before = visitor.picture("reconstruct-stage")
    with visitor.timed("Reconstruct, another digit"):
        visitor.click("#reconstruct-examples .gallery-item:nth-child(9) button")
        visitor.wait(lambda: visitor.picture("reconstruct-stage") not in ("", before), "the picture of another digit")
    visitor.click("#reconstruct-more button")
    visitor.wait(lambda: "PSNR" in visitor.text("reconstruct-numbers"), "the table")
    visitor.keep("reconstruct")
    fine = visitor.picture("reconstruct-stage")
    slide(visitor, "reconstruct-stage")
    visitor.wait(lambda: visitor.picture("reconstruct-stage") not in ("", fine), "the coarsest level")


def upload(visitor: Visitor) -> None:
    good = visitor.folder / "mine.png"
    gradient = Image.linear_gradient("L").resize((300, 200))
    gradient.paste(255, (100, 40, 150, 160))
    gradient.convert("RGB").save(good)
    (visitor.folder / "broken.png").write_bytes(good.read_bytes()[:200])
    (visitor.folder / "notes.png").write_text("A text with the name of a picture.")
    Image.new("1", (20_000, 20_000)).save(visitor.folder / "huge.png")
    before = visitor.picture("reconstruct-stage")
    visitor.find("#reconstruct-upload input[type=file]").send_keys(str(good))
    visitor.wait(lambda: visitor.picture("reconstruct-stage") not in ("", before), "the picture of the upload")
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
    before = visitor.picture("reconstruct-stage")
    visitor.click("#reconstruct-examples .gallery-item:nth-child(2) button")
    visitor.wait(lambda: visitor.picture("reconstruct-stage") not in ("", before), "a picture after bad files")


def clip(visitor: Visitor) -> None:
    """Take a model of clips, where there is one: an example, and a clip of one's own."""
    titles = [title for title in visitor.choices("reconstruct-model") if "clips" in title.lower()]
    if not titles:
        return
    before = visitor.picture("reconstruct-stage")
    visitor.choose("reconstruct-model", titles[0])
    visitor.wait(lambda: visitor.picture("reconstruct-stage") not in ("", before), "the first clip")
    visitor.keep("clip")
    before = visitor.picture("reconstruct-stage")
    gradient = Image.linear_gradient("L").resize((96, 96)).convert("RGB")
    frames = [gradient.rotate(90 * turn) for turn in range(4)]
    frames[0].save(visitor.folder / "mine.gif", save_all=True, append_images=frames[1:], duration=100)
    visitor.find("#reconstruct-upload input[type=file]").send_keys(str(visitor.folder / "mine.gif"))
    visitor.wait(lambda: visitor.picture("reconstruct-stage") not in ("", before), "the clip of the upload")
    visitor.wait(lambda: "frames were repeated" in visitor.text("reconstruct-stage"), "what was done with its frames")
    visitor.keep("clip-upload")


def shapes(visitor: Visitor) -> None:
    visitor.open_tab("Shapes")
    if not visitor.is_brief:
        # A turn is twenty pictures more.
        visitor.click("#shapes-settings button")
        visitor.click("#shapes-turns input")
    make_shape(visitor, "shapes" if visitor.is_shown("#shapes-class") else "shapes-picture")
    if visitor.is_brief:
        return
    # A press on Stop ends the next one.
    visitor.click("#shapes-start")
    visitor.click("#shapes-stop")
    visitor.wait(lambda: visitor.text("shapes-status").startswith(("Stopped", "Done")), "an answer to stopping")
    for title in visitor.choices("shapes-model")[1:]:
        visitor.choose("shapes-model", title)
        visitor.wait(lambda: not visitor.is_shown("#shapes-class"), "the menu of classes going away")
        visitor.click("#shapes-examples .gallery-item:nth-child(2) button")
        make_shape(visitor, "shapes-picture")


def make_shape(visitor: Visitor, name: str) -> None:
    before = visitor.count("#shapes-strip button")
    with visitor.timed(f"{name}, from the button to the finest mesh"):
        visitor.press_until("#shapes-start", lambda: visitor.text("shapes-status").startswith("Step"))
        visitor.wait(lambda: visitor.count("#shapes-strip button") == before + 1, "the end of generating")
    # The viewer draws its mesh once it has been fetched, and only while it is on the screen.
    visitor.wait(lambda: visitor.colors("#shapes-viewer canvas") > 100, "the mesh to turn by hand")
    visitor.keep(name)


def video(visitor: Visitor) -> None:
    visitor.open_tab("Video")
    before = visitor.count("#video-strip button")
    with visitor.timed("Video, from the button to the clip"):
        visitor.click("#video-start")
        visitor.wait(lambda: visitor.count("#video-strip button") == before + 1, "the clip in the strip")
    visitor.keep("video")
    visitor.click("#video-attention button")
    visitor.click("#video-compares input")
    visitor.click("#video-start")
    visitor.wait(lambda: "pyramid sparse" in visitor.text("video-numbers"), "the numbers of both clips")
    if not visitor.is_brief:
        visitor.click("#video-measure")
        visitor.wait(lambda: "4,096" in visitor.text("video-measured"), "the times of long clips")
    visitor.keep("video-attention")


def text(visitor: Visitor) -> None:
    visitor.open_tab("Text")
    before = visitor.wait(lambda: visitor.text("text-stage"), "a text in its chunks")
    visitor.find("#text-prompt textarea").send_keys(" of statements")
    visitor.wait(lambda: "of statements" in visitor.text("text-stage") != before, "the chunks of what is typed")
    with visitor.timed("Text, from the button to the last byte"):
        visitor.click("#text-start")
        visitor.wait(lambda: visitor.text("text-status").startswith("Done"), "the end of the text")
    # A model may end a text at once.
    is_empty = visitor.text("text-status") == "Done: 0 bytes."
    visitor.wait(lambda: is_empty or visitor.count("#text-stage .is-new"), "what the model made")
    visitor.keep("text")
    visitor.click("#text-start")
    visitor.click("#text-stop")
    visitor.wait(lambda: visitor.text("text-status").startswith(("Stopped", "Done")), "an answer to stopping")


def compare(visitor: Visitor) -> None:
    visitor.open_tab("Compare")
    visitor.wait(lambda: visitor.count("#compare-shown img"), "the pictures of two models")
    visitor.click("#compare-more button")
    before = visitor.wait(lambda: visitor.text("compare-table"), "the table")
    with visitor.timed("Compare, another digit"):
        visitor.click("#compare-examples .gallery-item:nth-child(6) button")
        visitor.wait(lambda: visitor.text("compare-table") not in ("", before), "the table of another digit")
    visitor.keep("compare")


def looks(visitor: Visitor) -> None:
    reconstruct(visitor)
    if not visitor.is_brief:
        upload(visitor)
        clip(visitor)


TABS: dict[str, Callable[[Visitor], None]] = {
    "Generate": generate,
    "Edit": edit,
    "Reconstruct": looks,
    "Compare": compare,
    "Shapes": shapes,
    "Video": video,
    "Text": text,
}


def tour(visitor: Visitor, login: str | None) -> None:
    try:
        visitor.driver.get(visitor.url)
        if login is not None:
            name, _, password = login.partition(":")
            for selector, value in (("input:not([type=password])", name), ("input[type=password]", password)):
                visitor.find(selector).send_keys(value)
            visitor.find("input[type=password]").send_keys(Keys.ENTER)
        visitor.find("button[role=tab]")
        tabs = {
            tab["props"]["label"]
            for tab in visitor.driver.execute_script("return window.gradio_config.components")
            if tab["type"] == "tabitem"
        }
        for title, visit in TABS.items():
            if title in tabs:
                visit(visitor)
        if unnamed := visitor.unnamed():
            raise SystemExit(f"{visitor.window}: pictures, buttons and fields without words: {unnamed}")
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
    parser.add_argument("--windows", nargs="+", default=["desktop", "mobile"], choices=list(WINDOWS))
    parser.add_argument("--brief", action="store_true", help="each tab once: no bad files, no stops, no second models")
    parser.add_argument("--dark", action="store_true", help="ask for the dark page")
    parser.add_argument(
        "--server", type=int, help="number of the demo's process, to say how much of processors it took"
    )
    parser.add_argument("--patience", type=float, default=90.0, help="seconds to wait for what must come")
    options = parser.parse_args()
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        for window in options.windows:
            given = {"patience": options.patience, "server": options.server, "is_dark": options.dark}
            given["is_brief"] = options.brief
            visitor = Visitor(options.url, out, window, Path(folder), **given)
            tour(visitor, options.login)


if __name__ == "__main__":
    main()
