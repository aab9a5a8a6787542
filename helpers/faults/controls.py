"""Cases that no fault of the catalogue can break, and how they are known to be able to fail.

Keyed by a part of the node id.
"""

from __future__ import annotations

CONTROLS: dict[str, str] = {}
