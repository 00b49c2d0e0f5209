"""Pictures that came in parts, put together in memory: bounded, apart for each client, forgotten after a while. Pure.

Nothing of them is written: a client that is listed that a picture is not here sends it again. What a request needs of
them is stored with the request.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple

from contract.errors import RequestInvalid
from contract.mqtt.pictures import MAX_PART_BYTES, MAX_PICTURE_BYTES, PicturePart, picture_digest

CLIENT_BYTES = 2 * MAX_PICTURE_BYTES
CLIENT_PICTURES = 16
"""Of one client: beyond them its oldest picture goes."""

TOTAL_BYTES = 4 * MAX_PICTURE_BYTES
TOTAL_PICTURES = 64
"""Of all: beyond them the oldest picture of whoever has the most here goes."""

KEEP_SECONDS = 300.0
"""After its last part, or the last request that named it."""

MAX_LISTED = 8
"""Numbers of missing parts in one sentence."""


class _Name(NamedTuple):
    client: str
    digest: str


class _Picture:
    def __init__(self, count: int) -> None:
        self.count = count
        self.parts: dict[int, bytes] = {}
        self.whole: bytes | None = None
        self.used_at = 0.0

    @property
    def size(self) -> int:
        return len(self.whole or b"") + sum(map(len, self.parts.values()))


class PictureParts:
    """``now`` is a clock in seconds that never goes back."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._pictures: OrderedDict[_Name, _Picture] = OrderedDict()

    @property
    def size(self) -> int:
        """Bytes that are here."""
        return sum(picture.size for picture in self._pictures.values())

    def __len__(self) -> int:
        return len(self._pictures)

    def add(self, client: str, part: PicturePart, data: bytes) -> None:
        """Take in a part; parts may come in any order, and more than once.

        Raises:
            RequestInvalid: it is empty or too much, or the picture is another one than its name says; what there was of
            it is forgotten. It is too large for a part; what there was of the picture is kept.
        """
        self.sweep()
        if len(data) > MAX_PART_BYTES:
            why = f"it has {len(data):,} bytes, a part {MAX_PART_BYTES:,} at most: send smaller parts"
            raise RequestInvalid(f"part {part.level} of sha256:{part.digest}: {why}", field="picture")
        name = _Name(client, part.digest)
        picture = self._pictures.get(name)
        if picture is not None and picture.whole is not None:
            self._touch(name)
            return
        if picture is None or picture.count != part.count:
            self._pictures[name] = picture = _Picture(part.count)
        picture.parts[part.number] = data
        self._touch(name)
        if not data or picture.size > MAX_PICTURE_BYTES:
            del self._pictures[name]
            why = f"the picture has more than {MAX_PICTURE_BYTES:,} bytes: make it smaller" if data else "it is empty"
            raise RequestInvalid(f"part {part.level} of sha256:{part.digest}: {why}", field="picture")
        if len(picture.parts) == part.count:
            self._complete(name, picture)
        self._bound(client)

    def find(self, client: str, digest: str) -> bytes | None:
        """A picture of ``client`` that is here whole."""
        self.sweep()
        name = _Name(client, digest)
        picture = self._pictures.get(name)
        if picture is None or picture.whole is None:
            return None
        self._touch(name)
        return picture.whole

    def lacking(self, client: str, digest: str) -> str:
        """What is not here of a picture, in a clause for people."""
        picture = self._pictures.get(_Name(client, digest))
        if picture is None:
            return "is not here"
        missing = [number for number in range(1, picture.count + 1) if number not in picture.parts]
        listed = ", ".join(map(str, missing[:MAX_LISTED])) + (" and more" if len(missing) > MAX_LISTED else "")
        return f"is not whole: part {listed} of {picture.count} is missing"

    def sweep(self) -> None:
        """Forget what nobody used for long."""
        late = self._now() - KEEP_SECONDS
        while self._pictures and next(iter(self._pictures.values())).used_at <= late:
            self._pictures.popitem(last=False)

    def _touch(self, name: _Name) -> None:
        self._pictures[name].used_at = self._now()
        self._pictures.move_to_end(name)

    def _complete(self, name: _Name, picture: _Picture) -> None:
        whole = b"".join(picture.parts[number] for number in range(1, picture.count + 1))
        picture.parts.clear()
        if picture_digest(whole) != name.digest:
            del self._pictures[name]
            raise RequestInvalid(
                f"the parts that were sent as sha256:{name.digest} have another digest: send them again",
                field="picture",
            )
        picture.whole = whole

    def _bound(self, client: str) -> None:
        while True:
            sizes, counts = self._by_client()
            if sizes[client] > CLIENT_BYTES or counts[client] > CLIENT_PICTURES:
                self._drop_oldest(client)
            elif sum(sizes.values()) > TOTAL_BYTES or len(self) > TOTAL_PICTURES:
                self._drop_oldest(max(sizes, key=lambda each: (sizes[each], counts[each])))
            else:
                return

    def _by_client(self) -> tuple[dict[str, int], dict[str, int]]:
        sizes: dict[str, int] = {}
        counts: dict[str, int] = {}
        for name, picture in self._pictures.items():
            sizes[name.client] = sizes.get(name.client, 0) + picture.size
            counts[name.client] = counts.get(name.client, 0) + 1
        return sizes, counts

    def _drop_oldest(self, client: str) -> None:
        del self._pictures[next(name for name in self._pictures if name.client == client)]
