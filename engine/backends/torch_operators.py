"""ONNX's operators in PyTorch's words: those that occur in bundles, each after its specification.

https://onnx.ai/onnx/operators/ defines them. A method is called like its operator and takes the node's
attributes and then its inputs, None for an optional one that is absent.
"""

import functools
import operator
from collections.abc import Callable, Mapping
from typing import Any

Attributes = Mapping[str, Any]

# ONNX element types and torch's names for them.
TYPES = {
    1: "float32", 2: "uint8", 3: "int8", 6: "int32", 7: "int64", 9: "bool", 10: "float16", 11: "float64",
    16: "bfloat16",
}  # fmt: skip


class Operators:
    """The operators over a given `torch` module, which is not imported here since serving does without it."""

    def __init__(self, torch: Any) -> None:
        self._torch = torch
        self._functional = torch.nn.functional

    def find(self, name: str) -> Callable[..., Any] | None:
        """The function of an operator, None if it is not known."""
        return _SIMPLE[name](self._torch) if name in _SIMPLE else getattr(self, f"op_{name}", None)

    def dtype(self, number: int) -> Any:
        """torch's type for ONNX's number of it."""
        return getattr(self._torch, TYPES[number])

    # Types and shapes

    def op_Cast(self, attributes: Attributes, x: Any) -> Any:
        return x.to(self.dtype(attributes["to"]))

    def op_Shape(self, attributes: Attributes, x: Any) -> Any:
        sizes = x.shape[attributes.get("start", 0) : attributes.get("end")]
        return self._torch.tensor(sizes, dtype=self._torch.int64, device=x.device)

    def op_Reshape(self, attributes: Attributes, x: Any, shape: Any) -> Any:
        sizes = shape.tolist()
        if not attributes.get("allowzero", 0):
            sizes = [size or x.shape[axis] for axis, size in enumerate(sizes)]
        return x.reshape(sizes)

    def op_Expand(self, _: Attributes, x: Any, shape: Any) -> Any:
        return x.expand(self._torch.broadcast_shapes(x.shape, shape.tolist()))

    def op_Squeeze(self, _: Attributes, x: Any, axes: Any = None) -> Any:
        return x.squeeze() if axes is None else x.squeeze(tuple(axes.tolist()))

    def op_Unsqueeze(self, _: Attributes, x: Any, axes: Any) -> Any:
        rank = x.ndim + axes.numel()
        for axis in sorted(axis % rank for axis in axes.tolist()):
            x = x.unsqueeze(axis)
        return x

    def op_Transpose(self, attributes: Attributes, x: Any) -> Any:
        return x.permute(attributes.get("perm") or tuple(reversed(range(x.ndim))))

    def op_Concat(self, attributes: Attributes, *parts: Any) -> Any:
        return self._torch.cat(parts, dim=attributes["axis"])

    def op_Split(self, attributes: Attributes, x: Any, sizes: Any = None) -> Any:
        axis = attributes.get("axis", 0)
        if sizes is not None:
            return x.split(sizes.tolist(), dim=axis)
        each = -(-x.shape[axis] // attributes["num_outputs"])
        return x.split(each, dim=axis)

    def op_Slice(self, _: Attributes, x: Any, starts: Any, ends: Any, axes: Any = None, steps: Any = None) -> Any:
        places = range(starts.numel()) if axes is None else axes.tolist()
        strides = [1] * starts.numel() if steps is None else steps.tolist()
        for axis, start, end, step in zip(places, starts.tolist(), ends.tolist(), strides, strict=True):
            if step < 0:
                kept = list(range(x.shape[axis]))[start:end:step]
                x = x.index_select(axis, self._torch.tensor(kept, dtype=self._torch.int64, device=x.device))
            else:
                index = [slice(None)] * x.ndim
                # "To the end" is written as the largest integer, which torch would have to cut.
                size = x.shape[axis]
                index[axis] = slice(max(-size, min(start, size)), max(-size, min(end, size)), step)
                x = x[tuple(index)]
        return x

    def op_Gather(self, attributes: Attributes, x: Any, indices: Any) -> Any:
        axis = attributes.get("axis", 0) % x.ndim
        flat = self._torch.where(indices < 0, indices + x.shape[axis], indices).flatten()
        return x.index_select(axis, flat).reshape(*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :])

    def op_GatherND(self, attributes: Attributes, x: Any, indices: Any) -> Any:
        if attributes.get("batch_dims", 0):
            raise NotImplementedError("GatherND with batch_dims")
        return x[tuple(indices.unbind(-1))]

    def op_Range(self, _: Attributes, start: Any, limit: Any, delta: Any) -> Any:
        return self._torch.arange(start.item(), limit.item(), delta.item(), dtype=start.dtype, device=start.device)

    def op_Pad(self, attributes: Attributes, x: Any, pads: Any, value: Any = None, axes: Any = None) -> Any:
        amounts = pads.tolist()
        places = list(range(x.ndim)) if axes is None else axes.tolist()
        around = [(0, 0)] * x.ndim
        for axis, before, after in zip(places, amounts[: len(places)], amounts[len(places) :], strict=True):
            around[axis] = before, after
        mode = {"constant": "constant", "edge": "replicate", "reflect": "reflect"}[attributes.get("mode", "constant")]
        if mode != "constant":
            # torch pads the last axes only, and edges of at most three.
            while around and around[0] == (0, 0):
                around.pop(0)
            return self._functional.pad(x, _reversed(around), mode=mode)
        return self._functional.pad(x, _reversed(around), value=0 if value is None else value.item())

    # Arithmetic

    def op_Div(self, _: Attributes, x: Any, y: Any) -> Any:
        return x / y if x.is_floating_point() else self._torch.div(x, y, rounding_mode="trunc")

    def op_Pow(self, _: Attributes, x: Any, y: Any) -> Any:
        return x.pow(y).to(x.dtype)

    def op_Clip(self, _: Attributes, x: Any, low: Any = None, high: Any = None) -> Any:
        return x if low is None and high is None else x.clamp(low, high)

    def op_Max(self, _: Attributes, *parts: Any) -> Any:
        return functools.reduce(self._torch.maximum, parts)

    def op_Min(self, _: Attributes, *parts: Any) -> Any:
        return functools.reduce(self._torch.minimum, parts)

    def op_Gelu(self, attributes: Attributes, x: Any) -> Any:
        return self._functional.gelu(x, approximate=attributes.get("approximate", "none"))

    def op_Softmax(self, attributes: Attributes, x: Any) -> Any:
        return x.softmax(attributes.get("axis", -1))

    def _reduce(self, function: Callable[..., Any], attributes: Attributes, x: Any, axes: Any) -> Any:
        if axes is None and attributes.get("noop_with_empty_axes", 0):
            return x
        dims = tuple(range(x.ndim)) if axes is None else tuple(axes.tolist())
        return function(x, dim=dims, keepdim=bool(attributes.get("keepdims", 1)))

    def op_ReduceSum(self, attributes: Attributes, x: Any, axes: Any = None) -> Any:
        return self._reduce(self._torch.sum, attributes, x, axes)

    def op_ReduceMean(self, attributes: Attributes, x: Any, axes: Any = None) -> Any:
        return self._reduce(self._torch.mean, attributes, x, axes)

    def op_ReduceMax(self, attributes: Attributes, x: Any, axes: Any = None) -> Any:
        return self._reduce(self._torch.amax, attributes, x, axes)

    # Layers

    def op_Gemm(self, attributes: Attributes, a: Any, b: Any, c: Any = None) -> Any:
        left = a.T if attributes.get("transA", 0) else a
        right = b.T if attributes.get("transB", 0) else b
        result = attributes.get("alpha", 1.0) * (left @ right)
        return result if c is None else result + attributes.get("beta", 1.0) * c

    def op_Conv(self, attributes: Attributes, x: Any, weight: Any, bias: Any = None) -> Any:
        _refuse_auto_pad(attributes)
        rank = x.ndim - 2
        function = {1: self._functional.conv1d, 2: self._functional.conv2d, 3: self._functional.conv3d}[rank]
        x = self._functional.pad(x, _around(attributes, rank))
        strides, dilations = (attributes.get(name, [1] * rank) for name in ("strides", "dilations"))
        return function(x, weight, bias, stride=strides, dilation=dilations, groups=attributes.get("group", 1))

    def op_MaxPool(self, attributes: Attributes, x: Any) -> Any:
        _refuse_auto_pad(attributes)
        if any(attributes.get("pads", [])):
            raise NotImplementedError("MaxPool with pads")
        rank = x.ndim - 2
        strides, dilations = (attributes.get(name, [1] * rank) for name in ("strides", "dilations"))
        return self._functional.max_pool2d(
            x, attributes["kernel_shape"], strides, dilation=dilations, ceil_mode=bool(attributes.get("ceil_mode", 0))
        )

    def op_LayerNormalization(self, attributes: Attributes, x: Any, scale: Any, bias: Any = None) -> Any:
        axis = attributes.get("axis", -1) % x.ndim
        return self._functional.layer_norm(x, x.shape[axis:], scale, bias, attributes.get("epsilon", 1e-5))

    def op_InstanceNormalization(self, attributes: Attributes, x: Any, scale: Any, bias: Any) -> Any:
        return self._functional.instance_norm(x, weight=scale, bias=bias, eps=attributes.get("epsilon", 1e-5))

    def op_Resize(self, attributes: Attributes, x: Any, _: Any, scales: Any = None, sizes: Any = None) -> Any:
        if sizes is not None:
            target = sizes.tolist()
        else:
            target = [int(size * scale) for size, scale in zip(x.shape, scales.tolist(), strict=True)]
        how = attributes.get("mode", "nearest"), attributes.get("coordinate_transformation_mode", "half_pixel")
        if how == ("nearest", "asymmetric") and attributes.get("nearest_mode") == "floor":
            return self._functional.interpolate(x, target[2:], mode="nearest")
        if how in (("linear", "half_pixel"), ("linear", "pytorch_half_pixel")) and min(target[2:]) > 1:
            return self._functional.interpolate(x, target[2:], mode="bilinear", align_corners=False)
        raise NotImplementedError(f"Resize with {how}")

    # Quantised numbers

    def op_QuantizeLinear(self, attributes: Attributes, x: Any, scale: Any, zero: Any = None) -> Any:
        kind = self._torch.uint8 if zero is None else zero.dtype
        axis = attributes.get("axis", 1)
        steps = (x / _along(scale, x, axis)).round()
        if zero is not None:
            steps = steps + _along(zero, x, axis)
        limits = self._torch.iinfo(kind)
        return steps.clamp(limits.min, limits.max).to(kind)

    def op_DequantizeLinear(self, attributes: Attributes, x: Any, scale: Any, zero: Any = None) -> Any:
        if attributes.get("block_size", 0):
            raise NotImplementedError("DequantizeLinear in blocks")
        axis = attributes.get("axis", 1)
        steps = x.to(scale.dtype)
        if zero is not None:
            steps = steps - _along(zero.to(scale.dtype), x, axis)
        return steps * _along(scale, x, axis)


