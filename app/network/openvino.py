"""The trunks by OpenVINO on a CPU. The one file that imports it, and only on purpose.

Notable choices:
- The graph is said in OpenVINO's own words, nine convolutions a fold. Its converter gives the same numbers from a
  trace of torch's, for half a second of both cores and a hundred megabytes: a version that is promoted under load
  disturbed whoever was served beside it (bench/swap.py).
- All folds are one graph of one fixed shape: the runtime then plans memory and threads once.
- ``import openvino`` brings a package that reports each conversion to its maker unless somebody opted out on that very
  machine. Exports convert (app/graphs.py), and a hospital's service reports to nobody: that package is made
  unimportable first, and OpenVINO then takes its own stub in its place (openvino/tools/ovc/convert_impl.py).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from app.network.daft import Network
from app.network.resnet import Residual, Trunk

_HINTS = {"float32": "f32", "bfloat16": "bf16"}


class OpenVinoTrunks:
    """See `backends.OpenVinoTrunks`. Compiled for images (c, x, y, z) of ``shape``; threads are torch's.

    :param folds: with batch normalisation folded in (``ensemble.folded``)
    :raises ValueError: where it is not
    """

    def __init__(self, folds: Sequence[Network], shape: tuple[int, int, int, int], precision: str) -> None:
        openvino = library()
        hints = {
            "INFERENCE_PRECISION_HINT": _HINTS[precision],
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        }
        graph = _Graph().of(folds, shape)
        self._request = openvino.compile_model(graph, "CPU", hints).create_infer_request()

    def __call__(self, image: Tensor, /) -> list[Tensor]:
        found = self._request.infer([image[None].to(torch.float32).contiguous().numpy()])
        # Copied: the runtime writes its next answer into the same memory.
        return [torch.from_numpy(part.copy()) for part in found.values()]


class _Graph:
    """``resnet.Trunk`` of every fold, batch normalisation folded in, as one OpenVINO model of one image."""

    def __init__(self) -> None:
        self._model = library().Model
        import openvino.opset13 as words

        self._words: Any = words

    def of(self, folds: Sequence[Network], shape: tuple[int, int, int, int]) -> Any:
        image = self._words.parameter([1, *shape], np.float32)
        return self._model([self._trunk(fold.trunk, image) for fold in folds], [image], "trunks")

    def _trunk(self, trunk: Trunk, image: Any) -> Any:
        stem, two, none = trunk.stem, [2, 2, 2], [0, 0, 0]
        x = self._words.max_pool(self._conv(stem.conv, image), two, [1, 1, 1], none, none, two).output(0)
        x = self._words.relu(x)
        for block in (trunk.block1, trunk.block2, trunk.block3):
            x = self._block(block, x)
        return x

    def _block(self, block: Residual, x: Any) -> Any:
        inner = self._words.relu(self._conv(block.conv1, x))
        beside = x if isinstance(block.shortcut, nn.Identity) else self._conv(block.shortcut.conv, x)
        return self._words.relu(self._words.add(beside, self._conv(block.conv2, inner)))

    def _conv(self, layer: Any, x: Any) -> Any:
        if layer.bias is None:
            raise ValueError("a normalisation follows this convolution: fold it in first")
        weight, bias = (part.detach().contiguous().numpy() for part in (layer.weight, layer.bias))
        pads = list(layer.padding)
        found = self._words.convolution(x, self._words.constant(weight), list(layer.stride), pads, pads, [1, 1, 1])
        return self._words.add(found, self._words.constant(bias.reshape(1, -1, 1, 1, 1)))


def library() -> Any:
    """The openvino module, without what reports its use."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino

    return openvino
