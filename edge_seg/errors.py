"""One tree of errors; each class carries the exit code of the command line."""

from __future__ import annotations


class EdgeSegError(Exception):
    """Base of every error this project raises on purpose.

    The message says what is wrong, then what was expected, what was found, and what to do next.

    Args:
        what: One sentence that names the thing that is wrong.
        expected: What would have been right.
        got: What was found instead.
        todo: The next step for the reader.
    """

    exit_code = 2

    def __init__(self, what: str, *, expected: str = "", got: str = "", todo: str = "") -> None:
        self.what, self.expected, self.got, self.todo = what, expected, got, todo
        lines = [what]
        lines += [f"  expected: {expected}"] if expected else []
        lines += [f"  got:      {got}"] if got else []
        lines += [f"  next:     {todo}"] if todo else []
        super().__init__("\n".join(lines))


class CheckFailed(EdgeSegError):
    """A check ran and its answer is no (verify, check, gate, compare)."""

    exit_code = 1


class InputError(EdgeSegError):
    """A file, an argument or a value from outside is wrong."""

    exit_code = 2


class ConfigError(InputError):
    """A configuration file has an unknown key, a wrong type or a value out of range."""


class DataError(InputError):
    """A data set, an image or an annotation is missing, broken or inconsistent."""


class ArtifactError(InputError):
    """A file of ours is truncated, has another hash than its manifest, or is not what it claims to be."""


class MissingHere(EdgeSegError):
    """A tool, a device or a runtime is not installed or not attached on this machine."""

    exit_code = 3


def nearest(word: str, choices: list[str] | tuple[str, ...]) -> str:
    """Returns "did you mean" text with the closest valid names, or the list of all of them.

    Args:
        word: What the user wrote.
        choices: The valid names.
    """
    import difflib

    close = difflib.get_close_matches(word, choices, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(close)}?" if close else f"valid names: {', '.join(sorted(choices))}"
