"""The bulkheads' names, for those who may not know the actors; what each is stands in `actors.bulkheads`."""

from actors.bulkheads import ALL_ON, Bulkhead

__all__ = ["ALL_ON", "Bulkhead"]
