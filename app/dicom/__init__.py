"""DICOM in and out: instances, roles of series, exact volumes, results; needs the extra `dicom`."""
