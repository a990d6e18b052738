"""Flags of NCCT, CTA and vessel mask, and of how they fit together."""

from __future__ import annotations

from typing import Final

from .flag_kinds import FlagKind, Severity

_INFO, _WARNING = Severity.INFO, Severity.WARNING

CT: Final = {
    "alignment-poor": FlagKind(
        _WARNING,
        "The CT could not be aligned well to MNI space, or the NCCT to the CTA.",
        "Quality of the registration.",
        "Look at the aligned volumes. Check orientation, slice distance and completeness of the series.",
    ),
    "contrast-doubtful": FlagKind(
        _WARNING,
        "The CTA has no bright arteries, or the NCCT has.",
        "Number of places (cells of 12 mm) inside the skull with blocks above 110 HU.",
        "Check that NCCT and CTA are not exchanged.",
    ),
    "contrast-late": FlagKind(
        _INFO,
        "The CTA is a late phase: the deep veins are brighter than the arteries.",
        "Median of the CTA in the vein of Galen and the straight sinus, beside the arteries at the circle of Willis.",
        "Send the arterial phase if there is one: in a late phase, collaterals fill the branches behind a clot.",
    ),
    "contrast-weak": FlagKind(
        _WARNING,
        "The arteries of the CTA are weakly filled with contrast.",
        "95th percentile of the CTA in the vessel mask at the circle of Willis, less noise; 200 HU or more is usual.",
        "Look at the vessel mask: branches may be missing in it. With good contrast, the number could be another one.",
    ),
    "coverage": FlagKind(
        _INFO,
        "Part of the brain, or of the circle of Willis, lies outside the field of view.",
        "Share of the MNI brain inside the volume.",
        "Send the complete series if there is one.",
    ),
    "density-averaged": FlagKind(
        _INFO,
        "The slices of the NCCT are thicker than the parts by which the version reads it.",
        "Largest voxel edge beside the edge of a part.",
        "Send the thin reconstruction: a thick slice averages the density of a clot with the tissue beside it.",
    ),
    "head-doubtful": FlagKind(
        _WARNING,
        "No brain within a closed skull was found.",
        "Area of soft tissue inside bone in an axial slice.",
        "Check that the series shows the whole head.",
    ),
    "head-size-implausible": FlagKind(
        _WARNING,
        "The head has a size, proportions or a shear that hardly any adult head has.",
        "Width, length, height and shear of the intracranial space, relative to the MNI template.",
        "Check the voxel size, the distance of the slices and the gantry tilt; convert the series from DICOM again.",
    ),
    "ncct-contrast": FlagKind(
        _WARNING,
        "The blood in the NCCT holds contrast, so a clot is not denser than it.",
        "Median of the NCCT in the wide arteries of the vessel mask; 70 HU or less is expected.",
        "Send an NCCT from before the contrast, or none: the version then predicts without it.",
    ),
    "orientation-doubtful": FlagKind(
        _WARNING,
        "A head is turned far against the axes of its header, or NCCT and CTA are mirror images: sides may be wrong.",
        "Angle between the axes of the head and those of the header; asymmetry of the skull in NCCT and CTA.",
        "Check the orientation of the series in a viewer; convert it from DICOM again.",
    ),
    "skull-stripped": FlagKind(
        _INFO,
        "The skull and the air around it were removed before upload.",
        "Share of air, and the values of the rest.",
        "Send the original series.",
    ),
    "haemorrhage-possible": FlagKind(
        _WARNING,
        "A large dense region lies in the brain of the NCCT, as of a haemorrhage.",
        "Largest region, away from the skull, that is 18 HU above the median of the brain; 20 mL or more is said.",
        "Look at the NCCT. A haemorrhage is no study for this model; contrast in the tissue looks alike.",
    ),
    "hu-cut": FlagKind(
        _WARNING,
        "High values of the CTA were cut off, so bone cannot be told from contrast.",
        "Volume of blocks of 3 mm that have exactly the highest value, between 400 and 700 HU.",
        "Export the CTA in HU without a window.",
    ),
    "hu-doubtful": FlagKind(
        _WARNING,
        "The soft tissue inside the skull does not have the values of brain.",
        "Median of the soft tissue inside bone; 5 to 70 HU is expected.",
        "Export the CT with its rescale slope and intercept, applied once.",
    ),
    "metal": FlagKind(
        _INFO,
        "There is metal within the skull, such as a clip or a coil.",
        "Blocks of 3 mm above 1200 HU at least 4 mm from bone.",
        "Look at the maps near the metal: its streaks can look like calcium or contrast, and hide an artery.",
    ),
    "slices-missing": FlagKind(
        _WARNING,
        "Slices are missing or empty inside the head, or the head moved between two slices.",
        "Difference of neighbouring slices, beside those around it.",
        "Send the whole series.",
    ),
    "slice-thickness": FlagKind(
        _INFO,
        "The slices are thicker than the model was trained on.",
        "Largest voxel edge.",
        "Send the thin reconstruction.",
    ),
}

STUDY: Final = {
    "study-mismatch": FlagKind(
        _WARNING,
        "NCCT and CTA seem to show two heads, or one of them has a wrong voxel size.",
        "Skull of the NCCT beside the CTA after a rigid registration (size and shape), and their ventricles.",
        "Check that all volumes are of one patient.",
    )
}

VESSELS: Final = {
    "vessels-computed": FlagKind(
        _INFO, "The vessel mask was not sent; it is computed from the CTA.", "Inputs of the study.", "None."
    ),
    "vessels-empty": FlagKind(
        _WARNING, "The vessel mask contains no vessel.", "Voxels in the mask.", "Send the mask again, or leave it out."
    ),
    "vessels-few": FlagKind(
        _WARNING,
        "The vessel mask, sent or computed, contains hardly any vessel of the brain.",
        "Volume of the mask inside the brain; 1 mL or more is expected.",
        "Check that the CTA shows arteries with contrast, and the mask all of them.",
    ),
    "vessels-misplaced": FlagKind(
        _WARNING,
        "The vessel mask that was sent does not lie on the arteries of the CTA, or it is mirrored.",
        "Share of the mask, deep in the brain, above 90 HU on the CTA, as sent and mirrored; 30 % or more is expected.",
        "Send the mask on the grid of the CTA, or leave it out.",
    ),
    "vessels-one-sided": FlagKind(
        _WARNING,
        "Nearly all vessels of the mask, sent or computed, lie on one side of the brain.",
        "Volume of the mask on each side of the brain; the smaller is expected to reach 15 % of the larger.",
        "Check the CTA and the mask.",
    ),
    "vessels-sent": FlagKind(
        _INFO,
        "The vessel mask was sent, and the version was trained on masks that rlvo computed from the CTA.",
        "Inputs of the study; the training patients were synthetic.",
        "Leave the mask out if the CTA is sent: the true mask of a phantom gave another number than the computed one.",
    ),
    "vessels-weak": FlagKind(
        _INFO,
        "Parts that look like weakly filled branches are not in the vessel mask that was computed.",
        "Volume of connected weak tubes without a strong one; 0.15 mL or more is said.",
        "Look at the CTA behind the clot. The number can depend on whether these branches are in the mask.",
    ),
}
