"""A make-believe second device, so that a tensor left on the CPU is found without a GPU.

Tensors ``there`` hold ordinary ones and are computed with as ever, but say that their device is ``meta``, and an operation on some that
are there and some that are on the CPU raises, as it does between a GPU and the CPU. As there, scalars and indices may come from the CPU.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

DEVICE = torch.device("meta")
MAY_MIX = {"copy_", "_to_copy", "index", "index_put", "index_put_", "_index_put_impl_"}  # copies, and indices from the CPU


class There(torch.Tensor):
    """An ordinary tensor that says it is on DEVICE."""

    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> Any:
        shape, strides, start = inner.size(), inner.stride(), inner.storage_offset()
        out = torch.Tensor._make_wrapper_subclass(cls, shape, strides, start, dtype=inner.dtype, device=DEVICE)  # type: ignore[attr-defined]
        out.inner = inner
        return out

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return compute(func, args, kwargs or {})

    # Numbers leave a device without an operation that could be caught.
    def item(self):
        return self.inner.item()

    def tolist(self):
        return self.inner.tolist()

    def __bool__(self):
        return bool(self.inner)

    def __int__(self):
        return int(self.inner)

    def __float__(self):
        return float(self.inner)

    def __index__(self):
        return self.inner.__index__()


class _FromNumbers(TorchFunctionMode):
    """torch.tensor(numbers, device=DEVICE) and indexing by a list, which would make a tensor without numbers."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in (torch.tensor, torch.as_tensor) and kwargs.get("device") is not None and torch.device(kwargs["device"]) == DEVICE:
            made = func(*args, **{**kwargs, "device": "cpu"})
            return made if isinstance(made, There) else There(made)
        if func in (torch.Tensor.__getitem__, torch.Tensor.__setitem__):
            args = (args[0], _listed(args[1]), *args[2:])
        return func(*args, **kwargs)


def _listed(index):
    """An index whose lists are CPU tensors."""
    if isinstance(index, tuple):
        return tuple(_listed(part) for part in index)
    return torch.tensor(index) if isinstance(index, list) else index


class Elsewhere(TorchDispatchMode):
    """Inside the block tensors can be made on DEVICE and be sent there and back."""

    def __enter__(self):
        self.numbers = _FromNumbers()
        self.numbers.__enter__()
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        self.numbers.__exit__(*error)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return compute(func, args, kwargs or {})


def compute(func, args, kwargs):
    tensors = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, torch.Tensor)]
    there = [x for x in tensors if isinstance(x, There)]
    assert not any(x.is_meta and not isinstance(x, There) for x in tensors), f"{func} got a tensor without numbers"
    name = func.overloadpacket.__name__
    here = [x for x in tensors if not isinstance(x, There) and x.dim()]
    if there and here and not _may_mix(name, args):
        raise RuntimeError(f"{func} got tensors of two devices: {[(tuple(x.shape), str(x.device)) for x in tensors]}")
    asked = kwargs.get("device")
    to = bool(there) if asked is None else torch.device(asked) == DEVICE
    if asked is not None:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    bare = tree_map(lambda x: x.inner if isinstance(x, There) else x, (args, kwargs))
    out = func(*bare[0], **bare[1])
    originals = {id(x.inner): x for x in there}  # what an operation in place gives back is its argument
    return tree_map(lambda x: originals.get(id(x), There(x)) if isinstance(x, torch.Tensor) and to else x, out)


def _may_mix(name: str, args: tuple) -> bool:
    """Whether the CPU tensors among ``args`` are where a GPU would take them too."""
    if name not in MAY_MIX:
        return False
    if name.lstrip("_").startswith("index"):
        values = [args[0], *args[2:3]]  # the indices between them may be on the CPU, if what is indexed is not
        return isinstance(args[0], There) and all(isinstance(v, There) or not v.dim() for v in values)
    return True


def move(model: torch.nn.Module) -> torch.nn.Module:
    """The model with its weights and buffers on DEVICE, in place."""
    for module in model.modules():
        for name, weight in module._parameters.items():
            if weight is not None:
                module._parameters[name] = torch.nn.Parameter(There(weight.detach()), requires_grad=False)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = There(buffer)
    return model
