"""Model cards: the README.md beside saved weights says what is known of them, and nothing else."""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import json
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusers.pipelines.pipeline_utils import DiffusionPipeline

from hiergen.config import from_json
from hiergen.files import atomic_directory, write_text
from hiergen.pipelines.encoding import tokenizer_fingerprint
from hiergen.pipelines.labels import class_names, list_names, short_name
from hiergen.registry import presets
from hiergen.telling import counted

#: Name of a card in its folder.
CARD = "README.md"
#: The entry of a model's config that training leaves; the underscore keeps it out of fingerprints and constructors.
TRAINING = "_training"
#: Most classes that a card lists.
MOST_CLASSES = 100
#: What the code of a card calls a folder that it does not know the later place of.
HERE = "path/to/this/folder"
#: Where reports may lie, seen from a pipeline's folder and from the one around it.
_REPORTS = ((".", "report.json"), (".", "*/report.json"), ("..", "report.json"), ("..", "evaluation/*/report.json"))
_MARK = "\n<!-- Written by hiergen, which renews it until it is edited: {} -->\n"
#: What uploading takes of the options that saving shares with it.
_PUSHED = ("repo_id", "commit_message", "private", "token", "create_pr", "subfolder")
#: What a pipeline makes of what, and the call that does it.
_KINDS = {
    "ClassToImagePipeline": ("images from classes", "images = pipe({label}, num_images_per_label=4).images"),
    "TextToImagePipeline": ("images from texts", 'images = pipe("TEXT", num_images_per_prompt=4).images'),
    "ClassToVideoPipeline": ("clips from classes", "frames = pipe({label}).frames[0]"),
    "ClassToShapePipeline": ("meshes from classes", 'pipe({label}).meshes[0].export("shape.glb")'),
    "ImageToShapePipeline": ("meshes from pictures", 'pipe(PIL.Image.open("FILE")).meshes[0].export("shape.glb")'),
}


@dataclasses.dataclass(frozen=True)
class TrainingFacts:
    """What training leaves in the config of a model, as JSON values.

    Attributes:
        preset: Name of the model's preset.
        data: Name of the data; of a path the last part alone, since cards are published.
        unit: What a sample is.
        samples: Number of samples that there are.
        classes: Number of classes of the data; 0 where they have none.
        size: Height and width of pictures in pixels; None of other data.
        samples_seen: Number of samples that the training saw.
        batch_size: Samples per step.
        seed: Seed of the training.
        init: Weights that the training started from; None where they were drawn.
        lora_rank: Rank of the adapters that alone were trained; 0 where all weights were.
        hiergen: Version of this package.
        torch: Version of PyTorch.
    """

    preset: str
    data: str
    unit: str
    samples: int
    classes: int
    size: int | None
    samples_seen: int
    batch_size: int
    seed: int
    init: str | None
    lora_rank: int
    hiergen: str
    torch: str


class CardedPipeline(DiffusionPipeline):
    """Writes a card whenever a pipeline is saved or pushed; one that a person wrote or edited stays, here and on the Hub."""

    def save_pretrained(self, save_directory: Any, *args: Any, push_to_hub: bool = False, **options: Any) -> None:
        """Save all parts as diffusers does, with a card; `push_to_hub=True` also uploads the folder, see `push_to_hub`."""
        pushed = {name: options.pop(name) for name in _PUSHED if name in options}
        super().save_pretrained(save_directory, *args, **options)
        folder = Path(save_directory)
        if push_to_hub:
            self._push(folder, **{"repo_id": folder.name, **pushed})
        else:
            write_card(self, folder)

    def push_to_hub(self, repo_id: str, **options: Any) -> Any:  # type: ignore[override]
        """Save all parts with a card, upload them, and return what the Hub's client says of it.

        Args:
            repo_id: The repository, `owner/name`.
            options: diffusers' `commit_message`, `private`, `token`, `create_pr`, `safe_serialization`, `variant` and `subfolder`.
        """
        pushed = {name: options.pop(name) for name in _PUSHED if name in options}
        with tempfile.TemporaryDirectory() as folder:
            super().save_pretrained(folder, **options)
            return self._push(Path(folder), repo_id, **pushed)

    def _push(
        self,
        folder: Path,
        repo_id: str,
        *,
        private: bool | None = None,
        token: str | bool | None = None,
        subfolder: str | None = None,
        **options: Any,
    ) -> Any:
        """Upload a folder. A card that a person wrote goes along; without one there, one on the Hub stays."""
        from huggingface_hub import create_repo

        repository = create_repo(repo_id, exist_ok=True, private=private, token=token).repo_id
        theirs = _card_on_hub(repository, token=token, subfolder=subfolder)
        if theirs is not None and not is_kept(folder / CARD):
            write_text(folder / CARD, theirs)
        write_card(self, folder, place=repository)
        return self._upload_folder(str(folder), repository, token=token, subfolder=subfolder, **options)  # type: ignore[arg-type]


