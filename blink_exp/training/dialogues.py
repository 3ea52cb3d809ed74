"""Questions with answers about images, for a TokenSR that is trained on answers: drawn about scenes, or of LLaVA's instruction data."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from PIL import Image
from torch.utils.data import Dataset

from blink_exp.backbone.pictures import PreparedImage, prepare_image
from blink_exp.images import open_image
from blink_exp.scenes import questions
from blink_exp.scenes.scenes import random_scene
from blink_exp.training.canvases import Files

Turns = tuple[tuple[str, str], ...]  # (question, answer) of a conversation; the last is the one that is asked
PLACEHOLDER = "<image>"  # of the instruction data
ONE_OBJECT = ("color", "shape", "existence", "conjunction", "color_check", "shape_check")  # kinds that an object's looks answer


class Dialogue(NamedTuple):
    """``key``: equal for equal images; ``asked``: conversations about the image."""

    key: str
    image: Image.Image | PreparedImage
    asked: list[Turns]


class Source(Protocol):
    """Dialogue i, the same in every run and epoch."""

    def __len__(self) -> int: ...

    def __call__(self, i: int) -> Dialogue: ...


class DialogueDataset(Dataset[Any]):
    """Dialogues of a source with their images prepared by the backbone's own image processor, as at inference."""

    def __init__(self, source: Source, image_processor: Any):
        self.source, self.image_processor = source, image_processor

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, i: int) -> Dialogue:
        if not 0 <= i < len(self):
            raise IndexError(i)
        dialogue = self.source(i)
        return dialogue._replace(image=prepare_image(dialogue.image, self.image_processor))


class SceneDialogues:
    """Scenes of train images with questions that the looks of an object answer. Those held out are other scenes, of train images too, so
    that choosing a recipe by them leaves the test images unseen.

    ``each``: questions of a scene; ``sizes``: objects a row, drawn from these; ``small``: whether all objects are small.
    """

    def __init__(self, size: int, each: int, seed: int, held_out: bool = False, sizes: Sequence[int] = (2, 3, 4), small: bool = False):
        self.size, self.each, self.seed, self.held_out, self.sizes, self.small = size, each, seed, held_out, sizes, small

    def __len__(self) -> int:
        return self.size

    def __call__(self, i: int) -> Dialogue:
        rng = np.random.default_rng((self.seed, 13 if self.held_out else 12, i))
        scene = random_scene(rng, "train", self.sizes[int(rng.integers(len(self.sizes)))], small=self.small)
        drawn = questions.draw(rng, scene, {kind: questions.KINDS[kind] for kind in ONE_OBJECT}, self.each)
        name = "held_out" if self.held_out else "train"
        return Dialogue(f"scene/{name}/{self.seed}/{i}", scene.canvas, [((question.text, question.answer),) for question in drawn])


class Conversations:
    """The conversations of each image of LLaVA's instruction data, in one piece of memory, which worker processes share.

    ``skipped``: (id, why) of rows whose conversation cannot be used.
    """

    def __init__(self, rows: Iterable[Any], names: Iterable[str]):
        wanted = {name: name for name in names}
        by_stem = {name.rpartition(".")[0]: name for name in wanted}  # OCR-VQA's images are found under another suffix
        by_image: dict[str, list[Turns]] = defaultdict(list)
        self.skipped: list[tuple[str, str]] = []
        for number, row in enumerate(rows):
            image = row.get("image") if isinstance(row, dict) else None
            if not isinstance(image, str):
                continue
            image = image.replace("\\", "/")
            name = wanted.get(image) or by_stem.get(image.rpartition(".")[0])
            if name is None:
                continue
            try:
                turns = turns_of(row.get("conversations"))
            except ValueError as error:
                self.skipped.append((str(row.get("id", number)), str(error)))
            else:
                by_image[name].append(turns)
        self.number = {name: n for n, name in enumerate(by_image)}
        parts = [json.dumps(conversations).encode() for conversations in by_image.values()]
        self.text, self.ends = b"".join(parts), np.cumsum([0, *map(len, parts)])

    def of(self, name: str) -> list[Turns]:
        """The conversations of an image; none where it is not named."""
        n = self.number.get(name)
        if n is None:
            return []
        return [tuple((q, a) for q, a in turns) for turns in json.loads(self.text[self.ends[n] : self.ends[n + 1]])]


def turns_of(conversation: Any) -> Turns:
    """The turns of a row's ``conversations``. Raises ValueError where it has none that can be used."""
    if not isinstance(conversation, list) or not conversation:
        raise ValueError("it has no conversation")
    messages = [(m.get("from"), m.get("value")) if isinstance(m, dict) else (None, None) for m in conversation]
    texts = [(speaker, value.replace(PLACEHOLDER, "").strip()) for speaker, value in messages if isinstance(value, str)]
    if len(texts) < len(messages):
        raise ValueError("a message of its conversation has no text")
    turns = []
    for (asker, question), (answerer, answer) in zip(texts[::2], texts[1::2], strict=False):
        if (asker, answerer) != ("human", "gpt") or not question or not answer:
            break  # later turns may refer to it
        turns.append((question, answer))
    if not turns:
        raise ValueError("its conversation has no question of a human with an answer of gpt")
    return tuple(turns)


class FileDialogues:
    """Image files with some turns of their conversations, each behind the turns before it. A file that cannot be read or has no
    conversation is replaced by the next that can.

    ``each``: turns of an image, drawn by ``seed`` and number.
    """

    def __init__(self, files: Files, conversations: Conversations, size: int, each: int, seed: int):
        self.files, self.conversations, self.size, self.each, self.seed = files, conversations, size, each, seed

    def __len__(self) -> int:
        return self.size

    def __call__(self, i: int) -> Dialogue:
        def opened(name: str) -> tuple[Image.Image, list[Turns]] | None:
            conversations = self.conversations.of(name)
            return (open_image(name, self.files.options, self.files.root), conversations) if conversations else None

        name, (image, conversations) = self.files.first(i, opened, "read, or have no conversation")
        turns = [conversation[: k + 1] for conversation in conversations for k in range(len(conversation))]
        chosen = np.random.default_rng((self.seed, 11, i)).permutation(len(turns))[: self.each]
        return Dialogue(str(self.files.root / name), image, [turns[k] for k in sorted(chosen)])
