"""Memory that the process keeps once it is freed, instead of giving it back to the kernel."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from contextlib import suppress

# Of glibc's malloc.h and Linux's mman-common.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_MADV_HUGEPAGE = 14
_HUGE_PAGE = 2 << 20  # bytes
_LARGEST_KEPT = 1 << 30  # a block; larger ones have memory of their own from the kernel

_is_kept = False


def keep_freed_memory(environ: Mapping[str, str]) -> None:
    """Tell malloc to keep what is freed for the next block, up to 2 GiB, in pages of 2 MiB where Linux has them.

    glibc gives large blocks back to the kernel at once, which zeroes every page of them when the next step, or the next
    picture, asks for the same ones. Nothing is changed where MALLOC_... variables are set, or another malloc is in use;
    and nothing more by a second call in one process.
    """
    global _is_kept
    if _is_kept or any(name.startswith("MALLOC_") for name in environ):
        return
    _is_kept = True
    with suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_THRESHOLD, _LARGEST_KEPT)
        libc.mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)
        _ask_for_huge_pages(libc)


def _ask_for_huge_pages(libc: ctypes.CDLL) -> None:
    """Ask for huge pages at the top of the heap, where large blocks will be; no memory is taken by this."""
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.restype, libc.free.argtypes = None, [ctypes.c_void_p]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    block = libc.malloc(_LARGEST_KEPT - _HUGE_PAGE)
    if block:
        start = -(-block // _HUGE_PAGE) * _HUGE_PAGE
        libc.madvise(start, _LARGEST_KEPT - 2 * _HUGE_PAGE, _MADV_HUGEPAGE)
        libc.free(block)