def _plain(name: str) -> Callable[[Any], Callable[..., Any]]:
    """An operator without attributes that torch has under `name`."""
    return lambda torch: lambda _, *inputs: getattr(torch, name)(*inputs)


def _python(function: Callable[..., Any]) -> Callable[[Any], Callable[..., Any]]:
    return lambda torch: lambda _, *inputs: function(*inputs)


_SIMPLE: dict[str, Callable[[Any], Callable[..., Any]]] = {
    "Abs": _plain("abs"), "Cos": _plain("cos"), "Erf": _plain("erf"), "Exp": _plain("exp"), "IsNaN": _plain("isnan"),
    "Log": _plain("log"), "MatMul": _plain("matmul"), "Neg": _plain("neg"), "Not": _plain("logical_not"),
    "Reciprocal": _plain("reciprocal"), "Relu": _plain("relu"), "Round": _plain("round"), "Sigmoid": _plain("sigmoid"),
    "Sin": _plain("sin"), "Sqrt": _plain("sqrt"), "Tanh": _plain("tanh"), "Where": _plain("where"),
    "Add": _python(operator.add), "Sub": _python(operator.sub), "Mul": _python(operator.mul),
    "And": _python(operator.and_), "Or": _python(operator.or_), "Equal": _python(operator.eq),
    "Greater": _python(operator.gt), "GreaterOrEqual": _python(operator.ge), "Less": _python(operator.lt),
    "LessOrEqual": _python(operator.le), "Identity": _python(lambda x: x),
}  # fmt: skip


def _reversed(around: list[tuple[int, int]]) -> list[int]:
    """Padding as torch wants it: the last axis first."""
    return [amount for pair in reversed(around) for amount in pair]


def _around(attributes: Attributes, rank: int) -> list[int]:
    pads = attributes.get("pads", [0] * (2 * rank))
    return _reversed(list(zip(pads[:rank], pads[rank:], strict=True)))


def _refuse_auto_pad(attributes: Attributes) -> None:
    if attributes.get("auto_pad", "NOTSET") != "NOTSET":
        raise NotImplementedError(f"auto_pad {attributes['auto_pad']}")


def _along(values: Any, x: Any, axis: int) -> Any:
    """Scalars as they are; one value for each place of `axis` in a shape that broadcasts against `x`."""
    if values.numel() == 1:
        return values.reshape(())
    shape = [1] * x.ndim
    shape[axis] = -1
    return values.reshape(shape)
