"""Parametric Map objects (PS3.3, A.75): contributions to the log-odds by modality, 32-bit floating point."""

from __future__ import annotations

import numpy as np
from highdicom import VOILUTFunctionValues, VOILUTTransformation
from highdicom.pm import ParametricMap, RealWorldValueMapping
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian

from app.core.display_names import channel_label
from app.dicom.objects.codes import UNITY, own
from app.dicom.objects.geometry import frames, planes
from app.dicom.objects.identity import ObjectContext, finish
from app.imaging.io.nifti import Volume
from app.sdk.types import Channel

__all__ = ["map_number", "parametric_map"]

QUANTITY = own("log-odds-share", "Contribution to the log-odds")


def map_number(channel: Channel) -> int:
    """Instance number of the map of a channel."""
    return list(Channel).index(channel) + 1


def parametric_map(context: ObjectContext, channel: Channel, values: Volume) -> Dataset:
    """Make the map of one modality.

    Args:
        context: the prediction.
        channel: the modality.
        values: (X, Y, Z) contributions to the log-odds on a grid of the patient; their sum is that of the modality.

    Returns:
        The object.

    Raises:
        NotRectangular: the rows and columns of the map are not at right angles.
    """
    peak = float(np.abs(values.data).max()) or 1.0
    label = f"{channel_label(channel)} attribution"
    mapping = RealWorldValueMapping(
        lut_label=channel.upper(),
        lut_explanation=f"{channel_label(channel)}: contribution to the log-odds",
        unit=UNITY,
        value_range=(-peak, peak),
        slope=1,
        intercept=0,
        quantity_definition=QUANTITY,
    )
    window = VOILUTTransformation(
        window_center=0.0, window_width=_short(2 * peak), voi_lut_function=VOILUTFunctionValues.LINEAR_EXACT
    )
    made = ParametricMap(
        source_images=[context.source()],
        pixel_array=frames(values.data.astype(np.float32)),
        contains_recognizable_visual_features=False,
        real_world_value_mappings=[mapping],
        voi_lut_transformations=[window],
        transfer_syntax_uid=ExplicitVRLittleEndian,
        content_label=channel.upper(),
        content_description=f"{label}, log-odds"[:64],
        content_qualification="RESEARCH",
        **context.equipment("attribution", map_number(channel)),
        **planes(values.affine, values.shape[2]).arguments(),
    )
    context.reference_study(made)
    return finish(made, context, "attribution", "rlvo attribution")


def _short(value: float) -> float:
    """A number that a decimal string of 16 characters holds."""
    return float(f"{value:.6e}")
