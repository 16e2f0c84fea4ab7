"""Quality against bytes as one drawing that answers a pointer, in the page's own colours, light or dark."""

import html
import math

import pandas as pd

from lowenergy.reporting.tables import FORMATS, front_of, is_fid, quality_of

WIDTH, HEIGHT = 400, 250
LEFT, RIGHT, TOP, BOTTOM = 54, 14, 14, 40  # margins


def drawing(rows: pd.DataFrame, *, names: bool = True) -> str:
    """An SVG of one target's models; those that no smaller one matches are joined by a line.

    Args:
        rows: by the name to call each model by; columns size_bytes and accuracy or fid.
        names: write each model's beside its point; of many, pointing at one tells.
    """
    quality, sizes = quality_of(rows), rows["size_bytes"]
    values = rows[quality]
    across = _Scale(sizes.min(), sizes.max(), LEFT, WIDTH - RIGHT)
    logarithmic = is_fid(quality) and values.min() > 0 and values.max() > 8 * values.min()
    up = _Scale(values.min(), values.max(), HEIGHT - BOTTOM, TOP, logarithmic)
    parts = [f'<svg class="front" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{quality} against bytes">']
    for tick in _ticks(sizes.min(), sizes.max(), True):
        x = across(tick)
        parts.append(f'<path class="rule" d="M{x:.1f} {TOP}V{HEIGHT - BOTTOM}"/>')
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 15}" text-anchor="middle">{_bytes(tick)}</text>')
    for tick in _ticks(values.min(), values.max(), logarithmic):
        y = up(tick)
        label = f"{tick:.4g}" if is_fid(quality) else f"{100 * tick:.4g}%"
        parts.append(f'<path class="rule" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{label}</text>')
    better = "lower is better" if is_fid(quality) else "higher is better"
    name = quality.replace("fid", "FID").replace(".", " ")
    parts.append(f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 6}" text-anchor="end">bytes on disk</text>')
    parts.append(f'<text x="4" y="{HEIGHT - 6}">{name}, {better}</text>')
    front = front_of(rows)
    line = " ".join(
        f"{across(size):.1f},{up(v):.1f}" for size, v in zip(front["size_bytes"], front[quality], strict=True)
    )
    parts.append(f'<polyline points="{line}"/>')
    tested = quality.removeprefix("validation.")
    taken: list[tuple[float, float]] = []
    for branch, row in rows.iterrows():
        x, y = across(row["size_bytes"]), up(row[quality])
        told = FORMATS[quality].format(row[quality])
        if tested != quality and tested in rows:
            told += f", test {FORMATS[tested].format(row[tested])}"
        text = html.escape(f"{branch}: {told}, {row['size_bytes']:,.0f} bytes")
        on = "on" if branch in front.index else "off"
        parts.append(
            f'<g class="{on}"><title>{text}</title><circle cx="{x:.1f}" cy="{y:.1f}" r="{5 if names else 4}"/>'
        )
        if names:
            anchor, dx = ("end", -4) if x > WIDTH * 0.7 else ("start", 4)
            y -= 12  # above the point, clear of the line
            while any(abs(y - b) < 12 and abs(x - a) < 70 for a, b in taken):
                y += 24 if y < TOP + 12 else -12
            taken.append((x, y))
            name = html.escape(str(branch))
            parts.append(f'<text x="{x + dx:.1f}" y="{y + 4:.1f}" text-anchor="{anchor}">{name}</text>')
        parts.append("</g>")
    return "".join([*parts, "</svg>"])


class _Scale:
    """From values to places, with a margin of a tenth at either end."""

    def __init__(self, low: float, high: float, start: float, end: float, logarithmic: bool = True) -> None:
        self.of = math.log10 if logarithmic else float
        low, high = self.of(low), self.of(high)
        margin = 0.1 * (high - low) or 0.1
        self.low, self.high, self.start, self.end = low - margin, high + margin, start, end

    def __call__(self, value: float) -> float:
        share = (self.of(value) - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)


def _ticks(low: float, high: float, logarithmic: bool) -> list[float]:
    """Three to six round values between."""
    if logarithmic:
        steps = [m * 10.0**e for e in range(-6, 12) for m in (1, 2, 5)]
        found = [step for step in steps if low * 0.9 <= step <= high * 1.1]
        return found if len(found) <= 6 else [step for step in found if f"{step:e}"[0] == "1"] or found[::2]
    span = (high - low) or abs(high) or 1.0
    step = min((m * 10.0**e for e in range(-8, 9) for m in (1, 2, 5)), key=lambda s: abs(span / s - 4))
    return [step * i for i in range(math.ceil(low / step - 0.3), math.floor(high / step + 0.3) + 1)]


def _bytes(value: float) -> str:
    for factor, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if value >= factor:
            return f"{value / factor:g} {unit}"
    return f"{value:g} B"
