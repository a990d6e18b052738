"""Result objects: what a prediction says, as DICOM instances of the same patient and study.

Only this package imports highdicom. ``export.make`` is the entry; ``isolated.export_isolated`` runs it in a process of
its own. Every instance is a pure function of the stored prediction and the return address: the same bytes at each call.
"""
