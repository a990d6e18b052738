"""Errors of a device are told apart: memory ran out, the device is lost, or another fault."""

from __future__ import annotations

import pytest
import torch

from app.inference.device_errors import device_lost, out_of_memory
from app.network.ensemble import forbid_tf32


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        torch.AcceleratorError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),  # its name since cuDNN 9
        RuntimeError("GET was unable to find an engine to execute this computation"),
        RuntimeError("CUDA driver error: out of memory"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"),
        MemoryError(),
    ],
)
def test_failed_allocation_is_lack_of_memory_and_no_lost_device(error: Exception) -> None:
    assert out_of_memory(error)
    assert not device_lost(error)


@pytest.mark.parametrize(
    "error",
    [
        torch.AcceleratorError("CUDA error: an illegal memory access was encountered"),
        # Reported by the library that is called next.
        RuntimeError(
            "CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm( handle, opa, opb, m, n, k`"
        ),
        RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
        RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR"),
    ],
)
def test_error_of_a_kernel_is_a_lost_device(error: Exception) -> None:
    assert device_lost(error)
    assert not out_of_memory(error)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
        RuntimeError("CUDA error: CUBLAS_STATUS_NOT_SUPPORTED when calling `cublasGemmEx`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_BAD_PARAM"),
        ValueError("CUDA"),
    ],
)
def test_other_errors_are_neither(error: Exception) -> None:
    assert not out_of_memory(error)
    assert not device_lost(error)


def test_float32_is_not_rounded_to_tf32() -> None:
    torch.backends.cudnn.allow_tf32 = True
    forbid_tf32()
    assert not torch.backends.cudnn.allow_tf32
    assert not torch.backends.cuda.matmul.allow_tf32
