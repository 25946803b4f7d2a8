"""A report as one self-contained HTML file: no script, and nothing is loaded from elsewhere. Without I/O."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

from notify.chaos.plot import timeline
from notify.chaos.report import Report, figures, seconds, sentence

_SHOWN = 200
#: the figures that are 0 if the promise held
_PROMISED = ("lost", "doubled", "out of order", "foreign")

_STYLE = """
:root { color-scheme: light dark; --ground: #fff; --text: #1c1e21; --pale: #667; --line: #dde0e4; --held: #12733a;
  --broken: #b3202c; --unproven: #8a5a00; --series: #1f5fbf; --area: #1f5fbf33; --worst: #1f5fbf66; --fault: #d9822b55;
  --after: #d9822b22; }
@media (prefers-color-scheme: dark) { :root { --ground: #15171a; --text: #e6e8ea; --pale: #9aa3ad; --line: #32373d;
  --held: #5fcf8c; --broken: #ff7b83; --unproven: #e8b04a; --series: #7db0ff; --area: #7db0ff33; --worst: #7db0ff77;
  --fault: #e8963c66; --after: #e8963c2a; } }
body { margin: 0 auto; max-width: 62rem; padding: 2rem 1.25rem 4rem; background: var(--ground); color: var(--text);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1rem; font-weight: 600; color: var(--pale); margin: 0; }
h2 { font-size: 1.1rem; margin: 2.5rem 0 .5rem; }
.verdict { font-size: 1.45rem; line-height: 1.35; font-weight: 650; margin: .25rem 0 .5rem; }
.held { color: var(--held); } .broken { color: var(--broken); } .unproven { color: var(--unproven); }
.about, figcaption, .none { color: var(--pale); margin: 0; }
dl { display: grid; grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr)); gap: .75rem 1.5rem; margin: 1.5rem 0 0; }
dt { color: var(--pale); font-size: .85rem; } dd { margin: 0; font-size: 1.15rem; font-variant-numeric: tabular-nums; }
dd small { display: block; color: var(--pale); font-size: .8rem; }
figure { margin: 0; overflow-x: auto; } svg { width: 100%; min-width: 40rem; height: auto; display: block; }
svg text { font: 12px system-ui, sans-serif; fill: var(--pale); } svg .title { fill: var(--text); font-size: 13px; }
svg .number { fill: var(--text); font-weight: 600; } .grid { stroke: var(--line); }
.acknowledged { fill: none; stroke: var(--text); stroke-width: 1; stroke-dasharray: 4 3; }
.median, .connected { fill: none; stroke: var(--series); stroke-width: 1.75; } .worst { stroke: var(--worst); stroke-width: 2; }
.area { fill: var(--area); stroke: var(--series); stroke-width: 1; } .fault { fill: var(--fault); } .after { fill: var(--after); }
.wrong { stroke: var(--broken); stroke-width: 2.5; fill: none; }
.key { display: inline-block; width: .8em; height: .8em; margin-right: .3em; vertical-align: -.05em; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; width: 100%; font-size: .92rem; }
th { text-align: left; font-weight: 600; color: var(--pale); } td, th { padding: .35rem .75rem .35rem 0; border-bottom: 1px solid var(--line);
  vertical-align: top; } td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
code { font: .9em ui-monospace, monospace; } td code { display: block; min-width: 16rem; white-space: pre-wrap; overflow-wrap: anywhere; }
.error { color: var(--broken); }
"""


def page(report: Report) -> str:
    """The text of the whole file."""
    verdict = report.verdict
    body = [
        "<h1>notify chaos</h1>",
        f'<p class="verdict {verdict}">{escape(sentence(report))}</p>',
        f'<p class="about">{escape(_about(report))}</p>',
        _doubts(report) if verdict == "broken" else "",
        f"<dl>{''.join(map(_figure, figures(report)))}</dl>",
        f"<h2>What happened when</h2><figure>{timeline(report)}<figcaption>{_key(report)}</figcaption></figure>",
        _faults(report),
        _wrongs(report),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>notify chaos: {verdict}</title><style>{_STYLE}</style></head>\n<body>\n{''.join(body)}\n</body></html>\n"
    )


def _about(report: Report) -> str:
    seed = "" if report.seed is None else f" The faults are those of --seed {report.seed}."
    return (
        f"{report.target}. {report.clients} clients, {report.topics} topics, {report.seconds:g} s of load, "
        f"then {max(0.0, report.ended - report.seconds):.1f} s to catch up.{seed}"
    )


def _figure(figure: tuple[str, str]) -> str:
    """A large number with its caption in small text."""
    name, value = figure
    number, _, more = value.partition(" ")
    colour = ' class="broken"' if name in _PROMISED and number != "0" else ""
    small = f"<small>{escape(more.strip(' ()'))}</small>" if more.strip() else ""
    return f"<div><dt>{escape(name)}</dt><dd{colour}>{escape(number.rstrip(','))}{small}</dd></div>"


def _doubts(report: Report) -> str:
    return "".join(f'<p class="about">Also, {escape(doubt)}.</p>' for doubt in report.doubts)


def _key(report: Report) -> str:
    keys = '<span class="key" style="background:var(--fault)"></span>a fault, with its number below; '
    keys += '<span class="key" style="background:var(--after)"></span>until every client had caught up'
    if report.wrongs:
        keys += '; <span class="broken">✕</span> where the promise broke'
    return keys


def _table(head: Iterable[tuple[str, str]], rows: Iterable[Iterable[tuple[str, str]]]) -> str:
    """A table of cells, each with its CSS class; their text is already HTML."""
    columns = "".join(f'<th class="{name}">{text}</th>' for name, text in head)
    lines = "".join(
        "<tr>" + "".join(f'<td class="{name}">{text}</td>' for name, text in row) + "</tr>" for row in rows
    )
    return f'<div class="scroll"><table><tr>{columns}</tr>{lines}</table></div>'


def _faults(report: Report) -> str:
    if not report.faults:
        return '<h2>Faults</h2><p class="none">None.</p>'
    head = [("n", "#"), ("", "fault"), ("n", "clients hit"), ("n", "noticed after"), ("n", "caught up after")]
    rows = (
        [
            ("n", str(number)),
            ("", f"<code>{escape(row.fault)}</code>" + _error(row.error)),
            ("n", str(row.hit)),
            ("n", seconds(row.noticed, "&ndash;")),
            ("n", seconds(row.caught_up, "never")),
        ]
        for number, row in enumerate(report.faults, 1)
    )
    return f"<h2>Faults</h2>{_table(head, rows)}"


def _error(text: str) -> str:
    return f'<br><span class="error">{escape(text)}</span>' if text else ""


def _wrongs(report: Report) -> str:
    if not report.wrongs:
        return ""
    head = [("", "what"), ("n", "at"), ("", "client"), ("", "topic"), ("n", "number")]
    rows = (
        [
            ("", wrong.what),
            ("n", f"{wrong.at:.2f} s"),
            ("", escape(wrong.client)),
            ("", f"<code>{escape(wrong.topic)}</code>"),
            ("n", str(wrong.number)),
        ]
        for wrong in report.wrongs[:_SHOWN]
    )
    more = len(report.wrongs) - _SHOWN
    rest = f'<p class="none">And {more} more.</p>' if more > 0 else ""
    return f"<h2>Where the promise broke</h2>{_table(head, rows)}{rest}"
