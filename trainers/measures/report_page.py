"""A report as one HTML page: the table, and the models' pictures of the same noise side by side, and nothing from elsewhere."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from .report import COLUMNS, Drawn, Figures

_STYLE = """
:root { color-scheme: light dark; font: 15px/1.5 system-ui, sans-serif; }
body { margin: 2rem; }
table { border-collapse: collapse; margin: 1rem 0; }
th, td { padding: .3rem .8rem; border-bottom: 1px solid #8885; text-align: right; }
th:first-child, td:first-child { text-align: left; }
.pictures { overflow-x: auto; }
.pictures td, .pictures th { text-align: left; vertical-align: top; padding: .2rem; border: 0; }
.pictures img { width: 16rem; image-rendering: auto; display: block; }
"""


def page(
    figures: Sequence[Figures],
    drawn: Sequence[Drawn],
    *,
    title: str,
    prompts: Sequence[str],
    seeds: Sequence[int],
    files: Mapping[tuple[int, int, int], str],
    notes: Iterable[str],
) -> str:
    """files: the address of each picture, relative to the page, by the numbers of model, prompt and seed."""
    parts = [
        f"<h1>{escape(title)}</h1>",
        _table(list(COLUMNS), ([show(one) for show in COLUMNS.values()] for one in figures)),
        *(f"<p>{escape(note)}</p>" for note in notes),
        "<p>PSNR, LPIPS: to the first model's picture of the same prompt and noise. Diversity: the root mean squared difference "
        "of a prompt's pictures from different seeds. A picture opens in full size when it is clicked.</p>",
        "<h2>Pictures</h2>",
        _pictures(drawn, prompts=prompts, seeds=seeds, files=files),
        "<h2>Settings that differ</h2>",
        _settings(drawn),
    ]
    head = f'<meta charset="utf-8"><title>{escape(title)}</title><style>{_STYLE}</style>'
    return f'<!doctype html>\n<html lang="en"><head>{head}</head><body>\n' + "\n".join(parts) + "\n</body></html>\n"


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    head = "".join(f'<th scope="col">{escape(heading)}</th>' for heading in headings)
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _pictures(
    drawn: Sequence[Drawn], *, prompts: Sequence[str], seeds: Sequence[int], files: Mapping[tuple[int, int, int], str]
) -> str:
    head = "".join(f'<th scope="col">{escape(one.name)}</th>' for one in drawn)
    rows = []
    for p, prompt in enumerate(prompts):
        rows.append(f'<tr><th colspan="{len(drawn)}" scope="rowgroup">{escape(prompt)}</th></tr>')
        for s, seed in enumerate(seeds):
            cells = (_picture(files[m, p, s], f"{one.name}, {prompt}, seed {seed}") for m, one in enumerate(drawn))
            rows.append(f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>")
    return f'<div class="pictures"><table><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'


def _picture(address: str, words: str) -> str:
    address = escape(address, quote=True)
    return f'<a href="{address}"><img src="{address}" alt="{escape(words, quote=True)}" loading="lazy"></a>'


def _settings(drawn: Sequence[Drawn]) -> str:
    names = sorted({name for one in drawn for name in one.settings})
    differing = [name for name in names if len({_said(one, name) for one in drawn if one.settings}) > 1]
    if not differing:
        return "<p>None, or there is one model alone that has any.</p>"
    rows = ([name, *(_said(one, name) for one in drawn)] for name in differing)
    return _table(["setting", *(one.name for one in drawn)], rows)


def _said(one: Drawn, name: str) -> str:
    value: Any = one.settings.get(name, "")
    return value if isinstance(value, str) else json.dumps(value)
