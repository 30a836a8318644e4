"""How the trainers train: steps, schedules, checkpoints, progress and validation of a reconstruction."""
