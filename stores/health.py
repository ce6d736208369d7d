"""What a place of books tells about itself, for dashboards: numbers under names, none of them needed to serve."""

from collections.abc import Mapping
from typing import NamedTuple


class Sample(NamedTuple):
    """One number of now. Samples of one name say the same under `meaning` and have the same labels."""

    name: str
    meaning: str
    value: float
    labels: Mapping[str, str] = {}