def save_whole(model: Any, folder: Path) -> None:
    """Save a model or pipeline in place of what a folder held before, in one step; a card that a person wrote stays."""
    with atomic_directory(folder) as temporary:
        keep_card(folder, temporary)
        model.save_pretrained(temporary)


def keep_card(before: Path, after: Path) -> None:
    """Copy a card that a person wrote or edited into the folder that takes another's place."""
    if is_kept(before / CARD):
        write_text(after / CARD, (before / CARD).read_text(encoding="utf-8"))


def write_card(model: Any, folder: Path, *, place: str = HERE) -> None:
    """Write the card of a model or pipeline into its folder, unless a person wrote or edited the one that is there.

    Args:
        model: A pipeline, or a model alone.
        folder: Folder that it is saved in.
        place: What `from_pretrained` is to be given: the id of a repository, where that is known.
    """
    if not is_kept(folder / CARD):
        text = make_card(model, folder, place=place)
        write_text(folder / CARD, text + _MARK.format(_digest(text)))


def is_kept(card: Path) -> bool:
    """Return whether a card is there that a person wrote or edited."""
    return card.is_file() and not _is_ours(card.read_text(encoding="utf-8"))


def make_card(model: Any, folder: Path, *, place: str = HERE) -> str:
    """Return the text of a card: what the model's config says, what training left there, and reports that were made of these weights."""
    parts = dict(model.components) if isinstance(model, DiffusionPipeline) else {_kind(model): model}
    kind = type(model).__name__
    sections = {
        "What it is": [_what(model, parts), *[_size(name, part) for name, part in parts.items()]],
        "Classes": _classes(parts),
        "Trained": [f"- {name}: {told(part)}" for name, part in parts.items()],
        "Measured": _measured(parts, _roots(model, folder)),
        "Use": ["```python", *_code(kind, parts, place), "```"],
        "Papers": [f"- {type(part).__name__}: {source}" for part in parts.values() if (source := _source(part))],
        "License": [
            "The code, hiergen, is under the Apache License 2.0. Whoever publishes these weights states their license here; "
            "that of the training data may bind them."
        ],
    }
    title = " + ".join(_preset(part) or type(part).__name__ for part in parts.values())
    text = f"---\nlibrary_name: hiergen\ntags:\n- hiergen\n---\n\n# {title}\n"
    return text + "".join(f"\n## {name}\n" + "\n".join(lines) + "\n" for name, lines in sections.items() if lines)


def told(model: Any) -> str:
    """Return what training left in a model's config, in words."""
    facts = _facts(model)
    if facts is None:
        return "its config does not say how"
    size = f" at {facts.size} x {facts.size} pixels" if facts.size else ""
    classes = f" of {counted(facts.classes, 'class')}" if facts.classes else ""
    started = f", started from `{facts.init}`" if facts.init else ""
    adapters = f", adapters of rank {facts.lora_rank} alone" if facts.lora_rank else ""
    return (
        f"preset `{facts.preset}`{started}{adapters}; {counted(facts.samples, facts.unit)}{size}{classes} from {facts.data}; "
        f"{facts.samples_seen:,} samples seen in batches of {facts.batch_size}, seed {facts.seed} "
        f"(hiergen {facts.hiergen}, torch {facts.torch})"
    )


def _facts(model: Any) -> TrainingFacts | None:
    try:
        return from_json(TrainingFacts, model.config.get(TRAINING), where=TRAINING)
    except ValueError:
        # A config of another's is no reason not to save.
        return None


def _kind(model: Any) -> str:
    return "generator" if hasattr(model, "generate") else "tokenizer"


def _what(model: Any, parts: Mapping[str, Any]) -> str:
    made = _KINDS.get(type(model).__name__, ("",))[0]
    made = f"makes {made}" if made else f"is a {_kind(model)}"
    return f"A `{type(model).__name__}` of hiergen, hierarchical visual tokenizers and generators; it {made}."


def _size(name: str, part: Any) -> str:
    # Adapters are added into the weights that are saved.
    count = sum(value.numel() for key, value in part.named_parameters() if "lora_" not in key)
    levels = [
        f"{counted(spec.num_tokens, 'token')} of {f'{spec.vocab_size:,} ids' if spec.is_discrete else f'{spec.dim} numbers'}"
        for spec in getattr(part, "specs", ())
    ]
    told_levels = f"; {counted(len(levels), 'level')}: {', '.join(levels)}" if levels and name != "generator" else ""
    return f"- {name}: `{type(part).__name__}`, {count:,} parameters{told_levels}"


