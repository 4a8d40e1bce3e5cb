"""Read arrays from untrusted sources: `.npy` files and flat FAISS indexes.

Nothing is unpickled. FAISS reads a file only after its size and header were found to agree, because its reader trusts
both.
"""

from __future__ import annotations

import math
import struct
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

_HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
_FLAT_INNER_PRODUCT = struct.Struct("<4siqqq?iQ")
"""Header of an IndexFlatIP file: mark, dimensions, vectors, two unused, trained, metric, number of floats."""


class ArrayError(ValueError):
    """A file is not the array that it should be. The message says what is wrong; the caller adds the file's name."""


class OtherIndex(ArrayError):
    """A FAISS index of a kind that is not read from others; the message says which kind is."""


def open_array(path: Path, dtype: Any, num_axes: int) -> NDArray[Any]:
    """Memory-map the array in a `.npy` file.

    Raises:
        ArrayError: The file is missing or cut off, or its array has another dtype or number of axes.
    """
    if not path.is_file():
        raise ArrayError("is not there")
    shape, fortran, found, offset = _header(path)
    if found.hasobject:
        raise ArrayError("holds Python objects (a pickle), which are not read")
    if found != np.dtype(dtype) or len(shape) != num_axes or fortran:
        order = " in Fortran order" if fortran else ""
        raise ArrayError(f"must be {np.dtype(dtype)} with {num_axes} axes, is {found} of shape {list(shape)}{order}")
    promised = offset + math.prod(shape) * found.itemsize
    if path.stat().st_size != promised:
        short = "is truncated" if path.stat().st_size < promised else "is too long"
        raise ArrayError(f"{short}: its header says {promised:,} bytes, the file has {path.stat().st_size:,}")
    if 0 in shape:
        raise ArrayError(f"is empty: shape {list(shape)}")
    return np.memmap(path, found, "r", offset, shape)


def _header(path: Path) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
    """(shape, whether it is in Fortran order, dtype, offset of the data in bytes)."""
    with path.open("rb") as file:
        try:
            read = _HEADERS[npy.read_magic(file)]
            shape, fortran, dtype = read(file)
        except (ValueError, KeyError, EOFError, struct.error) as error:
            raise ArrayError(f"is not a .npy file, or is cut off in its header ({error})") from error
        return shape, fortran, dtype, file.tell()


def open_flat_index(path: Path) -> NDArray[np.float32]:
    """Memory-map the vectors [V, D] of a flat inner-product FAISS index.

    Raises:
        ArrayError: The file is missing or cut off.
        OtherIndex: It is another kind of index.
    """
    if not path.is_file():
        raise ArrayError("is not there")
    size = path.stat().st_size
    if size < _FLAT_INNER_PRODUCT.size:
        raise ArrayError(f"is truncated: {size} bytes are less than a header")
    with path.open("rb") as file:
        header = _FLAT_INNER_PRODUCT.unpack(file.read(_FLAT_INNER_PRODUCT.size))
    mark, dimensions, count, _, _, _, metric, num_floats = header
    if mark != b"IxFI" or metric != 0:
        raise OtherIndex("is not a flat inner-product index (IndexFlatIP), the only kind that can be imported")
    promised = _FLAT_INNER_PRODUCT.size + 4 * num_floats
    if dimensions < 1 or count < 1 or num_floats != dimensions * count or size != promised:
        raise ArrayError(
            f"is truncated or not sound: its header says {count} vectors of {dimensions} numbers in {promised:,} "
            f"bytes, the file has {size:,}"
        )
    return np.memmap(path, np.float32, "r", _FLAT_INNER_PRODUCT.size, (count, dimensions))
