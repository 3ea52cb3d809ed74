"""Settings as plain data."""

from __future__ import annotations

from typing import Any

# values by name as YAML has them: None, numbers, text, lists, and settings again. Which there are says the schema of their group
# (``settings.groups``) or the ``_target_`` that they hold
PlainSettings = dict[str, Any]
