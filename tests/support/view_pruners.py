"""What the tests of HERO, FasterVLM, HiRED and GlobalCom2 share: pruners in short, random geometries, oracles written out."""

from __future__ import annotations

import torch
from hypothesis import settings
from hypothesis import strategies as st

from blink_exp.core.views import ViewGeometry
from blink_exp.methods.fastervlm import FasterVLM
from blink_exp.methods.globalcom2 import GlobalCom2
from blink_exp.methods.hired import HiRED
from support.models import random_encoding

GRIDS = ((1, 2), (2, 1), (2, 2), (1, 3), (3, 1))
MODES = ("paper", "reference")
few = settings(max_examples=25, deadline=None)
ratios, seeds, modes = st.floats(0.06, 1), st.integers(0, 99), st.sampled_from(MODES)


def faster(ratio, mode="paper", **options) -> FasterVLM:
    return FasterVLM(ratio, layer=3, mode=mode, **options)


def hi(ratio, mode="paper", alpha=0.5, **options) -> HiRED:
    return HiRED(ratio, alpha, 1, 3, mode, **options)


def command(ratio, mode="paper", temperature=10.0, **options) -> GlobalCom2:
    return GlobalCom2(ratio, temperature, 4, mode, **options)


ALL = (faster, hi, command)


def full(rows, columns, side=6) -> ViewGeometry:
    """A grid of tiles that an image fills."""
    return ViewGeometry(side, rows, columns, (100 * rows, 100 * columns), newline=True)


@st.composite
def images(draw):
    rows, columns = draw(st.sampled_from(GRIDS))
    return ViewGeometry(6, rows, columns, (draw(st.integers(1, 400)), draw(st.integers(1, 400))), newline=True)


def with_logits(views, rows, layer=4):
    """An encoding whose CLS logits at one layer, of one head, are ``rows``: (views, N) lists. The CLS key has logit 0."""
    encoding = random_encoding(views, heads=1)
    patches = torch.tensor(rows, dtype=torch.float32)
    encoding.logits[layer] = torch.cat([torch.zeros(len(rows), 1), patches], 1)[:, None]
    return encoding


def probabilities(encoding, layer) -> list[list[float]]:
    """CLS attention to patches, averaged over heads, one view and head at a time."""
    out = []
    for view in encoding.logits[layer].double():
        heads = []
        for head in view:
            powers = head.exp()
            heads.append(powers[1:] / powers.sum())
        out.append((sum(heads) / len(heads)).tolist())
    return out


def best(scores, k) -> list[int]:
    return sorted(sorted(range(len(scores)), key=lambda i: -scores[i])[:k])


def lists(kept) -> list[list[int]]:
    return [index.tolist() for index in kept.indices]
