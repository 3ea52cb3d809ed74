"""What a piece of work takes besides seconds: memory, arithmetic, and how often the host reads what a device holds."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.overrides import TorchFunctionMode
from torch.profiler import ProfilerActivity, profile

from blink_exp.backbone.cache_name import CACHE
from blink_exp.decoder.shared_attention import SharedKVCache


def peak_bytes(work: Callable[[], Any], device: str = "cpu") -> int:
    """Most bytes of tensors that ``work`` holds at once, beyond those that were there before.

    On CUDA by the caching allocator, on a CPU by the profiler's record of every allocation: the number depends on the work alone, not on
    what else the process or the machine does. What a kernel takes inside itself does not show on a CPU.
    """
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        work()
        return torch.cuda.max_memory_allocated(device) - before
    with quiet(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        result = work()
    del result
    held = most = 0
    events = recorded.profiler.kineto_results.events()
    for event in sorted((e for e in events if e.name() == "[memory]"), key=lambda e: e.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """The profiler announces itself on the C library's stderr, which Python's redirect does not reach."""
    stderr = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(nowhere)


def summary(work: Callable[[], Any], device: str = "cpu", most: int = 8) -> list[dict[str, Any]]:
    """Where the time of ``work`` goes: the ``most`` operators with the largest own time, with share and calls."""
    cuda = device.startswith("cuda")
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if cuda else [])
    with quiet(), profile(activities=activities) as recorded:
        work()
        if cuda:
            torch.cuda.synchronize(device)

    def self_time(average: Any) -> float:
        return average.self_device_time_total if cuda else average.self_cpu_time_total

    operators = [a for a in recorded.key_averages() if a.device_type == DeviceType.CPU]  # kernels stand there again, by themselves
    ranked = sorted(operators, key=self_time, reverse=True)
    total = sum(map(self_time, ranked)) or 1.0
    return [{"operator": a.key, "share": self_time(a) / total, "ms": self_time(a) / 1e3, "calls": a.count} for a in ranked[:most]]


def layer_flops(queries: int, before: int, width: int, mlp: int) -> int:
    """One decoder layer over ``queries`` new tokens behind ``before`` older ones, multiply and add counted apart.

    HERO's formula (Sec. IV-C) with what a causal kernel really has to do: a query sees itself and what stands in front of it, so a prompt
    costs half of the formula's 4 n^2 d. Counted so, it does not matter into how many segments a prompt is cut.
    """
    seen = queries * before + queries * (queries + 1) // 2
    return 8 * queries * width**2 + 4 * seen * width + 6 * queries * width * mlp


@contextlib.contextmanager
def arithmetic(model: Any, amplifiers: torch.nn.ModuleDict | None = None) -> Iterator[list[int]]:
    """Inside the block: [FLOPs] of every decoder layer with the tokens that it really ran, and of every TokenSR module."""
    config, llm = model.config.text_config, model.model.language_model
    total = [0]

    def before(layer: Any, args: tuple, kwargs: dict[str, Any]) -> None:
        states = args[0] if args else kwargs["hidden_states"]
        cache = kwargs.get(CACHE)
        known = cache.known if isinstance(cache, SharedKVCache) else 0  # the stock forward runs a prompt in one piece
        total[0] += layer_flops(states.shape[1], known, config.hidden_size, config.intermediate_size)

    def behind(module: Any, args: tuple, out: torch.Tensor) -> None:
        total[0] += 2 * module.weight.numel() * (out.numel() // out.shape[1])

    hooks = [layer.register_forward_pre_hook(before, with_kwargs=True) for layer in llm.layers]
    parts = amplifiers.modules() if amplifiers is not None else ()
    hooks += [m.register_forward_hook(behind) for m in parts if isinstance(m, torch.nn.Conv2d)]
    try:
        yield total
    finally:
        for hook in hooks:
            hook.remove()


READS = {
    torch.Tensor.tolist,
    torch.Tensor.item,
    torch.Tensor.cpu,
    torch.Tensor.numpy,
    torch.Tensor.nonzero,
    torch.nonzero,
    torch.Tensor.__bool__,
    torch.Tensor.__int__,
    torch.Tensor.__float__,
    torch.Tensor.__index__,
}


class HostReads(TorchFunctionMode):
    """Counts how often Python reads a tensor's numbers, or makes a tensor as long as they say: on a GPU each waits for all work before it.

    ``count`` is by the words of the code, so it is the same on a CPU, where such a read costs nothing. ``device``: only tensors there.
    """

    def __init__(self, device: str | None = None):
        super().__init__()
        self.device, self.count = device, 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if args and isinstance(args[0], torch.Tensor) and (self.device is None or args[0].device.type == self.device):
            masked = func is torch.Tensor.__getitem__ and any(_is_mask(i) for i in (args[1] if isinstance(args[1], tuple) else args[1:]))
            self.count += func in READS or masked
        return func(*args, **(kwargs or {}))


def _is_mask(index: Any) -> bool:
    return isinstance(index, torch.Tensor) and index.dtype == torch.bool


@contextlib.contextmanager
def synchronisations(device: str) -> Iterator[list[int]]:
    """Inside the block: [how often the host waited for a CUDA ``device``], by PyTorch's own record; empty elsewhere."""
    counts: list[int] = []
    if not device.startswith("cuda"):
        yield counts
        return
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield counts
        finally:
            torch.cuda.set_sync_debug_mode(before)
            counts.append(sum("called a synchronizing" in str(w.message) for w in seen))  # not the notice that the mode gives once
