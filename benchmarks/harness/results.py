"""Format rows as RESULTS.md: a head that describes the machine, a summary, and one section per benchmark.

The text of a section is the docstring of its benchmark, so the meaning of a figure is documented in one place.
"""

import ast
import pathlib
import re
from typing import NamedTuple

PROGRAMS = pathlib.Path(__file__).parents[1]
COLUMNS = ("name", "value", "spread", "runs", "peer", "ratio")
SUMMARY = ("ratio", "of_ceiling", "peak_mib", "peer_peak_mib")                # besides name and value
TITLES = {"name": "", "value": "median", "peak_mib": "peak MiB", "peer_peak_mib": "peer's MiB",
          "ceiling_ms": "ceiling, ms"}
QUANTITIES = ("value", "peer", "largest", "peer_largest")                    # keys whose values have the row's unit
PERCENTAGES = ("spread", "peer_spread", "share", "of_ceiling")
HEAD = """# Results

Written by `{command}` on {date}, in {minutes:.0f} minutes; do not edit. Each section starts with the command that
measures only this section.

{facts}

All computations are float32 unless a row states otherwise. Each section describes its data, synthetic or real. A figure
is the median of its runs, and the spread is (largest − smallest) / median. A ratio compares two programs that ran
alternately on this machine in one run; absolute times depend on the machine. `OPENBLAS_CORETYPE` and
`OPENBLAS_L2_SIZE` are removed from the environment of every program.
"""


class Section(NamedTuple):
    """Result of one benchmark: module, title, arguments, rows, seconds, and a description of its failure or None."""

    module: str
    title: str
    arguments: tuple
    rows: list
    seconds: float
    failure: str | None = None

    @property
    def command(self):
        return " ".join(("python -m", f"benchmarks.{self.module}", *self.arguments))


class Headline(NamedTuple):
    """Rows for the summary: the module, a pattern of the row names, and what the ratio compares with."""

    module: str
    pattern: str
    against: str = ""


def markdown(sections, headlines, facts, command, date, by_hand=""):
    """Return the complete text of RESULTS.md; `by_hand` is appended unchanged."""
    minutes = sum(section.seconds for section in sections) / 60
    lines = "\n".join(f"- **{name}**: {value}" for name, value in facts.items())
    parts = [HEAD.format(command=command, date=date, minutes=minutes, facts=lines)]
    parts += [summary(sections, headlines)] + [section_text(section) for section in sections]
    return "\n".join(part for part in [*parts, by_hand] if part)


def summary(sections, headlines):
    """Return the summary: the failed benchmarks, and a table of the rows that match the headlines."""
    rows = [shortened(row, headline.against) for section in sections for headline in headlines for row in section.rows
            if headline.module == section.module and re.search(headline.pattern, row["name"])]
    failed = [f"**`{section.module}` failed**, see its section." for section in sections if section.failure]
    text = table(rows) if rows else ""
    return "## Summary\n\n" + "\n".join([*failed, *([""] if failed else []), text])


def shortened(row, against):
    """Return the keys of a row that the summary shows."""
    kept = {key: row[key] for key in ("name", "value", "unit", "note", *SUMMARY) if row.get(key) is not None}
    if "ratio" in row:
        kept["compared_with"] = row.get("peer_is") or against
    return kept


def section_text(section):
    """Return one section: heading, command, description, failure and table."""
    parts = [f"## {section.title}", f"`{section.command}` ({clock(section.seconds)})", description(section.module)]
    if section.failure:
        parts.append(f"**This benchmark failed:** {section.failure}")
    if section.rows:
        parts.append(table(section.rows).strip())
    return "\n\n".join(part for part in parts if part) + "\n"


def description(module):
    """Return the docstring of a benchmark without its command lines."""
    text = ast.get_docstring(ast.parse((PROGRAMS / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8"))) or ""
    return "\n\n".join(part for part in text.split("\n\n") if not part.startswith("python -m benchmarks"))


def table(rows):
    """Return a Markdown table of the measured rows, followed by a list of the notes of all rows."""
    measured = [row for row in rows if row["value"] is not None]
    keys = [key for key in COLUMNS if any(row.get(key) is not None for row in measured)]
    extra = (key for row in measured for key, value in row.items() if value is not None)
    keys += [key for key in dict.fromkeys(extra) if key not in (*COLUMNS, "unit", "note")]
    units = {row["unit"] for row in measured}
    unit = units.pop() if len(units) == 1 else ""        # shown once in the head, or with each value
    lines = [[title(key) + (f", {unit}" if unit and key in QUANTITIES else "") for key in keys]]
    lines += [["---"] + ["---:"] * (len(keys) - 1)]
    lines += [[cell(row, key, "" if unit else row["unit"]) for key in keys] for row in measured]
    notes = [f"- {row['name']}: {row['note']}" for row in rows if row.get("note")]
    text = "".join(f"| {' | '.join(line)} |\n" for line in lines) if measured else ""
    return text + ("\n" if text and notes else "") + "".join(f"{note}\n" for note in notes)


def title(key):
    return TITLES.get(key, key.replace("_", " "))


def cell(row, key, unit):
    """Return the text of one cell."""
    value = row.get(key)
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if key == "spread" and row.get("runs") == 1:
        return ""
    if key in PERCENTAGES:
        return f"{value:.0%}".replace("%", " %")
    if key == "ratio":
        return f"**{value:.2f}**"
    text = number(value)
    return f"{text} {unit}".strip() if key in QUANTITIES else text


def number(value):
    """Format an int with all its digits, and a float with three significant digits or, from 100 on, as an integer."""
    if isinstance(value, int):
        return f"{value:,}"
    if value == 0 or 1e-3 <= abs(value) < 1e7:
        digits = next((digits for limit, digits in ((100, 0), (10, 1), (1, 2)) if abs(value) >= limit), 3)
        return f"{value:,.{digits}f}"
    return f"{value:.2e}"


def clock(seconds):
    """Format seconds as minutes:seconds."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02} min"
