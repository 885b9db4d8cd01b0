"""The models that a demo offers: those that come with the package, and others by folder or Hub id."""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from hiergen.config import from_json, nearest
from hiergen.data.images.files import list_images
from hiergen.data.images.windows import Windows
from hiergen.generators.conditioning.class_hierarchy import ClassHierarchy
from hiergen.generators.flow.model import FlowTransformer
from hiergen.generators.sequences.base import SequenceModel
from hiergen.pipelines.card import CARD, about
from hiergen.pipelines.image import ImagePipeline, TextToImagePipeline
from hiergen.pipelines.labels import class_names, short_name, titles
from hiergen.pipelines.loading import from_pretrained
from hiergen.pipelines.shape import ImageToShapePipeline, ShapePipeline
from hiergen.pipelines.video import ClassToVideoPipeline
from hiergen.pretrained.packaged import packaged_models
from hiergen.tokenizers.base import Tokenizer
from hiergen.tokenizers.videos.frames import FrameTokenizer
from hiergen.tokenizers.videos.patch_components import PatchComponents

#: What a model's folder may say about it to the demo.
NOTES_FILE = "demo.json"
#: Number of pictures of its own data that a model is shown with; there are as many digits.
NUM_EXAMPLES = 10
#: Side of the example pictures of a model that takes pictures apart in windows, in pixels.
WHOLE_SIDE = 256


@dataclasses.dataclass(frozen=True)
class ModelNotes:
    """What a folder's `demo.json` says about its model; data only, all of it optional.

    Attributes:
        title: Name in the menus; the folder's name where it is empty.
        about: One sentence about the model: what it was trained on, and how good it is.
        classes: Names of the classes.
        sampling: Settings of the generator, by the names of their fields.
        extraction: Settings of the extraction of meshes, by the names of their fields; the visitor chooses the grid's fineness.
        shown: Numbers of the classes that the page opens with; a spread over all where it is empty.
        prompts: Words to try, for a model of texts; the page opens with the first of them.
        whole: Pictures are kept as they are and taken apart in overlapping windows of the tokenizer's size.
        clips: Embedded clips that a model of clips was trained on, "digits" or "emoji": its examples are held-out ones. Digits are shown where it
            is empty.
    """

    title: str = ""
    about: str = ""
    classes: tuple[str, ...] = ()
    sampling: dict[str, Any] = dataclasses.field(default_factory=dict)
    extraction: dict[str, Any] = dataclasses.field(default_factory=dict)
    shown: tuple[int, ...] = ()
    prompts: tuple[str, ...] = ()
    whole: bool = False
    clips: str = ""


