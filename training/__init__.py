"""The one train loop, its engines, tasks, losses, metrics and reports."""
