"""DICOM pictures in class folders, shown as a viewer shows them. The only importer of pydicom."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uapray.data.pictures import png
from uapray.data.sources import Picture, classified_files
from uapray.errors import DataError

SUFFIXES = (".dcm", ".dicom")
_BEYOND = 1e30  # below and above any window: what comes back are the ends of its range


def from_dicom(source: str) -> list[Picture]:
    """Return the pictures of ``source/CLASS/….dcm`` or ``source/SPLIT/CLASS/….dcm``; PatientID is the group.

    Raises:
        DataError: If there are none, or pydicom is not installed.
    """
    try:
        import pydicom
    except ImportError as error:
        raise DataError(
            f"{source}: DICOM needs the package pydicom, which is not installed: pip install 'uapray[dicom]'"
        ) from error
    pictures = []
    for path, name, class_name, split in classified_files(source, SUFFIXES):
        try:
            header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=["PatientID"])
            group = str(header.get("PatientID") or "") or None
        except Exception:  # pydicom raises anything on a damaged file; reading its picture names it
            group = None
        pictures.append(Picture(name, class_name, split, group, partial(_read, path)))
    return pictures


def _read(path: Path) -> bytes:
    import pydicom

    try:
        return png(_shown(pydicom.dcmread(path)))
    except Exception as error:  # as above
        raise DataError(f"expected a DICOM picture, got {type(error).__name__}: {error}") from error


def _shown(dataset: Any) -> NDArray[np.uint8]:
    """Return 8-bit grey or RGB: modality and VOI look-up or window applied, MONOCHROME1 inverted.

    Without a window the darkest and brightest value of the picture become 0 and 255.
    """
    from pydicom.pixels import apply_modality_lut, apply_voi_lut

    if int(dataset.get("NumberOfFrames") or 1) > 1:
        raise DataError(f"expected one frame, got {dataset.NumberOfFrames}")
    kind = dataset.PhotometricInterpretation
    pixels = dataset.pixel_array  # pydicom turns YBR into RGB
    if pixels.ndim == 3:
        return _stretched(pixels, 0, 2 ** int(dataset.BitsStored) - 1)
    if kind not in ("MONOCHROME1", "MONOCHROME2"):
        raise DataError(f"expected MONOCHROME1, MONOCHROME2 or three channels, got {kind}")
    values = apply_modality_lut(pixels, dataset)
    if dataset.get("VOILUTSequence"):
        low, high = 0.0, 2.0 ** int(dataset.VOILUTSequence[0].LUTDescriptor[2]) - 1
    elif dataset.get("WindowCenter") is not None and dataset.get("WindowWidth") is not None:
        with np.errstate(over="ignore"):  # a sigmoid window
            low, high = apply_voi_lut(np.array([-_BEYOND, _BEYOND]), dataset)
    else:
        low, high = values.min(), values.max()
    shown = _stretched(apply_voi_lut(values, dataset), low, high)
    return 255 - shown if kind == "MONOCHROME1" else shown


def _stretched(values: NDArray[Any], low: float, high: float) -> NDArray[np.uint8]:
    scaled = (values.astype(np.float64) - low) * (255 / max(float(high - low), 1e-12))
    stretched: NDArray[np.uint8] = np.rint(scaled.clip(0, 255)).astype(np.uint8)
    return stretched
