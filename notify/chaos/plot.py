"""The timeline of a report as SVG for an HTML page, whose CSS variables provide the colours. Without I/O."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from html import escape

from notify.chaos.report import FaultRow, Report

_WIDTH, _LEFT, _RIGHT = 960, 58, 12
_PLOT, _GAP, _TOP, _BOTTOM = 150, 44, 64, 34
#: where the bands of the faults begin, below two lines of numbers
_BANDS = 30
#: the scale of latencies, in seconds
_LEAST, _LINES = (
    0.001,
    ((0.001, "1 ms"), (0.01, "10 ms"), (0.1, "100 ms"), (1.0, "1 s"), (10.0, "10 s"), (100.0, "100 s")),
)

Points = Sequence[tuple[float, float]]


def timeline(report: Report) -> str:
    """Latency, deliveries per second and connections over one time axis, with the faults marked across all three."""
    height = _TOP + 3 * _PLOT + 2 * _GAP + _BOTTOM
    end = max(report.ended, 0.1)

    def x(at: float) -> float:
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * min(max(at, 0.0), end) / end

    tops = [_TOP + index * (_PLOT + _GAP) for index in range(3)]
    inner = [
        *_faults(report.faults, x, height),
        *_latency(report, x, tops[0]),
        *_rates(report, x, tops[1]),
        *_connections(report, x, tops[2]),
        *_wrongs(report, x, tops[0]),
        *_time(end, x, height),
    ]
    return (
        f'<svg viewBox="0 0 {_WIDTH} {height}" role="img" xmlns="http://www.w3.org/2000/svg">'
        f"<title>Deliveries over the time of the run</title>{''.join(inner)}</svg>"
    )


def _faults(rows: Sequence[FaultRow], x: Callable[[float], float], height: int) -> Iterator[str]:
    """A band from each fault to its end, a paler one until all clients had caught up, and the fault's number above.

    Numbers that would overlap alternate between two lines.
    """
    last = [-100.0, -100.0]
    for number, row in enumerate(rows, 1):
        begin, healed = x(row.at), x(row.healed)
        whole = x(row.healed + (row.caught_up or 0.0))
        high = height - _BOTTOM - _BANDS
        yield f"<g><title>{escape(row.fault)}</title>"
        yield _box("fault", begin, _BANDS, max(healed - begin, 1.5), high)
        if whole - healed >= 0.5:
            yield _box("after", healed, _BANDS, whole - healed, high)
        line = 0 if begin - last[0] >= 18 else 1
        last[line] = begin
        yield f'<text class="number" x="{begin:.1f}" y="{_BANDS - 5 - 12 * line}">{number}</text></g>'


def _latency(report: Report, x: Callable[[float], float], top: int) -> Iterator[str]:
    most = max((one.worst for one in report.slices), default=0.0)
    decades = max(3, math.ceil(math.log10(max(most, _LEAST) / _LEAST)))

    def y(value: float) -> float:
        return top + _PLOT * (1 - math.log10(max(value, _LEAST) / _LEAST) / decades)

    lines = [(y(value), label) for value, label in _LINES[: decades + 1]]
    yield from _frame(top, "from sending to the client's program, worst and median", lines)
    for one in report.slices:
        if one.delivered:
            yield f'<line class="worst" x1="{x(one.at):.1f}" x2="{x(one.at):.1f}" y1="{y(one.median):.1f}" y2="{y(one.worst):.1f}"/>'
    yield from _runs("median", ((x(one.at), y(one.median), bool(one.delivered)) for one in report.slices))


def _rates(report: Report, x: Callable[[float], float], top: int) -> Iterator[str]:
    slices = report.slices
    length = slices[1].at - slices[0].at if len(slices) > 1 else max(report.ended, 0.1)
    most = _ceiling(max((one.delivered / length for one in slices), default=1.0))

    def y(value: float) -> float:
        return top + _PLOT * (1 - value / most)

    lines = [(y(most * part), f"{most * part:,.0f}") for part in (0.0, 0.5, 1.0)]
    yield from _frame(top, "deliveries a second, and messages acknowledged (dashed)", lines)
    points = [(x(one.at), y(one.delivered / length)) for one in slices]
    if points:
        corners = [(points[0][0], top + _PLOT), *points, (points[-1][0], top + _PLOT)]
        yield f'<polygon class="area" points="{_points(corners)}"/>'
        sent = [(x(one.at), y(min(one.acknowledged / length, most))) for one in slices]
        yield f'<polyline class="acknowledged" points="{_points(sent)}"/>'


def _connections(report: Report, x: Callable[[float], float], top: int) -> Iterator[str]:
    most = max(report.clients, 1)

    def y(value: float) -> float:
        return top + _PLOT * (1 - min(max(value, 0), most) / most)

    yield from _frame(top, "clients connected", [(y(0), "0"), (y(most), f"{most}")])
    steps: list[tuple[float, float]] = []
    for one in report.slices:
        if steps:
            steps.append((x(one.at), steps[-1][1]))
        steps.append((x(one.at), y(one.connected)))
    if steps:
        yield f'<polyline class="connected" points="{_points(steps)}"/>'


def _wrongs(report: Report, x: Callable[[float], float], top: int) -> Iterator[str]:
    """One mark per point in time, not one per message: a thousand may be lost at once."""
    for place in sorted({round(x(wrong.at)) for wrong in report.wrongs}):
        yield f'<path class="wrong" d="M{place - 4} {top + 2}l8 8m0 -8l-8 8"/>'


def _time(end: float, x: Callable[[float], float], height: int) -> Iterator[str]:
    step = next((step for step in (1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200) if end / step <= 12), 3600)
    for index in range(int(end / step) + 1):
        at = index * step
        yield f'<text class="tick" x="{x(at):.1f}" y="{height - _BOTTOM + 18}" text-anchor="middle">{at} s</text>'


def _frame(top: int, title: str, lines: Iterable[tuple[float, str]]) -> Iterator[str]:
    yield f'<text class="title" x="{_LEFT}" y="{top - 10}">{escape(title)}</text>'
    for y, label in lines:
        yield f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        yield f'<text class="tick" x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{label}</text>'


def _runs(name: str, points: Iterable[tuple[float, float, bool]]) -> Iterator[str]:
    """A line through neighbouring points that exist; it is interrupted at missing ones."""
    run: list[tuple[float, float]] = []
    for x, y, there in [*points, (0.0, 0.0, False)]:
        if there:
            run.append((x, y))
        elif run:
            yield f'<polyline class="{name}" points="{_points(run)}"/>'
            run = []


def _box(name: str, x: float, y: float, width: float, height: float) -> str:
    return f'<rect class="{name}" x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"/>'


def _points(points: Points) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)


def _ceiling(value: float) -> float:
    """A round number that is slightly higher."""
    power = 10.0 ** math.floor(math.log10(max(value, 1.0)))
    return next(step * power for step in (1, 1.5, 2, 3, 4, 5, 6, 8, 10) if value <= step * power)
