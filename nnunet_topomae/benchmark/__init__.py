"""Demo, metrics and reports. Nothing is imported here: the command line must start at once."""
