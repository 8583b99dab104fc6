"""Stand-ins for the modules that hold weights.

They leave one node of domain ``edgeglm`` in the graph (`Linear`, `RMSNorm`, `LayerNorm`) that says which weights it
needs and of which shape. So a block is traced on the meta device, whatever its size, and every scheme of quantization
lowers the same trace.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

DOMAIN = "edgeglm"
Shape = tuple[int, ...]


def _node(operator: str, x: Tensor, shape: Shape, weight: str, **attributes: int | float) -> Tensor:
    # A list, because passes may fuse several into one.
    named: dict[str, Any] = {"weights": [weight], **attributes}
    return torch.onnx.ops.symbolic(f"{DOMAIN}::{operator}", (x,), attrs=named, dtype=x.dtype, shape=shape, version=1)


class Linear(nn.Module):
    """``y = x W^T + b`` over the last axis, W of (rows, columns)."""

    def __init__(self, weight: str, rows: int, columns: int, bias: bool) -> None:
        super().__init__()
        self.weight_name, self.rows, self.columns, self.bias = weight, rows, columns, bias
        self.split_rotary = 0  # channels of a head to put even-first, odd-second; 0 for none
        self.head_dim = 0

    def forward(self, x: Tensor) -> Tensor:
        """(..., columns) to (..., rows)."""
        return _node(
            "Linear",
            x,
            (*x.shape[:-1], self.rows),
            weight=self.weight_name,
            rows=self.rows,
            columns=self.columns,
            bias=int(self.bias),
            split_rotary=self.split_rotary,
            head_dim=self.head_dim,
        )


class PatchLinear(Linear):
    """A convolution whose kernel is its stride, on one patch each: (n, channels, …) to (n, rows)."""

    def forward(self, x: Tensor) -> Tensor:
        """Project (n, channels, *kernel) to (n, rows)."""
        return super().forward(x.flatten(1))


class WindowLinear(Linear):
    """A convolution over time whose windows may overlap: (1, channels, length) to (1, rows, positions)."""

    def __init__(self, weight: str, convolution: nn.Conv1d) -> None:
        rows, columns = convolution.weight.flatten(1).shape
        super().__init__(weight, rows, columns, convolution.bias is not None)
        (self.kernel,), (self.stride,) = convolution.kernel_size, convolution.stride
        if isinstance(convolution.padding, str) or convolution.dilation != (1,) or convolution.groups != 1:
            raise NotImplementedError(f"{weight} is a convolution with gaps, groups or a padding by name")
        if convolution.padding_mode != "zeros":
            raise NotImplementedError(f"{weight} is padded with {convolution.padding_mode}")
        (self.padding,) = convolution.padding

    def windows(self, x: Tensor) -> Tensor:
        """Return what each position sees, (1, positions, channels * kernel), in the order of a kernel's weights."""
        padded = nn.functional.pad(x, (self.padding, self.padding))
        last = padded.shape[-1] - self.kernel
        taps = [
            padded[..., tap : tap + last // self.stride * self.stride + 1 : self.stride] for tap in range(self.kernel)
        ]
        return torch.stack(taps, -1).transpose(1, 2).flatten(2)

    def forward(self, x: Tensor) -> Tensor:
        """Project every window."""
        return super().forward(self.windows(x)).transpose(1, 2)


class Norm(nn.Module):
    """An RMSNorm or LayerNorm over the last axis."""

    def __init__(self, operator: str, weight: str, size: int, epsilon: float) -> None:
        super().__init__()
        self.operator, self.weight_name, self.size, self.epsilon = operator, weight, size, epsilon

    def forward(self, x: Tensor) -> Tensor:
        """Return the shape of `x`."""
        shape = tuple(x.shape)
        return _node(self.operator, x, shape, weight=self.weight_name, size=self.size, epsilon=self.epsilon)


def insert_placeholders(module: nn.Module, prefix: str = "") -> None:
    """Replace everything below `module` that holds weights, in place; names are relative to it."""
    for name, child in list(module.named_children()):
        stand_in = placeholder(child, f"{prefix}{name}")
        if stand_in is None:
            insert_placeholders(child, f"{prefix}{name}.")
        else:
            setattr(module, name, stand_in)


def placeholder(module: nn.Module, name: str) -> nn.Module | None:
    """Return the stand-in for `module`, or None for one that holds no weights of its own."""
    if isinstance(module, nn.Linear):
        return Linear(name, module.out_features, module.in_features, module.bias is not None)
    if isinstance(module, nn.Conv1d):
        return WindowLinear(name, module)
    if isinstance(module, nn.Conv2d | nn.Conv3d):
        if module.kernel_size != module.stride or any(module.padding):
            raise NotImplementedError(f"{name} is a convolution with overlap")
        rows, columns = module.weight.shape[0], module.weight[0].numel()
        return PatchLinear(name, rows, columns, module.bias is not None)
    if isinstance(module, nn.LayerNorm):
        return Norm("LayerNorm", name, module.normalized_shape[0], module.eps)
    if type(module).__name__.endswith("RMSNorm"):
        epsilon = getattr(module, "variance_epsilon", None)
        assert isinstance(epsilon, float), f"{type(module).__name__} names its epsilon otherwise"
        return Norm("RMSNorm", name, _weight(module).numel(), epsilon)
    return None


def _weight(module: nn.Module) -> Tensor:
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight
