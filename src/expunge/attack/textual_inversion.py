"""Textual inversion (Gal et al., 2023, arXiv:2208.01618): learn a word that brings a concept back.

Pham et al. (2024, arXiv:2308.01508) turned it on erased models. A few vectors at the text encoders'
input stand for a word of their own. They are trained as the model was, on pictures of the concept
that the original drew; nothing else of the model moves.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from expunge.attack.base import Access, Attack, Attempt, Case, Sight
from expunge.settings import check_counts, check_numbers, shown

if TYPE_CHECKING:
    from torch import Tensor

    from expunge.backbone.base import Backbone
    from expunge.backbone.conditioning import Conditioning

WORD = "<learned>"
"""Stands for the vectors in prompts."""


@dataclass(frozen=True, kw_only=True)
class TextualInversion(Attack):
    """Learn vectors that stand for the concept, and ask for it with them instead of its name.

    Attributes:
        vectors: of each text encoder.
        steps: of AdamW; the paper's are 5000, of which the first hundreds do most.
        lr: AdamW's rate, in units of the root mean square of the encoder's embeddings, so that it
            means the same for CLIP's small numbers and T5's large ones. The paper's 5e-3 is 0.36 of
            them on Stable Diffusion 1.
        references: pictures that the original draws from training prompts.
        batch_size: pictures in a step.
        white: learn on the model under attack; if not, on the original, and use it everywhere.
        encoders: text encoders that get vectors, such as `text_encoder_2`; the others read the
            concept's anchor. None for all.
    """

    name: ClassVar[str] = "textual-inversion"
    access: ClassVar[Access] = "embedding"

    vectors: int = 1
    steps: int = 500
    lr: float = 0.36
    references: int = 16
    batch_size: int = 4
    white: bool = True
    encoders: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        check_counts(self, "vectors", "steps", "references", "batch_size", least=1)
        check_numbers(self, "lr", above=0)
        if self.encoders is not None:
            object.__setattr__(self, "encoders", tuple(self.encoders))
            if not self.encoders:
                raise ValueError("encoders must name at least one text encoder, or be None for all")

    @property
    def text(self) -> str:
        one = self.vectors == 1
        if self.white:
            return "with a learned embedding" if one else f"with {self.vectors} learned vectors"
        what = "an embedding" if one else f"{self.vectors} vectors"
        return f"with {what} learned on the original"

    @property
    def white_box(self) -> bool:
        return self.white

    @property
    def budget(self) -> Mapping[str, int]:
        return {"steps": self.steps, "vectors": self.vectors, "references": self.references}

    def check(self, backbone: Backbone) -> None:
        unknown = [name for name in self.encoders or () if name not in backbone.text_encoders]
        if unknown:
            raise ValueError(
                f"this model has no text encoder {shown(unknown[0])}; encoders must be of "
                f"{', '.join(backbone.text_encoders)}"
            )

    def propose(self, sight: Sight, case: Case) -> Attempt:
        concept = case.concept
        tokens = self._learn(sight, concept.name, concept.anchor)
        asked = (with_word(prompt.text, concept.name) for prompt in case.prompts)
        return Attempt(tuple(asked), {WORD: tokens})

    def _learn(self, sight: Sight, name: str, anchor: str) -> dict[str, Tensor | str]:
        """What every text encoder shall read for the word."""
        from expunge.attack.denoising import Denoising, encoded
        from expunge.attack.vectors import Vectors
        from expunge.backbone.learned import frozen
        from expunge.run.fit import fit
        from expunge.run.objective import Minimise, Player
        from expunge.run.plan import Plan

        backbone = sight.backbone
        texts, latents = encoded(backbone, sight.references(self.references))
        prompts = [with_word(text, name) for text in texts]
        learned = Vectors.start(backbone, anchor, self.vectors, self.encoders)

        def told(some: Sequence[str]) -> Conditioning:
            return backbone.encode(some, {WORD: learned.tokens()}, grad=True)

        loss = Denoising(backbone, latents, prompts, told, self.batch_size)
        plan, players = (
            Plan(self.steps, warmup=min(10, self.steps)),
            {"word": Player(learned, self.lr)},
        )
        with frozen(list(backbone.networks.values())):
            fit(self.name, players, Minimise(loss), plan, sight.workspace, seed=sight.seed)
        return learned.done()


def with_word(text: str, name: str, word: str = WORD) -> str:
    """A prompt with a word in place of a name.

    Raises:
        ValueError: the prompt does not hold the name, so nothing would be asked with the word.
    """
    whole = " ".join(name.split())
    bare = re.sub(r"^(an?|the) ", "", whole, flags=re.IGNORECASE)  # templates bring their own
    for spelling in (whole, bare):
        pattern = rf"(?<!\w){re.escape(spelling)}(?!\w)"
        found, count = re.subn(pattern, lambda _: word, text, flags=re.IGNORECASE)
        if count:
            return found
    raise ValueError(
        f"the prompt {shown(text)} does not hold {shown(name)}, so no word replaces it"
    )
