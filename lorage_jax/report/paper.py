"""The paper's numbers as data, to compare with ours.

Source: arXiv 2506.11638 (ICML 2025), Tables 2, 3 and 13. Accuracies are lm-evaluation-harness `acc`
in percent, 5 shots; latencies in milliseconds on the authors' device.
"""

from __future__ import annotations

from dataclasses import dataclass

from lorage_jax.data.task_table import paper_tasks

SOURCE = "LoRA-Gen, arXiv 2506.11638"


TASKS = paper_tasks()  # the columns of Table 2


@dataclass(frozen=True)
class Accuracy:
    """A row of Table 2: percent for each of TASKS, their mean and harmonic mean, milliseconds."""

    model: str
    method: str
    scores: tuple[float, ...]
    average: float
    harmonic: float
    milliseconds: float


_TINY, _QWEN, _GEMMA = "TinyLlama-1.1B", "Qwen-1.5B", "Gemma-2B"
BASE, OURS = "base", "LoRA-Gen"
TABLE_2 = (
    Accuracy(_TINY, BASE, (34.2, 66.9, 27.4, 58.8, 46.0, 45.8, 60.7, 73.9), 51.7, 46.7, 44.5),
    Accuracy(_TINY, "LoRA", (33.6, 67.6, 28.6, 71.9, 51.5, 44.5, 61.9, 75.1), 54.3, 48.5, 44.5),
    Accuracy(_TINY, "LoRAMoE", (35.2, 68.8, 28.6, 73.2, 52.1, 45.4, 62.0, 74.1), 54.9, 49.3, 55.9),
    Accuracy(_TINY, "MixLoRA", (33.5, 67.7, 28.4, 73.3, 51.4, 44.9, 62.3, 74.6), 54.5, 48.6, 100.1),
    Accuracy(_TINY, OURS, (35.8, 69.1, 30.4, 73.6, 49.6, 45.5, 62.6, 74.1), 55.1, 49.8, 21.2),
    Accuracy(_QWEN, BASE, (41.9, 73.1, 29.0, 73.3, 50.6, 49.0, 65.3, 76.2), 57.3, 51.9, 56.3),
    Accuracy(_QWEN, OURS, (44.3, 74.3, 33.4, 79.6, 53.6, 49.1, 67.4, 76.9), 59.8, 55.0, 26.7),
    Accuracy(_GEMMA, BASE, (50.3, 81.5, 33.8, 73.4, 49.3, 55.6, 71.5, 78.7), 61.8, 57.0, 87.3),
    Accuracy(_GEMMA, OURS, (51.2, 81.9, 39.0, 76.2, 55.6, 56.0, 71.6, 79.5), 63.9, 60.2, 36.1),
)


@dataclass(frozen=True)
class ToolUse:
    """A row of Table 3 (GPT4Tools, Gemma-2B): percent for each of TOOL_SCORES."""

    method: str
    scores: tuple[float, ...]
    compression: float | None  # of the input's tokens; None if the paper has no figure


# Our key for a score, and the paper's column.
TOOL_SCORES = (
    ("thought", "SRt"),
    ("action", "SRact"),
    ("args", "SRargs"),
    ("success", "SR"),
    ("iou", "IoU"),
    ("average", "average"),
)
TABLE_3_MODEL = _GEMMA
TABLE_3_ITEMS = 652
TABLE_3 = (
    ToolUse("base, tools in the prompt", (86.3, 77.6, 77.7, 65.0, 89.7, 79.3), None),
    ToolUse("LoRA, tools in the prompt", (99.4, 79.6, 93.8, 78.2, 91.0, 88.4), None),
    ToolUse("LoRA, without tools", (98.0, 60.9, 83.2, 52.1, 81.3, 75.1), None),
    ToolUse("LoRA-Gen, not trained on it", (94.1, 86.8, 79.7, 73.3, 86.9, 84.2), None),
    ToolUse("LoRA-Gen", (98.6, 88.0, 93.4, 84.0, 93.6, 91.5), 10.1),
)


@dataclass(frozen=True)
class Cost:
    """A row of Table 13: multiply-accumulates (the paper calls them FLOPs) of one request."""

    method: str
    inference: float


TABLE_13_SETTING = "Qwen-1.5B, 100 input tokens, 200 instruction tokens"
TABLE_13 = (
    Cost("LoRA, instruction in the prompt", 4.708e11),
    Cost("LoRAMoE", 4.742e11),
    Cost("MixLoRA", 5.048e11),
    Cost("LoRA-Gen", 1.552e11),
)
