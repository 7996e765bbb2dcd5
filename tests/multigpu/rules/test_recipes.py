"""Recipes under rule bsp: two ranks are identical after each step and match one worker with the combined batch."""

import numpy as np
import pytest

from tests.mpi import needs_mpi, results, team_of

pytestmark = [pytest.mark.mpi, needs_mpi]
team = team_of(2)

STEPS = 20


def train(team, size, changes, **arguments):
    return results(team.run("tests.multigpu.rules.recipe_ranks:train", STEPS, changes, *arguments.values(), size=size))


@pytest.mark.parametrize("changes", [
    {"label_smoothing": 0.1, "exchange_what": "weights"},
    {"label_smoothing": 0.1, "exchange_what": "gradients"},
    {"label_smoothing": 0.1, "exchange_what": "factors"},
    {"ema_decay": 0.9, "exchange_what": "weights"},
    {"ema_decay": 0.9, "exchange_what": "weights_and_momentum"},
    {"ema_decay": 0.9, "exchange_what": "gradients"},
    {"update": "lars", "exchange_what": "auto", "lars_trust": 0.1},
    {"clip_norm": 0.5, "exchange_what": "auto"},
    {"clip_norm": 0.5, "exchange_what": "factors", "label_smoothing": 0.1},
    {"micro_batch_size": 2, "exchange_what": "weights"},
    {"micro_batch_size": 1, "exchange_what": "gradients"},
    {"micro_batch_size": 1, "exchange_what": "gradients", "overlap": "false"},
], ids=lambda changes: " ".join(map(str, changes.values())))
def test_ranks_match_one_worker_on_combined_batches(team, changes):
    (expected,) = train(team, 1, changes | {"micro_batch_size": "null"}, parts=2)
    first, second = train(team, 2, changes)
    for step in range(STEPS):
        for name, array in first[step].items():
            np.testing.assert_array_equal(second[step][name], array, err_msg=name)
            np.testing.assert_allclose(array, expected[step][name], rtol=0, atol=2e-6, err_msg=name)
