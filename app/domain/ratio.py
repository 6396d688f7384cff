"""Rates as exact fractions, and the whole percent that people see: cut, not rounded (ruling 5, R10)."""

from msgspec import Struct


class Ratio(Struct, frozen=True):
    """`part` of `whole`: 2 of 3."""

    part: int
    whole: int

    @property
    def percent(self) -> int | None:
        """66 for 2 of 3; None if `whole` is 0."""
        return None if self.whole == 0 else self.part * 100 // self.whole
