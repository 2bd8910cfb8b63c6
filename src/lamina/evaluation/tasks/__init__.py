"""Tasks: from a small YAML file to rows that are asked, each with a reference and a digest."""

from lamina.evaluation.tasks.find import Task, find_tasks, task_of_data
from lamina.evaluation.tasks.rows import TaskRow, read_task_rows

__all__ = ["Task", "TaskRow", "find_tasks", "read_task_rows", "task_of_data"]
