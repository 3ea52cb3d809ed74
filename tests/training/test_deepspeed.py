"""Real DeepSpeed ZeRO-2 in bf16, over gloo with one and two processes, by the command that users type."""

from __future__ import annotations

import csv
import json
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support import scripts
from support.instruction_data import instruction_data

from blink_exp.tokensr import checkpoint
from blink_exp.training import export, resume

pytestmark = [
    pytest.mark.skipif(find_spec("deepspeed") is None, reason="DeepSpeed is not installed (extra: deepspeed)"),
    pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no distributed package"),
]

STEPS, SAVED = 6, 4
TRAIN = (
    "trainer=deepspeed_zero2",
    "trainer.accelerator=cpu",
    "optim.lr=3e-3",
    f"trainer.callbacks.checkpoint.every_n_train_steps={SAVED}",
    "trainer.log_every_n_steps=1",
    "layers.indices=[1,2]",
    "data.global_batch=4",
    f"data.train_size={4 * STEPS}",
    "data.held_out_size=5",  # 3 for one process and 2 for the other
    "data=llava_665k",
    "data.held_out_share=0.2",
    "data.workers=0",
)


def losses(run: Path) -> list[float]:
    """The mean loss of every step."""
    with open(run / "log" / "metrics.csv", encoding="utf-8") as file:
        return [float(row["loss/train"]) for row in csv.DictReader(file) if row["loss/train"]]


def weights(folder: Path) -> torch.Tensor:
    """All weights of a folder of modules, flat."""
    files = sorted(folder.glob("*.safetensors"))
    assert len(files) == 2
    return torch.cat([v.flatten() for f in files for _, v in sorted(load_file(f).items())])


