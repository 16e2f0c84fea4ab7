"""Draw quality against cost, with figures shown under the pointer, in the page's own colours, light or dark."""

import html
import math
from collections.abc import Callable, Collection

import pandas as pd

from lowenergy.reporting.tables import FORMATS, HEADS, between, bounds_of, front_of, is_fid, quality_of

WIDTH, HEIGHT = 400, 250
LEFT, RIGHT, TOP, BOTTOM = 54, 14, 14, 40  # margins
LETTER = 6.0  # approximate width of one
LONGEST, MOST_NAMES = 26, 12  # letters of a name beside its point, and how many names find room


def drawing(
    rows: pd.DataFrame,
    *,
    target: str = "",
    names: bool = True,
    cost: str = "size_bytes",
    front: Collection[str] | None = None,
) -> str:
    """Draw one target's models as an SVG, with the interval of each; a line joins those worth what they cost.

    Args:
        rows: indexed by the models' names; columns size_bytes, `cost`, accuracy or fid, and `chain`, if there is one.
        target: the teacher, whose interval is shaded, and whose name is left out where a branch's name begins with it.
        names: write each model's name beside its point; where there are many, pointing at one shows it.
        cost: the column along the horizontal axis, one of COSTS.
        front: names of those worth their cost; None for front_of(rows), which goes by bytes.
    """
    names = names and len(rows) <= MOST_NAMES
    quality, sizes = quality_of(rows), rows[cost]
    axis, written = COSTS[cost]
    values = rows[quality]
    records = dict(zip(rows.index, rows.to_dict("records"), strict=True))
    bounds = {name: bounds_of(row, quality) or (row[quality],) * 2 for name, row in records.items()}
    logarithmic = is_fid(quality) and values.min() > 0 and values.max() > 8 * values.min()
    lowest = 0.5 * values.min() if logarithmic else -math.inf  # otherwise a bar could go down for ever
    bounds = {name: (max(low, lowest), high) for name, (low, high) in bounds.items()}
    least, most = min(low for low, _ in bounds.values()), max(high for _, high in bounds.values())
    across = _Scale(sizes.min(), sizes.max(), LEFT, WIDTH - RIGHT)
    up = _Scale(least, most, HEIGHT - BOTTOM, TOP, logarithmic)
    parts = [f'<svg class="front" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{quality} against {axis}">']
    if target in bounds:
        high, low = up(bounds[target][1]), up(bounds[target][0])
        top, height = min(high, low), abs(high - low)
        parts.append(
            f'<rect class="band" x="{LEFT}" y="{top:.1f}" width="{WIDTH - LEFT - RIGHT}" height="{height:.1f}"/>'
        )
    for tick in _ticks(sizes.min(), sizes.max(), True):
        x = across(tick)
        parts.append(f'<path class="rule" d="M{x:.1f} {TOP}V{HEIGHT - BOTTOM}"/>')
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 15}" text-anchor="middle">{written(tick)}</text>')
    for tick in _ticks(least, most, logarithmic):
        y = up(tick)
        if not TOP - 2 <= y <= HEIGHT - BOTTOM + 2:
            continue
        label = f"{tick:.4g}" if is_fid(quality) else f"{100 * tick:.4g}%"
        parts.append(f'<path class="rule" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{label}</text>')
    better = "lower is better" if is_fid(quality) else "higher is better"
    title = quality.replace("fid", "FID").replace(".", " ")
    parts.append(f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 6}" text-anchor="end">{axis}</text>')
    parts.append(f'<text x="4" y="{HEIGHT - 6}">{title}, {better}</text>')
    joined = front_of(rows) if front is None else rows.loc[list(front)].sort_values(cost)
    line = " ".join(f"{across(size):.1f},{up(v):.1f}" for size, v in zip(joined[cost], joined[quality], strict=True))
    parts.append(f'<polyline points="{line}"/>')
    places = {name: (across(row[cost]), up(row[quality])) for name, row in records.items()}
    taken = [(x - 6, y - 6, x + 6, y + 6) for x, y in places.values()]  # space taken by points and their bars
    taken += [(x - 1, up(max(bounds[name])), x + 1, up(min(bounds[name]))) for name, (x, _) in places.items()]
    for name, row in records.items():
        (x, y), (low, high) = places[name], (up(end) for end in bounds[name])
        kind = "on" if name in joined.index else "off"
        parts.append(f'<g class="{kind}"><title>{_told(str(name), row, quality, cost)}</title>')
        parts.append(f'<path class="bar" d="M{x:.1f} {low:.1f}V{high:.1f}"/>')
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{5 if names else 4}"/>')
        if names:
            label = _shortened(str(name).removeprefix(f"{target}-"))
            start, height = _free_place(x, y, LETTER * len(label), taken)
            taken.append((start - 14, height - 9, start + LETTER * len(label) + 14, height + 2))
            parts.append(f'<text x="{start:.1f}" y="{height:.1f}">{html.escape(label)}</text>')
        parts.append("</g>")
    return "".join([*parts, "</svg>"])


