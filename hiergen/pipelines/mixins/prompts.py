"""What a pipeline of images does with texts where others take classes: it reads them, edits by them, and scores under them."""

from __future__ import annotations

from typing import Any, ClassVar

from hiergen.generators.conditioning import TextCondition, read_words
from hiergen.pipelines.arguments import Texts, check_count, read_texts
from hiergen.pipelines.base import moved
from hiergen.pipelines.editing.images import ImageEditing, Pictures
from hiergen.pipelines.mixins.scoring import Classification, Likelihoods, ScoringPipeline
from hiergen.pretrained.text_encoder import TextEncoder


class PromptedPipeline(ImageEditing, ScoringPipeline):
    """A pipeline of images whose generator was trained on texts."""

    told_by: ClassVar[str] = "prompt"
    text_encoder: TextEncoder | None = None

    def edit(  # type: ignore[override]  # texts take the place of classes
        self,
        image: Pictures,
        mask_image: Any = None,
        prompt: Texts | TextCondition = None,
        *,
        negative_prompt: Texts = None,
        **options: Any,
    ) -> Any:
        """Make part of each picture anew, or the whole of it somewhat different: see `ImageEditing.edit`.

        Args:
            image: One picture or several.
            mask_image: White where pixels are to be made; None is all of the picture.
            prompt: What is to be made: one text for all pictures or one for each; None for no text.
            negative_prompt: What guidance moves away from, one text for all or one per prompt.
            options: Arguments of `ImageEditing.edit`, such as `strength`, and settings of the generator.

        Raises:
            ValueError: If there are neither one text nor one per picture, and as `ImageEditing.edit`, like the other errors.
        """
        return super().edit(image, mask_image, self._told(prompt, negative_prompt), **options)

    def outpaint(  # type: ignore[override]  # texts take the place of classes
        self,
        image: Pictures,
        prompt: Texts | TextCondition = None,
        *,
        negative_prompt: Texts = None,
        **options: Any,
    ) -> Any:
        """Make pictures smaller or move them on their canvas, and make what is empty then: see `ImageEditing.outpaint`.

        Args:
            image: One picture or several.
            prompt: As for `edit`, like `negative_prompt`.
            options: Arguments of `ImageEditing.outpaint`, such as `shift` and `scale`.
        """
        return super().outpaint(image, self._told(prompt, negative_prompt), **options)

    def vary(  # type: ignore[override]  # texts take the place of classes
        self,
        image: Pictures,
        prompt: Texts | TextCondition = None,
        *,
        keep_levels: int,
        negative_prompt: Texts = None,
        **options: Any,
    ) -> Any:
        """Keep the first levels of each picture and draw the others: see `ImageEditing.vary`.

        Args:
            image: One picture or several.
            prompt: As for `edit`, like `negative_prompt`.
            keep_levels: Number of levels that are kept.
            options: Arguments of `ImageEditing.vary`.
        """
        return super().vary(image, self._told(prompt, negative_prompt), keep_levels=keep_levels, **options)

    def score(self, images: Any, prompt: Texts | TextCondition = None, *, batch_size: int = 64) -> Likelihoods:
        """Return how likely the generator finds the tokens of pictures, by level: see `ScoringPipeline.score`.

        Args:
            images: Pictures, or their tokens.
            prompt: The text of each picture, or one for all; None for no text.
            batch_size: Number of pictures per pass.
        """
        return super().score(images, prompt, batch_size=batch_size)

    def classify(self, images: Any, prompts: Texts | TextCondition = None, *, batch_size: int = 64) -> Classification:
        """Return the text under which each picture is most likely: see `ScoringPipeline.classify`.

        Args:
            images: Pictures, or their tokens.
            prompts: The texts to choose from; their places in the list are the numbers of the classes.
            batch_size: Number of pictures with a text per pass.
        """
        return super().classify(images, prompts, batch_size=batch_size)

    def encode_prompt(self, prompt: Texts | TextCondition, negative_prompt: Texts = None) -> TextCondition:
        """Return texts as the generator reads them.

        Args:
            prompt: One text or several; or what an encoder made of them.
            negative_prompt: What guidance moves away from, one text for all or one per prompt.

        Raises:
            ValueError: If there is no text, one is none, there are not as many negative ones, or there is no encoder.
        """
        told = prompt if isinstance(prompt, TextCondition) else self._encode_texts(read_texts("prompt", prompt))
        if negative_prompt is None:
            return told
        against = read_texts("negative_prompt", negative_prompt)
        if len(against) not in (1, len(told)):
            raise ValueError(f"negative_prompt holds {len(against)} texts, expected 1 or {len(told)}, one per prompt")
        negative = self._encode_texts(against * (len(told) if len(against) == 1 else 1))
        return TextCondition(told.features, told.mask, negative)

    def _encode_texts(self, texts: list[str]) -> TextCondition:
        config = moved(self.generator).config
        name, num_tokens = (config["text_encoder"] or {}).get("name"), config["text_shape"][0]
        if name == "bytes":
            return read_words(texts, num_tokens)
        if self.text_encoder is None:
            if name is None:
                raise ValueError(
                    f"the prompt is {texts[0]!r}, but the config of this {type(self.generator).__name__} names no encoder of texts: "
                    "set pipe.text_encoder to a TextEncoder"
                )
            self.text_encoder = TextEncoder(name, num_tokens=num_tokens, device=self.generator.device)
        return TextCondition(*self.text_encoder(texts))

    def _told(self, prompt: Texts | TextCondition, negative_prompt: Texts) -> TextCondition | None:
        """Return the texts of a call; None for no text.

        Raises:
            ValueError: If there is a negative one alone.
        """
        if prompt is not None:
            return self.encode_prompt(prompt, negative_prompt)
        if negative_prompt is not None:
            raise ValueError(f"negative_prompt is {negative_prompt!r} beside no prompt, expected a prompt too")
        return None

    def _read_told(self, told: Texts | TextCondition) -> TextCondition:
        return self.encode_prompt(told)

    def _per_input(self, told: TextCondition | None, count: int, per_input: int) -> dict[str, Any]:
        check_count("num_images_per_input", per_input)
        if told is None:
            return {"num_images": count * per_input}
        if len(told) not in (1, count):
            raise ValueError(
                f"prompt holds {len(told)} texts, expected one for all, or {count}, one per image that is given"
            )
        each = told if len(told) == count else told.repeat_interleave(count)
        return {"prompt": each, "num_images_per_prompt": per_input}
