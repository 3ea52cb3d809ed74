from blink_exp.settings.folders import CONF
from blink_exp.settings.meanings import MEANINGS


def test_every_config_group_has_a_meaning_and_every_meaning_a_group():
    groups = {path.parent.relative_to(CONF).as_posix() for path in CONF.rglob("*.yaml")} - {"."}
    assert set(MEANINGS) == groups
