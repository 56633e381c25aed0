"""A file read piece by piece."""

import io
from collections.abc import Callable


class Pieces:
    """A file that is never read whole: what pyarrow asks of one, each piece a request of its own."""

    def __init__(self, size: int, read: Callable[[int, int], bytes]) -> None:
        """Begin at the start.

        Args:
            size: Of the file, bytes.
            read: Returns the bytes from a place on, and how many are given with it.
        """
        self.closed = False
        self._size, self._read, self._place = size, read, 0

    def read(self, size: int = -1) -> bytes:
        """Return the next bytes, at most ``size`` of them; −1: all that are left."""
        left = max(0, self._size - self._place)
        count = left if size < 0 else min(size, left)
        body = self._read(self._place, count) if count else b""
        self._place += len(body)
        return body

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a place, counted from the start, from here or from the end; return it."""
        self._place = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._size}[whence]
        return self._place

    def tell(self) -> int:
        """Return the place."""
        return self._place

    def close(self) -> None:
        """Read no more."""
        self.closed = True
