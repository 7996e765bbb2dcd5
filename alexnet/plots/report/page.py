"""The page report.html: one file with its style, curves and images, which needs no network."""

import time
from html import escape
from pathlib import Path

from alexnet.plots.records import read_run
from alexnet.plots.report.history import History
from alexnet.plots.report.sections import Subject, sections

STYLE = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1120px; padding: 20px 16px 60px; background: #fff; color: #1d2733;
       font: 15px/1.5 system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; }
h1 { font-size: 24px; line-height: 1.25; margin: 0 0 4px; overflow-wrap: anywhere; }
h2 { font-size: 18px; margin: 36px 0 8px; border-bottom: 1px solid #d9dfe6; padding-bottom: 4px; }
p { margin: 6px 0 10px; max-width: 78ch; }
.quiet { color: #5a6876; }
code, pre { font: 13px/1.5 ui-monospace, "DejaVu Sans Mono", monospace; }
pre { background: #f4f6f8; padding: 10px 12px; border-radius: 6px; overflow-x: auto; margin: 8px 0; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(140px, 1fr)); gap: 10px; margin: 16px 0 0; }
.tile { background: #f4f6f8; border-radius: 6px; padding: 8px 12px; }
.tile b { display: block; font-size: 21px; line-height: 1.3; }
.tile span { color: #5a6876; font-size: 13px; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 440px), 1fr)); gap: 16px 28px; }
figure { margin: 0; min-width: 0; }
figcaption { font-weight: 600; font-size: 14px; }
svg { width: 100%; height: auto; display: block; }
svg text { font-size: 12px; fill: #5a6876; }
.grid { stroke: #e6eaee; fill: none; }
.drop { stroke: #8a94a0; stroke-dasharray: 4 3; fill: none; }
.curve { fill: none; stroke-width: 2; }
.training { stroke: #8a9bb0; } .top1 { stroke: #b8391f; } .top5 { stroke: #2f6fa8; stroke-dasharray: 7 3; }
.chance { stroke: #5a6876; stroke-dasharray: 2 4; stroke-width: 1.5; }
circle.top1 { fill: #b8391f; } circle.top5 { fill: #2f6fa8; }
.legend { font-size: 13px; color: #3d4955; }
.key { margin-right: 14px; white-space: nowrap; }
.key::before { content: ""; display: inline-block; width: 20px; height: 0; margin-right: 5px; vertical-align: middle;
               border-top: 3px solid #8a9bb0; }
.key.top1::before { border-color: #b8391f; } .key.top5::before { border-color: #2f6fa8; border-top-style: dashed; }
.key.chance::before { border-color: #5a6876; border-top: 2px dotted #5a6876; }
.split { display: flex; height: 26px; border-radius: 5px; overflow: hidden; margin: 10px 0 8px; }
.calc { background: #2f6fa8; } .sync { background: #6d4c9f; } .comm { background: #e0a030; }
.wait { background: #c8452f; } .other { background: #9aa4ae; }
.swatch { display: inline-block; width: 12px; height: 12px; margin-right: 6px; border-radius: 2px; }
table { border-collapse: collapse; font-size: 14px; }
td, th { padding: 3px 12px 3px 0; text-align: left; vertical-align: top; }
td:first-child { white-space: nowrap; }
.wide { overflow-x: auto; }
.settings td { overflow-wrap: anywhere; }
.filters { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 320px), 1fr)); gap: 16px; }
h3 { font-size: 15px; margin: 16px 0 6px; }
.filters img { width: 100%; height: auto; image-rendering: pixelated; display: block; margin-top: 4px; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 300px), 1fr)); gap: 12px; }
.card { border: 2px solid; border-radius: 6px; padding: 8px; display: flex; gap: 10px; min-width: 0; }
.card img { width: 92px; height: 92px; flex: none; border-radius: 3px; }
.card div { min-width: 0; flex: 1; }
.card ol { list-style: none; margin: 2px 0 0; padding: 0; font-size: 12px; line-height: 1.35; }
.card li { position: relative; display: flex; justify-content: space-between; gap: 6px; padding: 0 3px; z-index: 0; }
.card li i { position: absolute; left: 0; top: 1px; bottom: 1px; background: #dfe5eb; border-radius: 2px; z-index: -1; }
.card li.label i { background: #a9d9bd; }
.card li.label { font-weight: 600; }
.card li span:first-of-type { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.verdict { font-size: 13px; font-weight: 600; overflow-wrap: anywhere; }
.right { border-color: #1f8a4c; } .right .verdict { color: #17703d; }
.wrong { border-color: #c0341d; border-style: dashed; } .wrong .verdict { color: #b02c16; }
.confusion td, .confusion th { padding: 0 2px; height: 30px; min-width: 30px; text-align: center;
                               vertical-align: middle; font-size: 12px; font-weight: 400; border: 1px solid #fff; }
.confusion th { white-space: nowrap; padding: 0 6px; text-align: right; }
.confusion thead th { vertical-align: bottom; padding: 0 0 6px; }
.confusion thead th span { writing-mode: vertical-rl; transform: rotate(180deg); display: inline-block; }
.confusion .diagonal { outline: 2px solid #1f8a4c; outline-offset: -2px; }
summary { cursor: pointer; color: #2f5f91; margin: 8px 0; }
"""


def page(folder: Path, stored: History) -> str:
    """Return the report of the run in a folder as HTML.

    Raises:
        FileNotFoundError: the folder has no records.
    """
    subject = Subject(read_run(folder), folder, stored)
    title = subject.title
    body = "\n".join(sections(subject))
    written = time.strftime("%Y-%m-%d %H:%M:%S")
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{STYLE}</style>
</head>
<body>
<h1>{escape(title)}</h1>
<p class="quiet">Run <code>{escape(str(folder))}</code>, written {written}. While the run trains, this file is rewritten
after epochs; reload it.</p>
{body}
</body>
</html>
"""