def _classes(parts: Mapping[str, Any]) -> list[str]:
    names = class_names(parts["generator"]) if "generator" in parts else {}
    lines = [f"{label}. {name}" for label, name in sorted(names.items())[:MOST_CLASSES]]
    return [*lines, f"\nand {len(names) - MOST_CLASSES:,} more: `pipe.labels`"] if len(names) > MOST_CLASSES else lines


def _code(kind: str, parts: Mapping[str, Any], place: str) -> list[str]:
    variable = "pipe" if kind in _KINDS else next(iter(parts))
    lines = ["import hiergen", "", f'{variable} = hiergen.from_pretrained("{place}")']
    if kind in _KINDS:
        names = class_names(parts["generator"])
        label = json.dumps(short_name(names, min(names), ""), ensure_ascii=False) if names else "0"
        lines.append(_KINDS[kind][1].format(label=label))
    return ["import PIL.Image", *lines] if "PIL" in lines[-1] else lines


def _source(part: Any) -> str:
    """Return the paper that the docstring of a model's class names, with that of its preset where that is another."""
    section = re.search(r"^Source:\n\s+(.+?)(?:\n\n|\Z)", inspect.getdoc(type(part)) or "", re.M | re.S)
    sources = [" ".join(section[1].split()).partition(". ")[0].rstrip(".")] if section else []
    preset = presets().get(_preset(part))
    if preset is not None and set(_papers(preset.source)) - set(_papers(" ".join(sources))):
        sources.append(preset.source)
    return "; ".join(sources)


def papers(part: Any) -> list[str]:
    """Return the papers that a model is made after, as "arXiv:2601.03955", by its class and its preset."""
    return list(dict.fromkeys(_papers(_source(part))))


def _papers(text: str) -> list[str]:
    return re.findall(r"arXiv:[\d.]+\d", text)


def _preset(model: Any) -> str:
    facts = _facts(model)
    return facts.preset if facts is not None else ""


def _roots(model: Any, folder: Path) -> list[Path]:
    """Return the folder of a model, and the one that it was loaded from."""
    loaded = Path(str(model.config.get("_name_or_path") or folder))
    return [folder, *([loaded] if loaded.is_dir() and loaded.resolve() != folder.resolve() else [])]


def _measured(parts: Mapping[str, Any], roots: list[Path]) -> list[str]:
    """Return what reports say that lie beside a model and were made of exactly these weights."""
    paths = dict.fromkeys(path.resolve() for root in roots for up, how in _REPORTS for path in (root / up).glob(how))
    lines, prints = [], dict[str, str]()
    for path in paths:
        try:
            report = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        judged = report.get("models") if isinstance(report, dict) else None
        if not isinstance(judged, dict) or not judged or not judged.keys() <= parts.keys():
            continue
        prints |= {name: tokenizer_fingerprint(parts[name]) for name in judged if name not in prints}
        if all(prints[name] == digest for name, digest in judged.items()):
            lines += _results(report)
    return lines


def _results(report: Mapping[str, Any]) -> list[str]:
    if "summary" in report:
        return [f"- {report['summary']}"]
    numbers = ", ".join(f"{name} {value:.4g}" for name, value in report["metrics"].items() if value is not None)
    counts = ", ".join(f"{name} {count:,}" for name, count in report["counts"].items() if count)
    notes = [f"  - {note}" for note in report.get("warnings", [])]
    return [f"- {report['what']}: {numbers} ({counts}; features: {report['extractor']['name']})", *notes]


def _digest(text: str) -> str:
    """Return digits of a card's text below its head, which the Hub's own tools may write in another way."""
    return hashlib.sha256(re.sub(r"\A---\n.*?\n---\n", "", text, flags=re.S).strip().encode()).hexdigest()[:16]


def _is_ours(text: str) -> bool:
    body, _, mark = text.replace("\r\n", "\n").rpartition(_MARK.partition("{")[0])
    return bool(body) and mark.strip() == _MARK.format(_digest(body)).rpartition(": ")[2].strip()


def _card_on_hub(repository: str, **options: Any) -> str | None:
    """Return the card of a repository that a person wrote or edited; None where there is none."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    try:
        text = Path(hf_hub_download(repository, CARD, **options)).read_text(encoding="utf-8")
    except LocalEntryNotFoundError:
        # The Hub did not answer: there may be one.
        raise
    except EntryNotFoundError:
        return None
    return None if _is_ours(text) else text


def about(model: Any) -> str:
    """Return one sentence on a model: the classes that it knows, and what it was trained on."""
    parts = model.components if isinstance(model, DiffusionPipeline) else {_kind(model): model}
    names = class_names(parts["generator"]) if "generator" in parts else {}
    facts = [f"The {name}: {told(part)}." for name, part in parts.items() if _facts(part) is not None]
    return " ".join([*([f"{list_names(names)}."] if names else []), *facts])
