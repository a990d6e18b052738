"""DICOM in: the instances of a study, the role of each series, exact volumes; needs `rlvo-service[dicom]`."""
