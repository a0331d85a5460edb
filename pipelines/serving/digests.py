"""The digests of published documents by user: looked up and replaced at the cost of the users concerned.

Sorted pieces, the oldest and largest first, merged geometrically as in an LSM tree: for each user the newest piece
applies. A publication of some users therefore costs nothing by the number of all users.
"""

from itertools import pairwise

import polars as pl

DIGESTS = pl.Schema({"user_id": pl.String, "digest": pl.UInt64})
_MERGE_RATIO = 4
"""A piece has more than so many times the users of the next newer one: of ten million users there are about 12."""


class Digests:
    """The digest of the document of each user who has one. Not thread-safe.

    digests: as `DIGESTS`, each user once.
    """

    def __init__(self, digests: pl.DataFrame) -> None:
        self._pieces = [digests.sort("user_id")]
        self._height = digests.height

    def __len__(self) -> int:
        """Return the number of documents."""
        return self._height

    def all(self) -> pl.DataFrame:
        """Return all digests, as `DIGESTS`, ordered by user_id."""
        while len(self._pieces) > 1:
            self._merge(len(self._pieces) - 2)
        return self._pieces[0]

    def of(self, users: pl.Series) -> pl.DataFrame:
        """Return the digests of those of some users (String) who have a document, as `DIGESTS`, in no order."""
        missing, found = users.unique().sort().alias("user_id"), [pl.DataFrame(schema=DIGESTS)]
        for piece in reversed(self._pieces):
            rows, is_here = _look_up(piece, missing)
            found.append(rows)
            missing = missing.filter(~is_here)
        return pl.concat(found).drop_nulls()

    def update(self, digests: pl.DataFrame, removed: pl.Series) -> None:
        """Set the digests of some users (as `DIGESTS`), and remove those of others who have one (String)."""
        self._height += digests.height - self.of(digests["user_id"]).height - removed.len()
        gone = removed.alias("user_id").to_frame().with_columns(pl.lit(None, pl.UInt64).alias("digest"))
        if digests.height + gone.height:  # an empty piece is never merged, and each look-up would pass it
            self._pieces.append(pl.concat([digests, gone]).sort("user_id"))
        while (position := self._due()) is not None:
            self._merge(position)

    def _due(self) -> int | None:
        """Return the position of the newest piece that is too small beside the one after it; None if there is none."""
        pairs = list(enumerate(pairwise(self._pieces)))
        return next((i for i, (old, new) in reversed(pairs) if old.height < _MERGE_RATIO * new.height), None)

    def _merge(self, position: int) -> None:
        """Merge a piece with the one after it; the oldest needs no nulls, since nothing is below it."""
        older, newer = self._pieces[position : position + 2]
        merged = older.join(newer, on="user_id", how="anti", maintain_order="left").merge_sorted(newer, "user_id")
        self._pieces[position : position + 2] = [merged.drop_nulls() if position == 0 else merged]


def _look_up(piece: pl.DataFrame, users: pl.Series) -> tuple[pl.DataFrame, pl.Series]:
    """Return the rows of some users (ascending) in a piece, and which of the users have one."""
    if not piece.height:
        return piece, users.is_null()
    at = piece["user_id"].search_sorted(users).clip(upper_bound=piece.height - 1)
    rows = piece[at]
    is_here = rows["user_id"] == users
    return rows.filter(is_here), is_here
