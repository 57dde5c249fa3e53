"""Runs the command line inside the test's process, through `main()`, as the installed program does."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from typing import Any

import pytest

from edge_seg import cli


@dataclass(frozen=True)
class Done:
    """What a call of the program left behind."""

    code: int
    out: str
    err: str

    def json(self) -> Any:
        """Returns stdout as JSON; fails when anything else is on it."""
        return json.loads(self.out)


class Program:
    """Calls `edge-seg` with arguments and returns exit code, stdout and stderr."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.monkeypatch, self.capsys = monkeypatch, capsys

    def __call__(self, *arguments: object) -> Done:
        self.capsys.readouterr()
        self.monkeypatch.setattr(sys, "argv", ["edge-seg", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        out, err = self.capsys.readouterr()
        return Done(caught.value.code, out, err)
