"""What an acquirer may keep of a money movement, as it was agreed. What it did keep stands in its settlement files."""

from dataclasses import dataclass

from actors.money import MINOR_UNIT_DIGITS


@dataclass(frozen=True, slots=True)
class FeeSchedule:
    """A part in hundredths of a percent, rounded half up, and a fixed part in minor units.

    `fixed[n]` is for currencies with n decimals (ISO 4217 has 0 to 4), so that it is worth something alike in all.
    """

    basis_points: int = 150
    fixed: tuple[int, ...] = (25, 25, 25, 250, 2_500)
    refund_basis_points: int = 0
    refund_fixed: tuple[int, ...] = (0, 0, 0, 0, 0)

    def agreed(self, amount: int, currency: str, *, refund: bool) -> int:
        """Give the fee of a purchase or capture, or of a refund, of `amount` (not negative), in minor units."""
        digits = MINOR_UNIT_DIGITS[currency]
        if refund:
            return (amount * self.refund_basis_points + 5_000) // 10_000 + self.refund_fixed[digits]
        return (amount * self.basis_points + 5_000) // 10_000 + self.fixed[digits]
