"""A few random settings: see settings.py, which runs any number of them."""

import pytest

from tests.fuzz.settings import Cases, search, values_of


@pytest.mark.slow
def test_settings_train_or_are_refused(tmp_path):
    cases = Cases(tmp_path)
    assert search(cases, 30, seed=1) is None
    assert cases.outcomes["trained"] and cases.outcomes["ConfigError"]


def test_every_setting_has_values():
    assert all(others for _, others in values_of().values())