@dataclasses.dataclass(frozen=True, eq=False)
class DemoModel:
    """A loaded model with its notes.

    Attributes:
        model: A pipeline, a tokenizer alone, or a model of text; in eval mode.
        notes: Notes about the model.
        card: Text of the model's card in Markdown, without its head; empty where it has none.
        examples: Picture files of the kind of data that the tokenizer was trained on: those in the folder `examples` of the model, or else
            of the training data, where that is still there.
        title: Title in its library.
    """

    model: Any
    notes: ModelNotes
    card: str = ""
    examples: tuple[Path, ...] = ()
    title: str = ""

    @property
    def tokenizer(self) -> Any:
        """The tokenizer; None of a model of text, which reads bytes."""
        if self.is_of_text:
            return None
        return self.model if isinstance(self.model, Tokenizer) else self.model.tokenizer

    @property
    def generator(self) -> Any:
        """The generator, which a model of text is itself; None for a tokenizer alone."""
        if self.is_of_text:
            return self.model
        return None if isinstance(self.model, Tokenizer) else self.model.generator

    @property
    def is_of_text(self) -> bool:
        """Whether it is a model of text."""
        return isinstance(self.model, SequenceModel)

    @property
    def image_size(self) -> int:
        """Height and width in pixels of the pictures that it encodes; 0 where it encodes none."""
        return 0 if self.tokenizer is None else int(self.tokenizer.config.get("image_size") or 0)

    @property
    def is_of_images(self) -> bool:
        """Whether the tokenizer encodes pictures."""
        others = (ShapePipeline, ClassToVideoPipeline, SequenceModel)
        return not isinstance(self.model, others) and "image_size" in self.tokenizer.config

    @property
    def clip_size(self) -> tuple[int, int] | None:
        """Number of frames, and their height and width in pixels, of the clips that it encodes; None where it encodes none of square frames."""
        if not isinstance(self.tokenizer, (FrameTokenizer, PatchComponents)):
            return None
        if isinstance(self.tokenizer, FrameTokenizer):
            return int(self.tokenizer.config["num_frames"]), self.tokenizer.frame_size
        frames, height, width = self.tokenizer.config["video_size"]
        return (int(frames), int(height)) if height == width else None

    @property
    def windows(self) -> Windows | None:
        """The windows that pictures are taken apart in; None where they are scaled to the tokenizer's size."""
        size = self.image_size if self.notes.whole else 0
        return Windows(size=size, overlap=size // 4) if size else None

    @property
    def side(self) -> int:
        """Side of the squares that its examples are shown as, in pixels."""
        return WHOLE_SIDE if self.notes.whole else int(self.tokenizer.config["image_size"])

    @property
    def is_by_picture(self) -> bool:
        """Whether it makes shapes from pictures, not from classes."""
        return isinstance(self.model, ImageToShapePipeline)

    @property
    def takes_words(self) -> bool:
        """Whether it makes pictures of words, not of classes."""
        return isinstance(self.model, TextToImagePipeline)

    @property
    def num_classes(self) -> int:
        """How many classes may be asked for; 0 where none can."""
        if self.is_by_picture:
            return 0
        return 0 if self.generator is None else int(self.generator.config["num_classes"] or 0)

    @property
    def about(self) -> str:
        """What the notes say about the model, or else what its configs say."""
        if self.hierarchy is not None and not self.notes.about:
            counts = [f"{len(level.names):,}" for level in self.hierarchy.levels]
            return f"Classes are paths of {len(counts)} levels, of {', '.join(counts)} names."
        return self.notes.about or about(self.model) or "Its folder says nothing about it."

    @functools.cached_property
    def hierarchy(self) -> ClassHierarchy | None:
        """The paths of the generator's classes, coarse to fine; None where classes are no paths."""
        stored = None if self.generator is None else self.generator.config.get("class_hierarchy")
        return ClassHierarchy.from_json(stored) if stored else None

    @property
    def num_labels(self) -> int:
        """How many labels may be asked for: the classes, and with a hierarchy all that can be left open."""
        return self.num_classes if self.hierarchy is None else len(self.hierarchy.nodes)

    def class_name(self, label: int) -> str:
        """Return the name that the notes give a class, or else the generator's config; of a path its finest parts alone."""
        if label < len(self.notes.classes):
            return self.notes.classes[label]
        if self.hierarchy is not None:
            tree, *beside = self.hierarchy.names[label].split(" | ")
            return ", ".join(filter(None, [tree.rpartition("/")[2], *beside])) or "any class"
        names = {} if self.generator is None else class_names(self.generator)
        return short_name(names, label, f"class {label}")

    def usual_guidance(self, otherwise: float) -> float:
        """Return the guidance scale that the notes give, or another where they give none."""
        return float(self.notes.sampling.get("guidance_scale", otherwise))

    def choices(self) -> list[tuple[str, int]]:
        """Return the classes as a menu has them: name and label."""
        labels = range(self.num_classes)
        return list(zip(titles({label: self.class_name(label) for label in labels}, labels), labels, strict=True))


@dataclasses.dataclass(frozen=True)
class Library:
    """Models by title, in the order of the menus."""

    models: dict[str, DemoModel]

    def get(self, title: str) -> DemoModel:
        """Return a model by its title.

        Raises:
            ValueError: If there is none, with the nearest titles.
        """
        if title not in self.models:
            raise ValueError(f"there is no model {title!r}{nearest(title, self.models)}")
        return self.models[title]

    def image_tokenizers(self) -> list[str]:
        """Return the titles of the models that encode pictures (their config has an `image_size`): first those that take any size."""
        titles = [title for title, entry in self.models.items() if entry.is_of_images]
        return sorted(titles, key=lambda title: not self.models[title].notes.whole)

    def clip_tokenizers(self) -> list[str]:
        """Return the titles of the models that encode clips, those of larger frames first; the embedded clips have even sides from 16 pixels on."""
        sizes = {title: entry.clip_size for title, entry in self.models.items()}
        sides = {title: size[1] for title, size in sizes.items() if size is not None}
        return sorted((title for title, side in sides.items() if side >= 16 and side % 2 == 0), key=lambda t: -sides[t])

    def image_generators(self) -> list[str]:
        """Return the titles of the models that make pictures."""
        return [title for title, entry in self.models.items() if isinstance(entry.model, ImagePipeline)]

    def image_editors(self) -> list[str]:
        """Return the titles of the models that can keep a part of a picture and make the rest."""
        makers = {title: self.get(title).model for title in self.image_generators()}
        return [title for title, model in makers.items() if model.can_edit]

    def shape_generators(self) -> list[str]:
        """Return the titles of the models that make meshes."""
        return [title for title, entry in self.models.items() if isinstance(entry.model, ShapePipeline)]

    def video_generators(self) -> list[str]:
        """Return the titles of the models that make clips, and attend densely or sparsely as they are told: those of larger frames first."""
        titles = [
            title
            for title, entry in self.models.items()
            if isinstance(entry.model, ClassToVideoPipeline) and isinstance(entry.generator, FlowTransformer)
        ]
        return sorted(titles, key=lambda title: -self.models[title].tokenizer.config.get("video_size", (0,))[-1])

    def text_generators(self) -> list[str]:
        """Return the titles of the models of text."""
        return [title for title, entry in self.models.items() if entry.is_of_text]


def load_library(sources: Sequence[str] = (), *, packaged: bool = True, device: str = "cpu") -> Library:
    """Return the models of some folders or Hub ids, and after them those that come with the package, larger pictures first.

    Raises:
        ValueError: If there is no model at all, a folder holds none that the demo can show, or its notes are damaged.
    """
    loaded = [(path, load_model(path, device=device)) for path in sources]
    ours = [(str(path), load_model(str(path), device=device)) for path in packaged_models()] if packaged else []
    models: dict[str, DemoModel] = {}
    for path, entry in [*loaded, *sorted(ours, key=lambda pair: -pair[1].image_size)]:
        title = entry.notes.title or _folder_title(Path(path))
        while title in models:
            title += "'"
        models[title] = dataclasses.replace(entry, title=title)
    if not models:
        raise ValueError("there is no model to show: name a folder or a Hub id, or leave the packaged models in")
    return Library(models)


def _folder_title(path: Path) -> str:
    """Return the name of a folder; where every run has such a folder, the name of the run."""
    path = path.resolve() if path.is_dir() else path
    return path.parent.name if path.name in ("model", "pipeline", "best") and path.parent.name else path.name


def load_model(path: str, *, device: str = "cpu") -> DemoModel:
    """Return one model, in float32 and eval mode, with the notes that its folder holds.

    Raises:
        ValueError: If it cannot be loaded or is a generator alone, or its notes are damaged.
    """
    model = from_pretrained(path, dtype=torch.float32)
    is_of_text = isinstance(model, SequenceModel) and model.reads_bytes
    if not is_of_text and not isinstance(model, (Tokenizer, ImagePipeline, ShapePipeline, ClassToVideoPipeline)):
        raise ValueError(
            f"{path!r} holds a {type(model).__name__}; the demo shows tokenizers, pipelines of a tokenizer and a generator, "
            "and models of text as bytes"
        )
    model.to(device)  # type: ignore[arg-type]  # as diffusers declares it for its models
    is_alone = is_of_text or isinstance(model, Tokenizer)
    for part in [model] if is_alone else model.components.values():
        part.eval()
    if not is_alone:
        model.set_progress_bar_config(disable=True)
    if isinstance(model, TextToImagePipeline):
        # What it needs to read texts is loaded now: better that the demo does not start than that each visitor is told.
        try:
            model.encode_prompt("text")
        except (ImportError, OSError, ValueError) as error:
            raise ValueError(f"{path!r} makes pictures of texts, but cannot read any: {error}") from error
    return DemoModel(model, read_notes(path), _read_card(Path(path)), _training_pictures(Path(path)))


def _training_pictures(folder: Path) -> tuple[Path, ...]:
    """Return an even spread of the model's own examples, or of the pictures that a tokenizer here was trained on; none where neither is known."""
    tokenizer = folder / "tokenizer" if (folder / "tokenizer").is_dir() else folder
    # A run keeps its config beside its model; a pipeline's parts keep the name of the folder that they came from.
    origins = [tokenizer, Path(str(_read_object(tokenizer / "config.json").get("_name_or_path") or tokenizer))]
    sources = [str(folder / "examples")]
    for origin in origins:
        task = _read_object(origin.parent / "config.json").get("task")
        data = task.get("data") if isinstance(task, dict) else None
        sources.append(str(data.get("source") or "") if isinstance(data, dict) else "")
    for source in sources:
        if source and Path(source).is_dir():
            try:
                files = list_images(source)
            except ValueError:
                continue
            # Always as many, if need be some twice: the place of the chosen one stays good for every model.
            return tuple(files[number * len(files) // NUM_EXAMPLES] for number in range(NUM_EXAMPLES))
    return ()


def _read_card(folder: Path) -> str:
    """Return the card in a model's folder without the head that the Hub reads, which is licence and tags."""
    try:
        text = (folder / CARD).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""
    head, license = re.match(r"---\n(.*?)\n---\n", text, re.S), re.search(r"^license: (\S+)$", text, re.M)
    body = text[head.end() :] if head else text
    return body.strip() + (f"\n\nLicence: {license[1]}" if license else "")


def _read_object(file: Path) -> dict[str, Any]:
    """Return the JSON object in a file; an empty one where there is none."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def read_notes(path: str) -> ModelNotes:
    """Return the notes in a model's folder; empty ones where there is no such file.

    Raises:
        ValueError: If the file is not what `ModelNotes` says.
    """
    file = Path(path) / NOTES_FILE
    if not file.is_file():
        return ModelNotes()
    try:
        return from_json(ModelNotes, json.loads(file.read_text(encoding="utf-8")), where=str(file))
    except (OSError, ValueError) as error:
        raise ValueError(f"the notes {str(file)!r} cannot be used: {error}") from error
