"""The compiled network, the training loop, update rules, schedules and objectives."""
