"""Settings: their types, defaults and checks, and the command line."""
