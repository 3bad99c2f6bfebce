"""Names of curves, written where there is room.

Each label may stand up-right, above, down-left or below of any point of its curve, near or further
off. Of these places it takes the cheapest: text over a curve or a leader line costs most, then a
leader line that meets text or another curve or starts close to one, then distance. Nothing else
decides, so the same figure always looks the same.
"""

from collections.abc import Sequence
from itertools import product
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D

__all__ = ["label_curves"]

RADII = (7, 11, 20, 36, 56, 80, 110)  # points; from the third on with a leader line
DIRECTIONS = ((1, 0.8), (-1, -0.8), (0, 1), (0, -1), (0.5, 1), (-0.5, -1), (1, 0.3), (-1, -0.3))


def label_curves(
    ax: "Axes", lines: "Sequence[Line2D]", clear: "Sequence[Line2D]" = (), **text: Any
) -> None:
    """Writes the label of each line beside it, in its colour; axis limits must be final.

    Args:
        ax: the axes of the lines.
        lines: to name, and to keep clear of. One that cannot be seen gets no name.
        clear: further lines to keep clear of.
        text: passed to `annotate`.
    """
    paths = {line: path for line in [*lines, *clear] if len(path := _dense(ax, line))}
    taken = [np.array(t.get_window_extent().extents) for t in ax.texts if t.get_text()]
    leaders = np.empty((0, 2))
    # Upper curves first: they have the free space above to themselves.
    visible = [line for line in lines if line in paths]
    for line in sorted(visible, key=lambda line: -float(paths[line][:, 1].max())):
        others = [path for other, path in paths.items() if other is not line]
        others = np.concatenate([*others, leaders])
        place = _place(ax, line, paths[line], others, taken, text)
        _write(ax, line, place, text)
        taken.append(place.box)
        leaders = np.concatenate([leaders, place.leader])


class Place(NamedTuple):
    """Where a label may stand, in pixels."""

    anchor: np.ndarray
    """(2,) on the curve."""
    corner: np.ndarray
    """(2,) middle of the side of the text that is turned to the curve, or of the text."""
    box: np.ndarray
    """(4,) x0, y0, x1, y1 of the text."""
    radius: float
    """Points from anchor to corner, roughly."""

    @property
    def leader(self) -> np.ndarray:
        """(points, 2) along the line from curve to text, 4 apart; none at small distances."""
        if self.radius <= RADII[1]:
            return np.empty((0, 2))
        pieces = int(np.hypot(*(self.corner - self.anchor)) / 4)
        return np.linspace(self.anchor, self.corner, pieces + 2)[1:]


def _place(
    ax: "Axes", line: "Line2D", path: np.ndarray, others: np.ndarray, taken: list, text: dict
) -> Place:
    """The cheapest place for the label of one line."""
    pixels = ax.figure.dpi / 72
    probe = ax.text(0, 0, str(line.get_label()), **text)
    size = np.array(probe.get_window_extent().size)
    probe.remove()
    frame = ax.get_window_extent().extents
    every = np.concatenate([others, path])

    def cost(place: Place) -> float:
        box, leader = place.box, place.leader
        outside = (box[:2] < frame[:2]).any() or (box[2:] > frame[2:]).any()
        return (
            1e4 * bool(outside or any(_overlap(box, other) for other in taken))
            + 20 * _inside(every, box, 3 * pixels)
            + 6 * _near(leader, others, 2 * pixels)
            + 20 * sum(_inside(leader, other, 0) for other in taken)
            + 12 * _near(place.anchor[None], others, 6 * pixels)
            + 0.3 * place.radius
        )

    best, cheapest = None, np.inf
    for radius, anchor, direction in product(RADII, path[::6], DIRECTIONS):
        if best and 0.3 * radius >= cheapest:
            break  # from here on the distance alone costs more
        corner = anchor + pixels * radius * np.array(direction)
        x0 = corner[0] - size[0] * (1 - np.sign(direction[0])) / 2
        y0 = corner[1] - size[1] / 2
        place = Place(anchor, corner, np.array([x0, y0, x0 + size[0], y0 + size[1]]), radius)
        if (price := cost(place)) < cheapest:
            best, cheapest = place, price
    assert best is not None  # a visible path has at least one place
    return best


def _write(ax: "Axes", line: "Line2D", place: Place, text: dict) -> None:
    to_data = ax.transData.inverted().transform
    x0, _, x1, _ = place.box
    align = "left" if place.corner[0] == x0 else "right" if place.corner[0] == x1 else "center"
    leader = {"arrowstyle": "-", "color": line.get_color(), "lw": 0.7, "shrinkA": 1, "shrinkB": 3}
    ax.annotate(
        str(line.get_label()), tuple(to_data(place.anchor)), xytext=tuple(to_data(place.corner)),
        ha=align, va="center", color=line.get_color(),
        arrowprops=leader if len(place.leader) else None,
        zorder=4, **text,
    )  # fmt: skip


def _dense(ax: "Axes", line: "Line2D") -> np.ndarray:
    """(points, 2) pixels along the visible part of a line, about 4 apart."""
    corners = line.get_transform().transform(line.get_xydata())
    steps = np.hypot(*np.diff(corners, axis=0).T)
    at = np.concatenate([[0.0], np.cumsum(steps)])
    even = np.linspace(0, at[-1], max(2, int(at[-1] / 4)))
    points = np.column_stack([np.interp(even, at, corners[:, i]) for i in (0, 1)])
    x0, y0, x1, y1 = ax.get_window_extent().extents
    x, y = points.T
    return points[(x >= x0) & (x <= x1) & (y >= y0) & (y <= y1)]


def _inside(points: np.ndarray, box: np.ndarray, margin: float) -> int:
    low, high = box[:2] - margin, box[2:] + margin
    return int(((points >= low) & (points <= high)).all(1).sum())


def _near(leader: np.ndarray, points: np.ndarray, margin: float) -> int:
    gaps = np.abs(leader[:, None] - points[None]).max(-1)
    return int((gaps < margin).any(1).sum())


def _overlap(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two boxes come closer than 4 pixels."""
    return bool((a[:2] < b[2:] + 4).all() and (b[:2] < a[2:] + 4).all())
