"""What the tables on Llama share: typed columns, and where groups of rows begin."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd


def typed_frame(rows: Sequence[dict[str, Any]], whole: Sequence[str]) -> pd.DataFrame:
    """Rows as a frame: names as they are, the columns ``whole`` as integers, the others as floats,
    blanks allowed."""
    import pandas as pd

    frame = pd.DataFrame(rows)
    text = ("tier", "task", "name", "model", "method", "title")
    for column in frame.columns:
        if column in whole or column == "seeds":
            frame[column] = frame[column].astype("Float64").astype("Int64")
        elif column not in text:
            frame[column] = frame[column].astype("Float64")
    return frame


def group_starts(keys: Sequence[object]) -> tuple[int, ...]:
    """Places, after the first, where the key is another than at the place before."""
    return tuple(i for i in range(1, len(keys)) if keys[i] != keys[i - 1])
