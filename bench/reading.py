"""Time and peak memory to inflate and decode a CT-like volume: rlvo and nibabel's ``get_fdata``.

``python -m bench reading`` or ``python -m bench.reading [ROUNDS]``. The rounds of the two readers alternate, so that a
busy machine slows both; the figures are medians. The volume is 512x512x320 int16: a noisy head in air, with padding
outside the field of view, gzip ratio about 2.4.
"""

from __future__ import annotations

import gzip
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np

SHAPE = (512, 512, 320)
SPACING_MM = (0.45, 0.45, 0.5)


def ct_like(path: Path) -> None:
    """Write the volume as ``path``.nii and ``path``.nii.gz."""
    rng = np.random.default_rng(0)
    x = np.linspace(-1, 1, SHAPE[0], dtype=np.float32)[:, None]
    y = np.linspace(-1, 1, SHAPE[1], dtype=np.float32)[None, :]
    radius = x**2 / 0.55 + y**2 / 0.8
    tissue = np.select([radius < 0.8, radius < 0.95], [40.0, 900.0], -1000.0).astype(np.float32)
    noise = np.where(radius < 0.95, 18.0, 7.0).astype(np.float32)
    data = np.empty(SHAPE, np.int16, order="F")
    for z in range(SHAPE[2]):
        scan = tissue + noise * rng.standard_normal(SHAPE[:2], dtype=np.float32)
        data[:, :, z] = np.rint(np.where(x**2 + y**2 > 1, -1024, scan))
    image = nib.Nifti1Image(data, nib.affines.from_matvec(np.diag(SPACING_MM), [-115, -115, -80]))
    image.header.set_xyzt_units("mm")
    nib.save(image, path.with_suffix(".nii"))
    path.with_suffix(".nii.gz").write_bytes(gzip.compress(path.with_suffix(".nii").read_bytes(), 6))


def read_with_rlvo(path: Path) -> None:
    from app.imaging.io.nifti import read
    from app.sdk.types import Input

    read(path, field=Input.CTA)


def read_with_nibabel(path: Path) -> None:
    nib.load(path).get_fdata()  # type: ignore[attr-defined]


READERS: dict[str, Callable[[Path], None]] = {"rlvo": read_with_rlvo, "nibabel": read_with_nibabel}


def peak_growth(reader: str, path: Path) -> int:
    """Return the bytes by which reading raises the peak memory of a new process."""
    command = [sys.executable, "-m", "bench.reading", "--peak", reader, str(path)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def _peak_growth_here(reader: str, path: Path) -> int:
    small = path.with_name("small.nii.gz")
    nib.save(nib.Nifti1Image(np.arange(512, dtype=np.int16).reshape(8, 8, 8), np.eye(4)), small)
    READERS[reader](small)  # loads the imports and allocates the buffers
    before = _peak_memory()
    READERS[reader](path)
    return _peak_memory() - before


def _peak_memory() -> int:
    """Return bytes from Linux's VmHWM, because a new process inherits getrusage's figure from its parent."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def main(rounds: int = 5) -> None:
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder) / "ct"
        ct_like(base)
        packed, plain = base.with_suffix(".nii.gz"), base.with_suffix(".nii")
        size = plain.stat().st_size
        print(f"{size / 1e6:.0f} MB, gzip ratio {size / packed.stat().st_size:.2f}, {rounds} rounds, medians")
        for path in (packed, plain):
            seconds: dict[str, list[float]] = {name: [] for name in READERS}
            for _ in range(rounds):
                for name, reader in READERS.items():
                    start = time.perf_counter()
                    reader(path)
                    seconds[name].append(time.perf_counter() - start)
            ratio = statistics.median(b / a for a, b in zip(seconds["rlvo"], seconds["nibabel"], strict=True))
            for name, times in seconds.items():
                peak = peak_growth(name, path) / size
                print(f"{path.name:10} {name:8} {statistics.median(times):6.3f} s   peak {peak:4.2f} x the volume")
            print(f"{path.name:10} nibabel / rlvo, time: {ratio:.1f}")


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["--peak", reader, path]:
            print(_peak_growth_here(reader, Path(path)))
        case [rounds]:
            main(int(rounds))
        case _:
            main()
