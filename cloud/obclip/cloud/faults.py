"""What came out of PyTorch, as one of obclip.cloud.errors."""

from __future__ import annotations

import torch

from obclip.cloud import errors
from obclip.core.errors import RunError

# What is no OutOfMemoryError: of a CPU, of what takes memory past PyTorch's own allocator, and of cuBLAS and cuDNN
_MEMORY = ("DefaultCPUAllocator: ", "CUDA error: out of memory", "STATUS_ALLOC_FAILED")


def classify(error: Exception) -> RunError:
    """The error to tell a client of for `error`, whatever it is.

    Its message, which could quote a prompt, is left behind; so is its traceback, which would keep tensors alive.
    """
    if isinstance(error, RunError) and type(error).__module__ == errors.__name__:
        return fresh(error)
    plain = isinstance(error, RuntimeError) and any(words in str(error) for words in _MEMORY)
    if plain or isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return errors.OutOfMemoryError("the request did not fit into memory beside others; try again")
    sticky = getattr(torch, "AcceleratorError", ())  # newer PyTorch has a class for what CUDA reports
    if (sticky and isinstance(error, sticky)) or (isinstance(error, RuntimeError) and "CUDA error" in str(error)):
        return errors.DeadEngineError("the device failed; the server ends")
    return errors.FailedError(f"the model failed ({type(error).__name__})")


def fresh(error: RunError) -> RunError:
    """The same error without its history, which could quote a prompt and grows each time the error is raised."""
    return type(error)(str(error))
