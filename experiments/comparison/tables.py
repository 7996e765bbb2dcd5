"""Tables of the best settings: the lowest errors as Markdown, and all methods with their settings as text."""

from experiments.asgd.claims import by, points
from experiments.comparison.clock import LINKS
from experiments.comparison.methods import METHODS

ORDER = [link.name for link in LINKS]


def grouped(best):
    """Return ((workers, link), rows with the best settings, the lowest error first) of all groups, in order."""
    groups = by([row for row in best if row["best"]], "workers", "link")
    places = sorted(groups, key=lambda place: (place[0], ORDER.index(place[1])))
    return [(place, sorted(groups[place], key=lambda row: row["error"])) for place in places]


def name_of(row):
    """Return the name of a row: bsp with its strategy, or the method."""
    return f"bsp, {row['strategy']}" if row["strategy"] else row["method"]


def overview(best):
    """Return a Markdown table of the errors at the end in %: a line per method, a column per workers and link."""
    groups = grouped(best)
    found = {name_of(row): row["method"] for row in best if row["best"]}
    names = sorted(found, key=lambda name: list(METHODS).index(found[name]))
    head = [f"{workers:,}, {link}" for (workers, link), _ in groups]
    lines = ["| | " + " | ".join(head) + " |", "|---" + "|---:" * len(head) + "|"]
    for name in names:
        cells = []
        for _, rows in groups:
            errors = [row["error"] for row in rows if name_of(row) == name]
            lowest = errors and errors[0] == rows[0]["error"]
            cells.append(f"{'**' * lowest}{points(errors[0]):.1f}{'**' * lowest}" if errors else "")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def decisions(best):
    """Return the best settings of each method as text, for each number of workers and link, the lowest error first."""
    lines = []
    for (workers, link), rows in grouped(best):
        lines.append(f"{workers:,} workers, {link}, {rows[0]['seconds']:,.0f} s")
        for row in rows:
            settings = " ".join(f"{name}={value:.4g}" for name, value in row["settings"].items())
            load = f", server busy {row['load']:.0%}" if row["load"] else ""
            numbers = f"{points(row['error']):5.1f} %  {row['sent'] / 1e9:8.2f} GB"
            lines.append(f"  {numbers}  {name_of(row)}: {settings}{load}")
    return "\n".join(lines)