def _shortened(name: str) -> str:
    return name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…"


def _told(name: str, row: dict[str, object], quality: str, cost: str) -> str:
    """The text that is shown when pointing at a model."""
    chain = f" ({methods})" if isinstance(methods := row.get("chain"), str) and methods else ""
    figures = []
    for figure in (quality, quality.removeprefix("validation.")):
        if figure not in row:
            continue
        interval = f" ({ends})" if (ends := between(row, figure)) else ""
        figures.append(f"{HEADS.get(figure, figure)} {FORMATS[figure].format(row[figure])}{interval}")
    figures.append(f"{row['size_bytes']:,.0f} bytes")
    if cost != "size_bytes":
        axis, written = COSTS[cost]
        figures.append(f"{written(float(str(row[cost])))} {axis}")
    return html.escape(f"{name}{chain}: {', '.join(dict.fromkeys(figures))}")


Box = tuple[float, float, float, float]  # left, top, right, bottom


def _free_place(x: float, y: float, width: float, boxes: list[Box]) -> tuple[float, float]:
    """Where a point's label starts, and its baseline: near the point, within the drawing, if possible over nothing."""
    best, least = (x, y), math.inf
    for height in (y + 4, y - 8, y + 16, y - 20, y + 28, y - 32, y + 40):
        for start in (x + 9, x - width - 9, x - width / 2):
            if start < LEFT or start + width > WIDTH or not TOP < height < HEIGHT - BOTTOM:
                continue
            over = sum(
                start < right and start + width > left and height - 9 < bottom and height + 2 > top
                for left, top, right, bottom in boxes
            )
            cost = 10 * over + abs(height - y - 4) / 12 + abs(start - x - 9) / 200
            if cost < least:
                best, least = (start, height), cost
    return best


class _Scale:
    """Map values to places, with a margin of a tenth at either end."""

    def __init__(self, low: float, high: float, start: float, end: float, logarithmic: bool = True) -> None:
        self.of = math.log10 if logarithmic else float
        low, high = self.of(low), self.of(high)
        margin = 0.1 * (high - low) or 0.1
        self.low, self.high, self.start, self.end = low - margin, high + margin, start, end

    def __call__(self, value: float) -> float:
        share = (self.of(value) - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)


def _ticks(low: float, high: float, logarithmic: bool) -> list[float]:
    """A few round values between low and high."""
    if logarithmic and high > 2.5 * low:  # else a round value of each decade is too few
        steps = [m * 10.0**e for e in range(-6, 12) for m in (1, 2, 5)]
        ticks = [step for step in steps if low * 0.9 <= step <= high * 1.1]
        return ticks if len(ticks) <= 6 else [step for step in ticks if f"{step:e}"[0] == "1"] or ticks[::2]
    span = (high - low) or abs(high) or 1.0
    step = min((m * 10.0**e for e in range(-8, 9) for m in (1, 2, 5)), key=lambda s: abs(span / s - 4))
    return [step * i for i in range(math.ceil(low / step - 0.3), math.floor(high / step + 0.3) + 1)]


def _bytes(value: float) -> str:
    return _scaled(value, (" GB", " MB", " kB", " B"))


def _scaled(value: float, units: tuple[str, str, str, str] = (" billion", " million", ",000", "")) -> str:
    factor, unit = next(pair for pair in zip((1e9, 1e6, 1e3, 0.0), units, strict=True) if value >= pair[0])
    return f"{value / (factor or 1):.4g}{unit}"


COSTS: dict[str, tuple[str, Callable[[float], str]]] = {  # columns: the axis' title, and how its values are written
    "size_bytes": ("bytes on disk", _bytes),
    "macs": ("multiply-accumulates", _scaled),
    "share_of_time": ("of the teacher's time", lambda value: f"{value:.3g}"),
    "flash": ("of flash", _bytes),
    "ram": ("of RAM", _bytes),
}
