"""Presets of installed packages: every entry point of the group ``blink_exp.conf`` names a package that holds a folder like conf/.

Hydra looks for plugins in this package and in no other.
"""

from __future__ import annotations

from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin

from blink_exp import plugins
from blink_exp.studies.launchers import forget_packaged_presets


class InstalledPresets(SearchPathPlugin):
    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        for name, point in plugins.installed(plugins.CONF).items():
            search_path.append(provider=name, path=f"pkg://{point.value}")
        forget_packaged_presets()
