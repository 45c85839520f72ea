"""What suits a card of each size, from the files of cards/: a start, and no measured optimum."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[3] / "cards"
NO_CARD = "none"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Card:
    """gigabytes: that a run must fit into, the model included. rank: of the LoRA. most_side: of square pictures, in pixels."""

    gigabytes: float
    rank: int
    batch_size: int
    most_side: int

    @classmethod
    def read(cls, file: Path) -> Card:
        """ValueError, naming the file, unless it is a JSON object of the four numbers, all above 0."""
        wanted = {field.name for field in dataclasses.fields(cls)}
        try:
            found: Any = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{file} is no JSON file: {error}") from error
        if not isinstance(found, dict) or found.keys() != wanted or not all(_is_count(one) for one in found.values()):
            raise ValueError(
                f"{file} holds {found!r}; it must hold {', '.join(sorted(wanted))}, each a number above 0."
            )
        return cls(**found)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def cards(folder: Path = FOLDER) -> dict[str, Card]:
    """By the name that a menu shows, the smallest first."""
    found = sorted((Card.read(file) for file in folder.glob("*.json")), key=lambda card: card.gigabytes)
    return {f"{card.gigabytes:g} GB card": card for card in found}
