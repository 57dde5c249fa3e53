"""The page of results and what the README shows of it, made from committed JSON: `make results`.

No figure of either is typed by hand.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from edge_seg.artifact import write_bytes
from edge_seg.errors import EdgeSegError, InputError
from edge_seg.studies.results import accuracy, exact, gpu, speed
from edge_seg.studies.results.documents import Results, read_results
from edge_seg.studies.results.summary import summary_markdown
from edge_seg.studies.results.values import replace_values

PAGE = "TABLES.md"
BEGIN = "<!-- results:begin -->"
END = "<!-- results:end -->"
NOTHING = "Not measured yet."
_ABOUT = (
    "Made by `make results` from the JSON documents beside this page; a test fails when they disagree. "
    "[README.md](README.md) says how each was made."
)


def results_markdown(folder: Path) -> str:
    """Returns every table of a results folder as Markdown, a heading above those of one subject.

    Args:
        folder: Holds `*.json` and folders of them; it may be missing or empty.

    Raises:
        InputError: A file is no result.
    """
    return _markdown(_sections(read_results(folder)))


def page(folder: Path) -> str:
    """Returns the page of a results folder: a title, the subjects, and every table.

    Raises:
        InputError: A file is no result.
    """
    sections = _sections(read_results(folder))
    subjects = [f"- [{title}](#{title.lower().replace(' ', '-')})" for title in sections]
    return "\n\n".join(["# Every measurement", _ABOUT, "\n".join(subjects), _markdown(sections)]) + "\n"


def _sections(found: Results) -> dict[str, list[str]]:
    """The tables by subject; a subject without any is left out."""
    kernels = [run for run in found.speeds if run.get("what") == "kernels"]
    others = [run for run in found.speeds if run not in kernels]
    sections = {
        "Accuracy": accuracy.accuracy(found.evaluations),
        "Kept accuracy": accuracy.kept(found.kept),
        "Limits": accuracy.limits(found.limits),
        "Exactness": [
            *exact.trained(found.exactness),
            *exact.processors(found.exactness),
            *exact.interpreters(found.exactness),
        ],
        "GPU accelerator": [*gpu.accuracy(found.accelerator), *gpu.bodies(found.bodies)],
        "Choices": _ablation(found),
        "Speed": [*speed.latency(found.records), *speed.speed(others)],
        "Trust in a ratio": exact.same_file(found.same_file),
        "Training speed": [*speed.training(found.training), *speed.speed(kernels)],
    }
    return {title: texts for title, texts in sections.items() if texts}


def _markdown(sections: dict[str, list[str]]) -> str:
    return "\n\n".join([text for title, texts in sections.items() for text in (f"## {title}", *texts)]) or NOTHING


def _ablation(found: Results) -> list[str]:
    """The comparison of choices; NumPy is imported for it alone."""
    if found.ablation is None:
        return []
    from edge_seg.studies import ablation_table

    return [ablation_table.markdown(found.ablation)]


def replace_block(text: str, block: str) -> str:
    """Returns `text` with everything between the two marks replaced by `block`.

    Raises:
        InputError: The marks are not there exactly once and in order.
    """
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end or BEGIN in rest or END in head + tail:
        raise InputError("The text has no results block.", expected=f"one {BEGIN} and then one {END}")
    return f"{head}{BEGIN}\n{block}\n{END}{tail}"


def readme(text: str, folder: Path) -> str:
    """Returns the text of a README with its results block and its single figures as the documents say.

    Args:
        text: The README.
        folder: The results.

    Raises:
        InputError: The block is not there, a figure has no such name, or a file is no result.
    """
    found = read_results(folder)
    return replace_values(replace_block(text, summary_markdown(found) or NOTHING), found)


def main(arguments: Sequence[str]) -> int:
    """Rewrites the README's block and figures, and the page and the pictures beside the documents.

    Args:
        arguments: The Markdown file and the folder of results.

    Returns:
        The exit code.
    """
    if len(arguments) != 2:
        print("usage: python -m edge_seg.studies.results.page README.md results", file=sys.stderr)
        return InputError.exit_code
    file, folder = Path(arguments[0]), Path(arguments[1])
    try:
        text, tables = readme(file.read_text(encoding="utf-8"), folder), page(folder)
        write_bytes(file, text.encode())
        write_bytes(folder / PAGE, tables.encode())
        from edge_seg.studies.results import figures

        figures.write_figures(folder, folder / "figures")
    except EdgeSegError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
