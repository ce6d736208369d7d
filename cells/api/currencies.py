"""Which currencies payments may be in, for who may not know the actors. Nothing is defined here."""

from actors.money import is_chargeable

__all__ = ["is_chargeable"]