def result(run: Path) -> dict:
    return json.loads((run / "metrics.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> tuple[str, str]:
    """Words that name a copy of the instruction data, which lacks an image and has a broken one."""
    path, images = instruction_data(tmp_path_factory.mktemp("data"))
    return f"data.json={path}", f"data.images={images}"


def alone(*words: str) -> str:
    """Runs train.py on one process."""
    done = scripts.run(["train.py", *TRAIN, "trainer.devices=1", *words], timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def both(data, tmp_path_factory) -> Path:
    """A whole training on two processes, whose last checkpoint is that of step 4 of 6. They are started from outside, as on a cluster;
    ``train.py`` starts them itself in the last test here and in test_training_runs.py."""
    out = tmp_path_factory.mktemp("zero") / "two"
    first, second = scripts.run_ranks(["train.py", *TRAIN, "trainer.devices=2", f"hydra.run.dir={out}", *data], 2, timeout=500)
    assert first.returncode == second.returncode == 0, first.stdout + first.stderr + second.stdout + second.stderr
    assert "2 devices x 2 pairs x 1" in first.stdout
    assert second.stdout == ""
    return out


@pytest.fixture(scope="module")
def one(data, tmp_path_factory) -> Path:
    """The same on one process, which takes the step in two parts."""
    out = tmp_path_factory.mktemp("zero") / "one"
    alone(f"hydra.run.dir={out}", "data.batch_size=2", *data)
    return out


@pytest.mark.slow
def test_one_process_follows_the_loss_curve_of_two(both, one):
    """Catches a rank that sees another's items, gradients summed for averaged, a loss divided twice by the parts of a step, and a log
    of one rank's loss alone."""
    single, pair = losses(one), losses(both)
    assert len(single) == len(pair) == STEPS
    assert single == pytest.approx(pair, rel=2**-7)  # bf16 keeps 8 bits
    assert single[0] > 1.02 * single[-1]  # it does learn, so the curves do not agree for being flat
    a, b = result(one), result(both)
    for layer in ("1", "2"):
        assert a["layers"][layer]["samples"] == b["layers"][layer]["samples"] == 5
        assert a["layers"][layer]["interpolation"] == pytest.approx(b["layers"][layer]["interpolation"], rel=1e-5)
        assert a["layers"][layer]["tokensr"] == pytest.approx(b["layers"][layer]["tokensr"], rel=2**-7)
    assert a["images"] == b["images"]
    assert b["images"]["missing"] == {"ocr_vqa/images": 1}
    assert b["images"]["unreadable"] == 1  # met by one of the two processes
    assert (a["devices"], a["parts_of_a_step"]) == (1, 2)
    assert (b["devices"], b["parts_of_a_step"]) == (2, 1)


def goes_on(on: Path, before: Path, folder: Path) -> None:
    """That the run ``on`` took the steps behind the checkpoint of ``before`` as that took them itself.

    Catches optimizer state that is lost, read from the first part only or put together in another order, and a data order that depends on
    the device count. The bound on the weights stands below what each of these makes (1.4 and more, in the same run)."""
    rest = losses(on)
    assert len(rest) == STEPS - SAVED
    assert rest == pytest.approx(losses(before)[SAVED:], rel=2**-7)
    export.export(before, folder / "saved")
    saved, end, again = (weights(part) for part in (folder / "saved", before / "tokensr", on / "tokensr"))
    assert (again - end).abs().mean() < 0.5 * (end - saved).abs().mean()
    assert not (on / "universal").exists()  # what is there while a checkpoint is loaded


@pytest.mark.slow
def test_a_checkpoint_of_two_processes_goes_on_in_one(both, data, tmp_path):
    printed = alone(f"hydra.run.dir={tmp_path / 'on'}", f"resume={both}", "data.batch_size=1", *data)
    assert "going on from" in printed
    goes_on(tmp_path / "on", both, tmp_path)


@pytest.mark.slow
def test_a_checkpoint_of_one_process_goes_on_in_two(one, data, tmp_path):
    words = ["train.py", *TRAIN, "trainer.devices=2", f"hydra.run.dir={tmp_path / 'on'}", f"resume={one}", *data]
    first, second = scripts.run_ranks(words, 2, timeout=500)
    assert first.returncode == second.returncode == 0, first.stdout + first.stderr + second.stdout + second.stderr
    goes_on(tmp_path / "on", one, tmp_path)


@pytest.mark.slow
def test_a_checkpoint_of_two_processes_exports_to_modules_that_load(both, tmp_path):
    """As they were at step 4, with no backbone, no DeepSpeed and one process."""
    saved = resume.read(both / "last.ckpt")
    assert (saved.step, len(resume.parts_of(saved.path))) == (SAVED, 2)
    export.export(both, tmp_path)
    for layer in (1, 2):
        module = checkpoint.load(tmp_path, layer, saved.metadata["backbone"], 64)
        for name, value in module.state_dict().items():
            assert torch.equal(value, saved.weights[f"amplifiers.{layer}.{name}"].float())
        end = checkpoint.load(both / "tokensr", layer, saved.metadata["backbone"], 64)
        assert any(not torch.equal(a, b) for a, b in zip(end.parameters(), module.parameters(), strict=True))


@pytest.mark.slow
def test_a_checkpoint_that_lost_a_part_is_one_clear_error(both):
    part = both / "last.ckpt" / "checkpoint" / "bf16_zero_pp_rank_1_mp_rank_00_optim_states.pt"
    whole = part.read_bytes()
    try:
        for damage in (lambda: part.write_bytes(whole[: len(whole) // 2]), part.unlink):
            damage()
            with pytest.raises(resume.UserError, match="corrupt or cut off"):
                resume.read(both / "last.ckpt")
    finally:
        part.write_bytes(whole)


@pytest.mark.slow
def test_one_failing_process_ends_the_job_with_its_own_traceback(data, tmp_path):
    """No process may wait for the failed one, nor outlive the job. The second process is one that Lightning started."""
    words = ["tests/support/failing_rank.py", *TRAIN, "trainer.devices=2", f"hydra.run.dir={tmp_path / 'run'}", *data]
    done = scripts.run(words, timeout=500)
    assert done.returncode != 0
    assert "2 devices x 2 pairs x 1" in done.stdout
    assert 'raise RuntimeError("the second process fails here")' in done.stderr
    assert "RuntimeError: the second process fails here" in done.stderr
    assert not (tmp_path / "run" / "metrics.json").exists()
    for _ in range(100):
        if not running(str(tmp_path)):
            break
        time.sleep(0.1)
    assert not running(str(tmp_path))


def running(word: str) -> list[str]:
    """Processes with ``word`` on their command line."""
    if not Path("/proc").is_dir():
        pytest.skip("there is no /proc to look for left processes in")
    lines = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            line = (folder / "cmdline").read_bytes().decode(errors="replace")
        except OSError:
            continue
        if word in line:
            lines.append(line)
    return lines
