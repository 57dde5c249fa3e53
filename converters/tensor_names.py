"""Tensor names of a .tflite and the PyTorch modules they came from."""

from __future__ import annotations

import re

ROOT = "body"  # operations written directly in the network's own forward
# Names that the compiler invents; they carry no module path.
_INVENTED = ("arith.", "tfl.", "serving_default", "mhlo.", "stablehlo.")


def module_of(name: str) -> str:
    """Maps a tensor name to a PyTorch module path, or "" where the name carries none.

    A fused operator lists its modules, the last one first (`stem.act;;stem.bn;;stem.conv;`): the answer is the one
    that computes, `stem.conv`. Both forms are read: plain paths, as our own converter writes them, and
    litert-torch's `pkg.Net/pkg.Block_stem/torch...Conv2d_0;`, which loses the name of a ModuleList.

    Args:
        name: Tensor name as it stands in the file.
    """
    for part in reversed(name.split(";")):
        if path := _module_path(part):
            return path
    return ""


def _module_path(part: str) -> str:
    if not part or part.startswith(_INVENTED):
        return ""
    if "/" not in part:
        return part if re.fullmatch(r"[A-Za-z]\w*(\.\w+)*", part) else ""
    names = [piece.rsplit(".", 1)[-1].lstrip("_").partition("_")[2] for piece in part.split("/")]
    return ".".join(n for n in names if n)
