"""Checkpoints that would run code when they are loaded: refused by name, and nothing of them runs, DeepSpeed's parts included."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from support.refusals import refusal

from blink_exp.training import distributed, export, resume

PARTS = ("mp_rank_00_model_states.pt", "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt")  # of a DeepSpeed checkpoint


class Code:
    """Makes a folder when it is unpickled."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def test_a_checkpoint_file_with_code_is_refused(tmp_path):
    torch.save({"state_dict": {}, "global_step": 1, "x": Code(tmp_path / "ran")}, tmp_path / "last.ckpt")
    for read in (lambda: resume.read(tmp_path / "last.ckpt"), lambda: resume.latest(tmp_path), lambda: export.export(tmp_path)):
        assert "would run code when it is loaded (posix.mkdir)" in refusal(read)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("hostile", PARTS)
def test_a_part_of_a_deepspeed_checkpoint_with_code_is_refused(hostile, tmp_path):
    folder = tmp_path / "last.ckpt" / "checkpoint"
    folder.mkdir(parents=True)
    for part in PARTS:
        torch.save({"a": Code(tmp_path / "ran") if part == hostile else torch.ones(1)}, folder / part)
    assert f"{hostile} would run code" in refusal(lambda: resume.read(tmp_path / "last.ckpt"))
    assert not (tmp_path / "ran").exists()


@pytest.mark.skipif(find_spec("deepspeed") is None, reason="DeepSpeed is not installed (extra: deepspeed)")
def test_what_deepspeed_loads_is_weights_only_whatever_it_asks_for(tmp_path, monkeypatch):
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    from deepspeed.runtime.fp16.loss_scaler import LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    state = {"scaler": LossScaler(2.0), "stage": ZeroStageEnum(2), "at": fragment_address(numel=3, start=0), "w": torch.ones(2)}
    torch.save(state, tmp_path / "own.pt")
    torch.save({"x": Code(tmp_path / "ran")}, tmp_path / "other.pt")
    with distributed.weights_only_load():
        loaded = torch.load(tmp_path / "own.pt", weights_only=False)  # as DeepSpeed calls it
        assert loaded["scaler"].cur_scale == 2.0 and loaded["stage"] == ZeroStageEnum(2) and loaded["at"].numel == 3
        with pytest.raises(Exception, match=r"(?i)weights.only"):
            torch.load(tmp_path / "other.pt", weights_only=False)
    assert not (tmp_path / "ran").exists() and distributed.WEIGHTS_ONLY not in os.environ
