"""A device that is not there: tensors that say they are on it hold their values in CPU tensors, which do the work.

As on a real one, an operation whose tensors are on different devices fails, but for copies, for numbers (no dimensions) and for indices
from the CPU. So code runs here, to the same bits as on the CPU, only if it puts every tensor where its model is.
"""

from __future__ import annotations

import contextlib
import sys
import warnings

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map_only

AWAY = torch.device("meta")  # a name that torch knows without a driver; nothing else of meta tensors is used
COPIES = {"_to_copy", "copy_"}
INDEXED = {"index", "index_put", "index_put_", "_index_put_impl_"}  # of (tensor, indices, values) on the device, indices may be here


class Away(torch.Tensor):
    """A tensor on ``AWAY``; ``here`` holds its values."""

    here: torch.Tensor

    @staticmethod
    def __new__(cls, here: torch.Tensor):
        out = torch.Tensor._make_wrapper_subclass(
            cls, here.shape, strides=here.stride(), storage_offset=here.storage_offset(), dtype=here.dtype, device=AWAY
        )
        out.here = here
        return out

    def __tensor_flatten__(self):
        return ["here"], None

    @staticmethod
    def __tensor_unflatten__(inner, *_):
        return Away(inner["here"])

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})

    def tolist(self):
        return self.here.tolist()

    # A list among the indices would become a meta tensor, without its numbers.
    def __getitem__(self, index):
        return super().__getitem__(_listed(index))

    def __setitem__(self, index, value):
        super().__setitem__(_listed(index), value)


class _Factories(TorchDispatchMode):
    """Operations without an ``Away`` among their tensors, such as torch.arange(..., device=AWAY)."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})


def _listed(index):
    """An index whose lists are CPU tensors."""
    if isinstance(index, tuple):
        return tuple(_listed(part) for part in index)
    return torch.tensor(index) if isinstance(index, list) else index


def _run(func, args, kwargs):
    tensors = _tensors((args, kwargs))
    assert not any(t.is_meta and not isinstance(t, Away) for t in tensors), f"{func} got a meta tensor, which has no numbers"
    away, name = any(isinstance(t, Away) for t in tensors), func.overloadpacket.__name__
    if away and name not in COPIES:
        bound = _tensors((args[0], args[2:])) if name in INDEXED and isinstance(args[0], Away) else tensors
        strangers = [tuple(t.shape) for t in bound if not isinstance(t, Away) and t.ndim]
        if strangers:
            raise RuntimeError(f"{func} got tensors of two devices: of shape {strangers} on the CPU, others on the device")
    if name == "copy_":
        lands = isinstance(args[0], Away)
    else:
        lands = away if kwargs.get("device") is None else torch.device(kwargs["device"]).type == AWAY.type
    if kwargs.get("device") is not None:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    inner_args, inner_kwargs = tree_map_only(Away, lambda t: t.here, (args, kwargs))
    out = func(*inner_args, **inner_kwargs)
    if not lands:
        return out
    return return_and_correct_aliasing(func, args, kwargs, tree_map_only(torch.Tensor, Away, out))


def _tensors(tree) -> list[torch.Tensor]:
    return [t for t in tree_leaves(tree) if isinstance(t, torch.Tensor)]


def _from_numbers(make):
    """torch.tensor or torch.as_tensor, which with device="meta" forget the numbers before a mode sees them."""

    def made(data, *, device=None, **kwargs):
        if device is None or torch.device(device) != AWAY:
            return make(data, device=device, **kwargs)
        return make(data, device="cpu", **kwargs).to(AWAY)

    return made


@contextlib.contextmanager
def pretend():
    """Makes ``AWAY`` usable in the block."""
    save = torch.save
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings(), _Factories():
        warnings.filterwarnings("ignore", ".*copying from a non-meta parameter")  # it is copied here
        patch.setattr(sys.modules["torch.optim.adam"], "_device_dtype_check_for_fused", lambda *_: None)
        # What torch.load(..., map_location="cpu") makes of a file that was saved on a device.
        patch.setattr(torch, "save", lambda state, path: save(tree_map_only(Away, lambda t: t.here, state), path))
        for name in ("tensor", "as_tensor"):
            patch.setattr(torch, name, _from_numbers(getattr(torch, name)))
        yield AWAY
