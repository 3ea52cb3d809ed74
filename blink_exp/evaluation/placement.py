"""The number of processes of a run, and the device of each."""

from __future__ import annotations

import os

import torch

from blink_exp.cli import under_torchrun
from blink_exp.documents.settings import PlainSettings
from blink_exp.errors import UserError


def process_count(devices: int | str, model: PlainSettings) -> int:
    """Number of processes of a run: those of torchrun, or ``devices``; auto: the visible GPUs, 1 without one or for a model on the CPU.

    Raises UserError for more devices than there are, or a model that is spread over devices."""
    if devices == 1 and not under_torchrun():
        return 1
    device = str(model.get("device") or "cpu")
    try:
        torch.device(device)
    except RuntimeError:
        return 1  # reported when the model is loaded
    there = torch.cuda.device_count() if device.startswith("cuda") else None
    first = first_gpu(device) if there else 0
    if under_torchrun():
        count, local = int(os.environ["WORLD_SIZE"]), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        if devices not in ("auto", 1, count):
            raise UserError(
                f"devices={devices} under torchrun with {count} processes; leave devices away, torchrun says how many there are"
            )
    else:
        count = local = (1 if there is None else max(1, there - first)) if devices == "auto" else int(devices)
    if count > 1 and model.get("device_map"):
        raise UserError(
            f"devices={count} runs a whole model on each device, and model.device_map={model['device_map']} spreads one over all;"
            " use devices=1 or model.device_map=null"
        )
    if count > 1 and there is not None and first + local > there:
        raise UserError(
            f"devices={local} from model.device={device} is more than the {there} GPUs that torch sees; use {max(1, there - first)}"
        )
    return count


def first_gpu(device: str) -> int:
    """Number of the GPU that ``device`` means; cuda alone is the current one."""
    index = torch.device(device).index
    return torch.cuda.current_device() if index is None else index


def device_of(device: str, first: int, local: int) -> str:
    """The device of process number ``local`` of a machine on which rank 0 has GPU ``first``."""
    return device if torch.device(device).type == "cpu" else f"cuda:{first + local}"


_pinned: list[int] = []  # the GPU of this process, once it has run a job beside others


def pin(job: int, count: int, device: str) -> None:
    """Makes the GPUs of job number ``job`` the own ones of this process, which runs jobs of a sweep side by side with other processes:
    ``count`` each, in turn. A process keeps the GPUs of its first job, and with them its model. Names of devices stay as they are, so that
    a point is the same wherever it runs. A launcher that sets CUDA_VISIBLE_DEVICES for every job needs none of this."""
    kind = torch.device(device)
    if kind.type == "cpu" or kind.index is not None or _pinned:
        return
    places = torch.cuda.device_count() // count
    if places:
        _pinned.append(job % places * count)
        torch.cuda.set_device(_pinned[0])
