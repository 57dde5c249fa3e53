"""Single figures inside the README's sentences, made from the same documents as its tables.

In the text a figure stands between marks that a reader does not see: `<!--value:NAME-->12.8<!--/-->`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable

from edge_seg.errors import InputError
from edge_seg.studies.results.documents import Document, Results

_LITE = "maskconver_lite_256"
_MARK = re.compile(r"<!--value:(\w+)-->(.*?)<!--/-->", re.DOTALL)


def replace_values(text: str, found: Results) -> str:
    """Returns a text with every marked figure as the documents say.

    Args:
        text: Markdown; may have no marks.
        found: The documents.

    Raises:
        InputError: A mark names no figure, its document is not there, or it has no end.
    """
    if text.count("<!--value:") != len(_MARK.findall(text)):
        raise InputError("A mark of a figure has no end.", expected="<!--value:NAME-->FIGURE<!--/-->")
    return _MARK.sub(lambda mark: f"<!--value:{mark[1]}-->{_value(mark[1], found)}<!--/-->", text)


def _value(name: str, found: Results) -> str:
    if name not in VALUES:
        near = difflib.get_close_matches(name, VALUES, n=1)
        todo = f"did you mean {near[0]}?" if near else ""
        raise InputError(f"No figure is called {name!r}.", expected=", ".join(VALUES), todo=todo)
    try:
        return VALUES[name](found)
    except (KeyError, StopIteration) as error:
        todo = "put the document back, or take the mark out of the text"
        raise InputError(f"The document behind the figure {name!r} is not there.", todo=todo) from error


def _quickstart(found: Results, scheme: str) -> Document:
    return next(e for e in found.evaluations if e.get("command") == "edge-seg quickstart" and e["scheme"] == scheme)


def _quickstart_difference(found: Results) -> str:
    return f"{abs(_quickstart(found, 'w8a8')['pq'] - _quickstart(found, 'torch')['pq']):.1f}"


def _boundary_ap(found: Results, family: str) -> str:
    run = next(run for run in found.limits if str(run["network"]).startswith(family))
    return f"{run['rows'][0]['boundary_ap']:.1f}"


def _within(found: Results, series: str, threads: int) -> str:
    profile = next(p for p in found.same_file[series]["profiles"] if p["threads"] == threads)
    return f"{profile['within_n']} of {profile['times_n']}"


def _taken_by_others(found: Results, series: str) -> str:
    return f"{max(p['steal_pct']['most'] for p in found.same_file[series]['profiles']):.0f} %"


def _trained(found: Results) -> list[Document]:
    documents = [d for d in found.exactness.values() if "trained_numbers" in d]
    if not documents:
        raise KeyError("trained_numbers")
    return documents


def _trained_equal(found: Results) -> str:
    numbers = [d["trained_numbers"] for d in _trained(found)]
    equal, total = (sum(sum(n[key].values()) for n in numbers) for key in ("equal", "total"))
    return f"{equal} of {total}"


def _outputs_equal(found: Results) -> str:
    return f"{100 * min(d['integer_mirror']['equal'] for d in _trained(found)):g} %"


def _exact_pictures(found: Results) -> str:
    return str(min(d["integer_mirror"]["pictures"] for d in _trained(found)))


def _aarch64_files(found: Results) -> str:
    return str(len({run["sha256"] for run in found.exactness["aarch64"]["runs"]}))


def _aarch64_differing(found: Results) -> str:
    runs = found.exactness["aarch64"]["runs"]
    return f"{sum(run['differing'] for run in runs)} of {sum(run['integers'] for run in runs):,}"


def _lite_of_peer(found: Results, scheme: str) -> str:
    run = next(run for run in found.speeds if "what" not in run and run["rows"][0]["of_peer"])
    row = next(row for row in run["rows"] if (row["network"], row["scheme"]) == (_LITE, scheme))
    low, ratio, high = next(iter(row["of_peer"].values()))
    return f"{ratio:.2f} [{low:.2f}, {high:.2f}]"


def _lite_difference(found: Results) -> str:
    rows = found.ablation["rows"] if found.ablation else []
    difference = next(row["difference"] for row in rows if row["name"] == "lite" and row["difference"])
    low, high = difference["ci95"]
    return f"{difference['value']:+.1f} [{low:+.1f}, {high:+.1f}]"


VALUES: dict[str, Callable[[Results], str]] = {
    "quickstart_images": lambda found: str(_quickstart(found, "w8a8")["images"]),
    "quickstart_difference": _quickstart_difference,
    "boundary_ap_blendmask": lambda found: _boundary_ap(found, "blendmask"),
    "boundary_ap_solov2": lambda found: _boundary_ap(found, "solov2"),
    "same_file_quiet_1": lambda found: _within(found, "host", 1),
    "same_file_quiet_2": lambda found: _within(found, "host", 2),
    "same_file_busy_1": lambda found: _within(found, "host_busy", 1),
    "same_file_busy_2": lambda found: _within(found, "host_busy", 2),
    "same_file_busy_taken": lambda found: _taken_by_others(found, "host_busy"),
    "same_file_known_1": lambda found: _within(found, "ratio_known", 1),
    "same_file_known_2": lambda found: _within(found, "ratio_known", 2),
    "same_file_known_taken": lambda found: _taken_by_others(found, "ratio_known"),
    "lite_fp32_of_peer": lambda found: _lite_of_peer(found, "fp32"),
    "lite_int8_of_peer": lambda found: _lite_of_peer(found, "w8a8"),
    "lite_difference": _lite_difference,
    "exact_files": lambda found: str(len(_trained(found))),
    "exact_numbers": _trained_equal,
    "exact_outputs": _outputs_equal,
    "exact_pictures": _exact_pictures,
    "aarch64_files": _aarch64_files,
    "aarch64_differing": _aarch64_differing,
}
