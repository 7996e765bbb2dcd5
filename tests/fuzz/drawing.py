"""How the random tests use hypothesis: without a time limit for a case, and without files."""

import os

import hypothesis
from hypothesis.configuration import set_hypothesis_home_dir

set_hypothesis_home_dir(os.path.join(os.devnull, "none"))            # cannot be made, so nothing is stored


def drawn(cases: int, seed: int = 0):
    """Return a decorator for a function decorated with hypothesis.given, which runs it with this number of cases.

    The cases depend on the seed, and on the constants in the sources, from which hypothesis draws, too.
    """
    settings = hypothesis.settings(
        max_examples=cases, database=None, deadline=None, print_blob=False, report_multiple_bugs=False,
        suppress_health_check=list(hypothesis.HealthCheck), verbosity=hypothesis.Verbosity.quiet,
        phases=(hypothesis.Phase.generate, hypothesis.Phase.shrink),
    )
    return lambda test: hypothesis.seed(seed)(settings(test))
