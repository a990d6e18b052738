"""The trunks by OpenVINO on a CPU. The one file that imports it, and only on purpose.

Notable choices:
- All folds are one graph of one fixed shape: the runtime then plans memory and threads once.
- ``import openvino`` brings a package that reports each conversion to its maker unless somebody opted out on this very
  machine. A hospital's service reports to nobody: that package is made unimportable first, and OpenVINO then takes its
  own stub in its place (openvino/tools/ovc/convert_impl.py).
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from app.network.daft import Network

_HINTS = {"float32": "f32", "bfloat16": "bf16"}


class Trunks:
    """See `backends.Trunks`. Compiled for images (c, x, y, z) of ``shape``; threads are torch's."""

    def __init__(self, folds: Sequence[Network], shape: tuple[int, int, int, int], precision: str) -> None:
        openvino = library()
        whole = (1, *shape)
        example = torch.zeros(whole)
        # torch would have its exporter used; that one takes seconds where the tracer takes none, and warns too.
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            traced = torch.jit.trace(_Together(folds), example, check_trace=False)  # type: ignore[no-untyped-call]
            graph = openvino.convert_model(traced, example_input=(example,), input=[whole])
        hints = {
            "INFERENCE_PRECISION_HINT": _HINTS[precision],
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        }
        self._request = openvino.compile_model(graph, "CPU", hints).create_infer_request()

    def __call__(self, image: Tensor, /) -> list[Tensor]:
        found = self._request.infer([image[None].to(torch.float32).contiguous().numpy()])
        # Copied: the runtime writes its next answer into the same memory.
        return [torch.from_numpy(part.copy()) for part in found.values()]


class _Together(nn.Module):
    def __init__(self, folds: Sequence[Network]) -> None:
        super().__init__()
        self.trunks = nn.ModuleList(fold.trunk for fold in folds)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        return tuple(trunk(image) for trunk in self.trunks)


def library() -> Any:
    """The openvino module, without what reports its use."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino

    return openvino
