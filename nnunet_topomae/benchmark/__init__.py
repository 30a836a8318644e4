"""The one engine that runs and compares trainings. Nothing is imported here: the command line must start at once."""
