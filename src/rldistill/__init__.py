"""Policy distillation for reinforcement learning.

Each verb of the command is a function here: `train`, `record`, `inspect`, `distill`, `evaluate`, `starts`, `report`,
`split`, `study`, `export`, `watch`, `push`; those of `rldistill dataset` are in `rldistill.datasets`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

__version__ = "0.1.0"
__all__ = [
    "DistillConfig",
    "EvaluateConfig",
    "ExportConfig",
    "ForeignTeacher",
    "InspectConfig",
    "MultiTaskPolicy",
    "PushConfig",
    "RecordConfig",
    "ReportConfig",
    "SavedPolicy",
    "StartsConfig",
    "StudyConfig",
    "Task",
    "TeacherOptions",
    "TrainConfig",
    "UserError",
    "WatchConfig",
    "__version__",
    "distill",
    "evaluate",
    "export",
    "inspect",
    "load_policy",
    "load_teacher",
    "make_task",
    "open_dataset",
    "push",
    "record",
    "report",
    "save_policy",
    "split",
    "starts",
    "study",
    "train",
    "watch",
]

if TYPE_CHECKING:
    from rldistill.datasets.shards import open_dataset
    from rldistill.play.envs import make_task
    from rldistill.policies import MultiTaskPolicy, SavedPolicy, save_policy
    from rldistill.teachers import ForeignTeacher, TeacherOptions, load_policy, load_teacher
    from rldistill.types import Task, UserError
    from rldistill.verbs.distill import DistillConfig, distill
    from rldistill.verbs.evaluate import EvaluateConfig, evaluate
    from rldistill.verbs.export import ExportConfig, export
    from rldistill.verbs.inspect import InspectConfig, inspect
    from rldistill.verbs.push import PushConfig, push
    from rldistill.verbs.record import RecordConfig, record
    from rldistill.verbs.report import ReportConfig, report
    from rldistill.verbs.split import split
    from rldistill.verbs.starts import StartsConfig, starts
    from rldistill.verbs.study import StudyConfig, study
    from rldistill.verbs.train import TrainConfig, train
    from rldistill.verbs.watch import WatchConfig, watch
else:
    # A module is imported when one of its names is first used: `import rldistill` does not wait for torch.
    _NAMES_OF = {
        "datasets.shards": ("open_dataset",),
        "play.envs": ("make_task",),
        "policies": ("MultiTaskPolicy", "SavedPolicy", "save_policy"),
        "teachers": ("ForeignTeacher", "TeacherOptions", "load_policy", "load_teacher"),
        "types": ("Task", "UserError"),
        "verbs.distill": ("DistillConfig", "distill"),
        "verbs.evaluate": ("EvaluateConfig", "evaluate"),
        "verbs.export": ("ExportConfig", "export"),
        "verbs.inspect": ("InspectConfig", "inspect"),
        "verbs.push": ("PushConfig", "push"),
        "verbs.record": ("RecordConfig", "record"),
        "verbs.report": ("ReportConfig", "report"),
        "verbs.split": ("split",),
        "verbs.starts": ("StartsConfig", "starts"),
        "verbs.study": ("StudyConfig", "study"),
        "verbs.train": ("TrainConfig", "train"),
        "verbs.watch": ("WatchConfig", "watch"),
    }
    _MODULE_OF = {name: module for module, names in _NAMES_OF.items() for name in names}

    def __getattr__(name: str) -> object:
        if name not in _MODULE_OF:
            raise AttributeError(f"module 'rldistill' has no attribute {name!r}")
        from importlib import import_module

        return getattr(import_module(f"rldistill.{_MODULE_OF[name]}"), name)
