"""Orders of pipeline work from a file.

The format is PyTorch's compute-only CSV. It has one row for each rank. Each cell has an action, or
nothing where the rank waits. `0F3` is the forward pass of stage 0 on microbatch 3. `B` is a
backward pass. `I` (gradients of inputs) and `W` (gradients of weights) may replace it in two parts.
`(0F4;7B0)OVERLAP_F_B` runs two actions at once.
"""

import csv
from os import PathLike
from typing import TYPE_CHECKING

from nanigpt.problems import refuse

if TYPE_CHECKING:
    from torch.distributed.pipelining.schedules import _Action as Action


def read_csv(path: str | PathLike[str]) -> "list[list[Action]]":
    """Read the actions of each rank, in order and without the waits.

    Raises:
        ComponentError: The file cannot be read, or a cell is not an action.
    """
    try:
        with open(path, encoding="utf-8", newline="") as file:
            rows = list(csv.reader(file, strict=True))
    except OSError as error:
        refuse("csv", str(path), f"a file that can be read ({error.strerror})")
    except UnicodeDecodeError:
        refuse("csv", str(path), "text in UTF-8, a compute-only CSV of actions")
    except csv.Error as error:
        refuse("csv", str(path), f"a CSV file ({error})")
    return [
        [_action(cell, path, f"row {i}, cell {j}") for j, cell in enumerate(row, 1) if cell.strip()]
        for i, row in enumerate(rows, 1)
    ]


def _action(cell: str, path: str | PathLike[str], where: str) -> "Action":
    from torch.distributed.pipelining.schedules import _Action

    text = "".join(cell.split())
    try:
        action = _Action.from_str(text)
        # The parser accepts any text that begins with an action.
        valid = str(action) == text
    except (RuntimeError, ValueError):  # ValueError: a number with thousands of digits
        valid = False
    if valid and action.sub_actions:
        valid = action.computation_type.value == "OVERLAP_F_B"
    if not valid or any(
        part.computation_type.value not in tuple("FBIW") or part.microbatch_index is None
        for part in action.sub_actions or (action,)
    ):
        refuse(
            "csv",
            str(path),
            "actions: a stage, F, B, I or W, and a microbatch, such as 0F3, or two at once, "
            f"such as (0F4;7B0)OVERLAP_F_B; not {cell.strip()!r} in {where}",
        )
    return action
