"""Settings as plain data."""

from __future__ import annotations

from typing import Any

# values by name, as YAML has them; which ones there are says the schema of their group (``settings.groups``) or the ``_target_`` they hold
Settings = dict[str, Any]
