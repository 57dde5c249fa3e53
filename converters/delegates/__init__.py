"""One file, one delegate: versioned operator rules as data, and a verdict per operator.

A delegate registers, in DELEGATES, a function that loads its rule table.
"""

from edge_seg.converters.check import DELEGATES, OpFinding, Verdict, check

__all__ = ["DELEGATES", "OpFinding", "Verdict", "check"]
