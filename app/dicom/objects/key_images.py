"""Secondary Capture images (PS3.3, A.8.1) of the figures of a prediction, with the research notice burnt in."""

from __future__ import annotations

from io import BytesIO

import numpy as np
from highdicom.sc import SCImage
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian

from app.dicom.objects.identity import ObjectContext, finish
from app.sdk.types import NOTICE

__all__ = ["burnt_in", "key_image"]

_LONGEST_EDGE = 1600
_BAND = 1 / 16  # height of the band with the notice, as a share of the width
_TEXT = 0.55  # height of its letters, as a share of the band
_INK, _PAPER = (92, 68, 0), (255, 243, 205)


def burnt_in(png: bytes) -> NDArray[np.uint8]:
    """The picture under a band with the research notice: (rows, columns, 3).

    Args:
        png: a figure.
    """
    with Image.open(BytesIO(png)) as opened:
        opened.thumbnail((_LONGEST_EDGE, _LONGEST_EDGE))
        layered = opened.convert("RGBA")
    band = max(24, round(layered.width * _BAND))
    out = Image.new("RGB", (layered.width, layered.height + band), (255, 255, 255))
    out.paste(layered, (0, band), layered)
    draw = ImageDraw.Draw(out)
    draw.rectangle((0, 0, out.width, band - 1), fill=_PAPER)
    size = band * _TEXT
    while size > 6 and draw.textlength(NOTICE, ImageFont.load_default(size)) > out.width - 8:
        size -= 1
    draw.text((out.width / 2, band / 2), NOTICE, fill=_INK, font=ImageFont.load_default(size), anchor="mm")
    return np.asarray(out)


def key_image(context: ObjectContext, number: int, name: str, caption: str, png: bytes) -> Dataset:
    """Make the image of one figure.

    Args:
        context: the prediction.
        number: instance number.
        name: name of the figure, which its UID is made of.
        caption: what it shows.
        png: the figure.

    Returns:
        The object.
    """
    equipment = context.equipment("key-images", number) | {"sop_instance_uid": context.uid("key-images", name)}
    made = SCImage(
        pixel_array=burnt_in(png),
        photometric_interpretation="RGB",
        bits_allocated=8,
        coordinate_system="PATIENT",
        study_instance_uid=context.address.study_instance_uid,
        patient_orientation=("L", "P"),  # the constructor needs one; it is emptied below
        transfer_syntax_uid=ExplicitVRLittleEndian,
        **equipment,
    )
    made.ImageComments = f"{caption}: {NOTICE}"
    made.BurnedInAnnotation = "NO"  # no text that identifies the patient
    made.ConversionType = "WSD"
    made.PatientOrientation = []  # a figure has none
    return finish(made, context, "key-images", "rlvo key images")
