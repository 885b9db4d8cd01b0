"""`hiergen demo [MODEL ...]`: a web page to look at models with."""

from __future__ import annotations

from hiergen.cli import check_model, quiet_diffusers
from hiergen.config import parse


def main(args: list[str]) -> None:
    from hiergen.demo.settings import DemoSettings

    # Models come first; what begins with a dash, and all after it, are options.
    count = next((index for index, word in enumerate(args) if word.startswith("-")), len(args))
    settings = parse(DemoSettings(models=tuple(args[:count])), args[count:], prog="hiergen demo [MODEL ...]")
    from hiergen.environment import require

    # Before PyTorch and models are loaded.
    require("gradio", "demo", "the demo")
    for model in settings.models:
        check_model("model", model)
    from hiergen.demo.app import launch

    quiet_diffusers()
    launch(settings)
