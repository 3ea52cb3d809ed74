"""Training's progress where the output is no terminal."""

from __future__ import annotations

from types import SimpleNamespace

from blink_exp.training.progress import ProgressLines


def test_a_training_in_a_file_prints_a_line_at_every_tenth(capsys):
    lines = ProgressLines()
    trainer = SimpleNamespace(is_global_zero=True, num_training_batches=20, max_epochs=2, current_epoch=1)
    lines.on_train_start(trainer, None)
    for _ in range(20):
        lines.on_train_batch_end(trainer)
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 10 and "20 of 20 (100 %)" in printed[-1]


def test_only_the_first_process_prints(capsys):
    lines = ProgressLines()
    trainer = SimpleNamespace(is_global_zero=False, num_training_batches=2, max_epochs=1, current_epoch=0)
    lines.on_train_start(trainer, None)
    lines.on_train_batch_end(trainer)
    assert not capsys.readouterr().out
