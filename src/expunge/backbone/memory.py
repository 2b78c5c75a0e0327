"""What to do where memory runs out: one sentence for an error of the allocator."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

_SIGNS = ("out of memory", "can't allocate memory", "not enough memory")


@contextlib.contextmanager
def memory_advice() -> Iterator[None]:
    """Within this context, running out of memory says what to do about it.

    Raises:
        MemoryError: torch, on a CPU or a GPU, or Python found no memory.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        gpu = type(error).__name__ == "OutOfMemoryError"  # torch's own, without importing torch
        text = str(error).lower()
        if not (gpu or isinstance(error, MemoryError) or any(sign in text for sign in _SIGNS)):
            raise
        where = "the GPU" if gpu or "cuda" in text else "main memory"
        raise MemoryError(
            f"{where} is too small for this: draw fewer pictures at once (Sampling(batch_size=1)) "
            "or smaller ones, load the model in bfloat16, or with expunge.load(…, offload='model')"
        ) from error
