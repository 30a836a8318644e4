"""The one engine that runs trainings and compares them. Nothing is imported here: the command line must start at once."""
