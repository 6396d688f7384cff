"""Rates as exact fractions, and the whole percent that people are shown: cut, not rounded (`docs/rules.md`, ruling 5, R10)."""

from msgspec import Struct


class Share(Struct, frozen=True):
    """`part` of `whole`: 2 of 3."""

    part: int
    whole: int

    @property
    def percent(self) -> int | None:
        """66 for 2 of 3; None where there is nothing to have a part of."""
        return None if self.whole == 0 else self.part * 100 // self.whole
