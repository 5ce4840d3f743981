"""Floating-point precision of a run."""

from __future__ import annotations

import contextlib
import warnings

import torch

from fastgrow.errors import ConfigError


def resolve_precision(precision: str, device: torch.device) -> torch.dtype:
    """Return the autocast dtype for a device; float32 means that autocast is off.

    bf16 matrix products on a CPU without AMX or AVX512-BF16 are several times slower than fp32, so
    "bf16" issues a warning there. "auto" never selects bf16 on a CPU.

    Raises:
        ConfigError: the device does not support the precision.
    """
    if device.type == "cuda":
        has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        if precision == "bf16" and not has_bf16:
            name = torch.cuda.get_device_name(device)
            raise ConfigError(f'precision="bf16": {name} has no bf16 units; use "fp32"')
        return torch.bfloat16 if has_bf16 and precision != "fp32" else torch.float32
    if precision != "bf16":
        return torch.float32
    if device.type != "cpu":
        raise ConfigError(f'precision="bf16" is not supported on {device.type}; use "fp32"')
    if not cpu_has_bf16():
        warnings.warn(
            'precision="bf16" on a CPU without AMX or AVX512-BF16 is several times slower than '
            '"fp32"',
            RuntimeWarning,
            stacklevel=2,
        )
    return torch.bfloat16


def cpu_has_bf16() -> bool:
    """Whether this CPU multiplies bf16 matrices in hardware."""
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def autocast(dtype: torch.dtype, device: torch.device) -> contextlib.AbstractContextManager[None]:
    """Return the autocast context in which the loss is computed."""
    if dtype is torch.float32:
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=dtype)
