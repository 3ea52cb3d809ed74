"""Tests that hold for the kernels of some processors only."""

from __future__ import annotations

import platform

import pytest

# The order of additions in matrix products was looked at with AVX, AVX2 and AVX-512 alone.
x86 = pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="the same bits in any batch are promised for x86 alone")
