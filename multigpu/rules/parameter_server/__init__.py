"""The parameter server of rules easgd and asgd, and its clients."""
