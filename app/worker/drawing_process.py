"""The process that draws the figures and the report of predictions; its parent is a worker (`app.worker.drawing`).

Design notes:
- Only this process loads the plotting library, so neither the worker nor the API holds it.
- It has a low priority: a prediction that is computed at the same time goes first.
- It ends when its worker closes the socket, or after `IDLE_SECONDS` without work, so it never outlives its worker.
"""

from __future__ import annotations

import gzip
import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from multiprocessing.connection import Connection

import numpy as np

from app.core.display_names import channel_label, channel_unit
from app.core.logging import error_location
from app.imaging.io.nibabel_alone import nibabel
from app.reporting import figures, page
from app.reporting.drawing import Drawing
from app.reporting.figures import CohortPosition
from app.reporting.grid_volume import GridVolume
from app.reporting.page import PublishedScores, ReportFigure
from app.reporting.tables import FigureTable
from app.sdk.published_scores import TARGET_NOTE
from app.worker import file_messages
from app.worker.drawing_data import DATA, DrawingData
from app.worker.file_messages import ERROR, IDLE_SECONDS

NICE = 10


def main() -> None:
    """Draws from each message on standard input, which is a socket, and sends the drawn files back."""
    os.nice(NICE)
    with Connection(sys.stdin.fileno()) as connection, suppress(EOFError, OSError):  # the worker has ended
        while connection.poll(IDLE_SECONDS):
            stored = file_messages.receive(connection)
            try:
                files = drawn_files(stored)
            except Exception as error:
                file_messages.send(connection, {ERROR: error_location(error).encode()})
                raise
            file_messages.send(connection, files)


def drawn_files(stored: Mapping[str, bytes]) -> dict[str, bytes]:
    """Draws all figures, as SVG and PNG, and the report.

    Args:
        stored: Bytes of the artifacts `wanted`, by name.

    Returns:
        Bytes of the new artifacts, by name; the report is last.
    """
    data = DrawingData.model_validate_json(stored[DATA])
    drawings = _drawings(data, stored)
    files: dict[str, bytes] = {}
    shown: dict[str, ReportFigure] = {}
    for name, (caption, drawing) in drawings.items():
        svg = drawing.svg()
        files |= {f"figures/{name}.svg": svg, f"figures/{name}.png": drawing.png()}
        shown[caption] = ReportFigure(svg, drawing.title, drawing.table)
    return files | {"report.html": page.report(data.prediction, shown, data.card, _published(data)).encode()}


def _published(data: DrawingData) -> PublishedScores | None:
    """The published scores of the patient; None for an answer of a release without them."""
    if not data.scores:
        return None
    rows = [(each.name, "; ".join(each.missing) or "none", each.points) for each in data.scores]
    sources = [f"{each.name}: {each.source}." for each in data.scores]
    return PublishedScores(FigureTable(("Score", "Missing items", "Sum"), rows), (TARGET_NOTE, *sources))


def _drawings(data: DrawingData, stored: Mapping[str, bytes]) -> dict[str, tuple[str, Drawing]]:
    """Caption and drawing by name, in the order of the report."""
    attribution = data.prediction.attribution
    assert attribution is not None
    drawn = {"waterfall": ("What every variable and image adds", figures.waterfall(attribution))}
    for each in data.overlays:
        regions = [part for part in attribution.regions if part.modality == each.channel]
        drawing = figures.overlay(
            _volume(stored[f"maps/aligned-{each.channel}.nii.gz"]),
            each.window,
            _volume(stored[f"maps/aligned-attribution-{each.channel}.nii.gz"]),
            each.title,
            regions,
            attribution.total,
            channel_unit(each.channel),
        )
        caption = f"{channel_label(each.channel)}: where it raised and lowered the probability"
        drawn[f"overlay-{each.channel}"] = (caption, drawing)
    if data.prediction.perfusion is not None:
        drawn["perfusion"] = ("Perfusion volumes", figures.perfusion(data.prediction.perfusion))
    positions = [
        CohortPosition(each.name, each.value_text, each.patient, np.asarray(each.others)) for each in data.positions
    ]
    drawn["position"] = ("This patient among training patients", figures.position(positions))
    return drawn


def _volume(packed: bytes) -> GridVolume:
    image = nibabel.Nifti1Image.from_bytes(gzip.decompress(packed))
    return GridVolume(image.get_fdata(dtype=np.float32), np.asarray(image.affine, np.float64))


if __name__ == "__main__":
    main()
