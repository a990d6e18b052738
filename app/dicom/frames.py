"""Typed facts of DICOM instances, without their libraries: series, instances and the frames of an image.

Positions and directions are in the patient coordinates of DICOM (LPS, millimetres).
"""

from __future__ import annotations

from dataclasses import dataclass

Vector = tuple[float, float, float]


@dataclass(frozen=True)
class Frame:
    """One slice of a series.

    Attributes:
        file: number of its file.
        index: number of the frame in that file.
        position: centre of the first voxel, mm.
        across: direction in which the columns count up.
        down: direction in which the rows count up.
        spacing: distance of the rows and of the columns, mm.
        thickness: slice thickness, mm; None if unknown.
        slope, intercept: real value = slope * stored + intercept.
        times_s: candidate acquisition times, by the attribute that holds them, seconds.
        order: order in time where no time is known: temporal position, acquisition and instance number.
        image_type: values of Image Type, upper case.
        kernel: reconstruction kernel.
    """

    file: int
    index: int
    rows: int
    columns: int
    position: Vector | None
    across: Vector | None
    down: Vector | None
    spacing: tuple[float, float] | None
    thickness: float | None
    slope: float
    intercept: float
    times_s: dict[str, float]
    order: tuple[int, int, int]
    image_type: tuple[str, ...]
    kernel: str

    @property
    def placed(self) -> bool:
        """Whether position, directions and voxel size are known."""
        return None not in (self.position, self.across, self.down, self.spacing)


@dataclass(frozen=True)
class SeriesFacts:
    """What the headers say about a series; texts are used by rules and are never stored.

    Attributes:
        uid: Series Instance UID.
        number: series number; None if unknown.
        colour: more than one value per pixel, or a palette.
    """

    uid: str
    number: int | None
    modality: str
    sop_class: str
    description: str
    protocol: str
    body_part: str
    contrast: str
    units: str
    manufacturer: str
    colour: bool
    lossy: bool


@dataclass(frozen=True)
class Instance:
    """One file.

    Attributes:
        uid: SOP Instance UID.
        study_uid: Study Instance UID.
        patient: identity by kind (id, birth date, sex, name), each as a digest.
        digest: sha-256 of the file.
        series: facts of the series.
        frames: slices; empty if the object is not an image.
        frame_of_reference: Frame of Reference UID; empty if there is none.
    """

    file: int
    uid: str
    study_uid: str
    patient: dict[str, str]
    digest: str
    series: SeriesFacts
    frames: tuple[Frame, ...]
    frame_of_reference: str = ""
