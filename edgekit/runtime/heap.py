"""Give memory that was freed back to the system. Frees nothing itself."""

from __future__ import annotations

import ctypes


def give_back() -> None:
    """Return what the C library keeps of freed memory (glibc's malloc_trim(3)); other libraries keep little.

    A runtime opens a network through several copies of its weights. glibc keeps freed blocks of up to 32 MiB for later
    ones: without this the copies stay with the process for as long as it runs.
    """
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError):  # musl, or no Linux
        return
    trim(0)
