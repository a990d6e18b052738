"""Compute the trunks with OpenVINO on a CPU; the only module that imports OpenVINO.

Design notes:
- The graph is built from OpenVINO operators, nine convolutions per fold. OpenVINO's converter gives the same numbers
  but needs more time and memory, which slows predictions that run at the same time (bench/swap.py).
- All folds are one graph of one fixed shape, so that the runtime plans memory and threads once.
- OpenVINO's telemetry package reports each conversion to its vendor. A hospital's service must not, so its import is
  blocked; OpenVINO then uses a stub (openvino/tools/ovc/convert_impl.py).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from app.network.daft import Network
from app.network.resnet import ImagePath, Marks, MultiPathTrunk, Residual, Trunk

_HINTS = {"float32": "f32", "bfloat16": "bf16"}


class OpenVinoTrunks:
    """The trunks of all folds, compiled for images (c, x, y, z) of ``shape``; implements ``backends.Trunks``.

    It uses as many threads as torch does in the thread that creates it.

    Raises:
        ValueError: Batch normalisation is not folded into the ``folds``.
    """

    def __init__(self, folds: Sequence[Network], shape: tuple[int, int, int, int], precision: str) -> None:
        openvino = import_openvino()
        hints = {
            "INFERENCE_PRECISION_HINT": _HINTS[precision],
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        }
        graph = _TrunkGraph().build(folds, shape)
        self._request = openvino.compile_model(graph, "CPU", hints).create_infer_request()

    def __call__(self, image: Tensor, /) -> list[Tensor]:
        outputs = self._request.infer([image[None].to(torch.float32).contiguous().numpy()])
        # Copied, because the runtime reuses the memory for the next result.
        return [torch.from_numpy(part.copy()) for part in outputs.values()]


class _TrunkGraph:
    """Build one OpenVINO model of one image from the ``resnet.Trunk`` of every fold."""

    def __init__(self) -> None:
        self._model = import_openvino().Model
        import openvino.opset13 as operators

        self._operators: Any = operators

    def build(self, folds: Sequence[Network], shape: tuple[int, int, int, int]) -> Any:
        image = self._operators.parameter([1, *shape], np.float32)
        return self._model([self._trunk(fold.trunk, image) for fold in folds], [image], "trunks")

    def _trunk(self, trunk: Trunk | MultiPathTrunk, image: Any) -> Any:
        features = [self._path(path, self._cut(image, part)) for path, part in trunk.paths]
        if isinstance(trunk, Trunk):
            return features[0]
        whole, *paths = features
        boxed = self._operators.concat(paths, 1)
        margins = trunk.margins(list(whole.shape)[2:])  # from the last axis to the first
        before, after = [0, 0, *margins[-2::-2]], [0, 0, *margins[::-2]]
        return self._operators.concat([whole, self._operators.pad(boxed, before, after, "constant")], 1)

    def _cut(self, image: Any, part: tuple[slice, ...] | None) -> Any:
        if part is None:
            return image
        start, stop = [axis.start for axis in part], [axis.stop for axis in part]
        return self._operators.slice(image, start, stop, [1, 1, 1], [2, 3, 4])

    def _path(self, path: ImagePath, image: Any) -> Any:
        x, two, zero = self._conv(path.stem.conv, image), [2, 2, 2], [0, 0, 0]
        if isinstance(path.stem.pool, nn.MaxPool3d):
            x = self._operators.max_pool(x, two, [1, 1, 1], zero, zero, two).output(0)
        x = self._operators.relu(x)
        for block in path.blocks:
            x = self._block(block, x)
        return x if path.marks is None else self._marks(path.marks, x)

    def _marks(self, marks: Marks, x: Any) -> Any:
        place, zero = marks.place.detach().contiguous().numpy(), [0, 0, 0]
        hidden = self._operators.relu(self._operators.add(self._conv(marks.conv, x), self._operators.constant(place)))
        summed = self._operators.relu(self._conv(marks.sums, self._conv(marks.signs, hidden)))
        cell = [marks.average.kernel_size] * 3
        return self._operators.avg_pool(summed, cell, zero, zero, cell, True)

    def _block(self, block: Residual, x: Any) -> Any:
        inner = self._operators.relu(self._conv(block.conv1, x))
        shortcut = x if isinstance(block.shortcut, nn.Identity) else self._conv(block.shortcut.conv, x)
        return self._operators.relu(self._operators.add(shortcut, self._conv(block.conv2, inner)))

    def _conv(self, layer: Any, x: Any) -> Any:
        if layer.bias is None:
            raise ValueError("a batch normalisation follows this convolution: fold it in first")
        weight, bias = (part.detach().contiguous().numpy() for part in (layer.weight, layer.bias))
        pads = list(layer.padding)
        kernel, offset = self._operators.constant(weight), self._operators.constant(bias.reshape(1, -1, 1, 1, 1))
        return self._operators.add(
            self._operators.convolution(x, kernel, list(layer.stride), pads, pads, [1, 1, 1]), offset
        )


def import_openvino() -> Any:
    """Import openvino without its telemetry package."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino

    return openvino
