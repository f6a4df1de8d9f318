"""A folder of local task files, ten records a split, in the project's own layout."""

import json

CHOICES = ["the sun", "a stone", "some water", "nobody at all"]
TASKS = {
    "arc_challenge": 4,
    "arc_easy": 4,
    "openbookqa": 4,
    "boolq": 2,
    "social_iqa": 3,
    "piqa": 2,
    "winogrande": 2,
    "hellaswag": 4,
    "gsm8k": 0,
}


def record(name, i):
    """The i-th record of a task: {question, choices, label}, and a passage or context."""
    count = TASKS[name]
    if name == "gsm8k":
        return {"question": f"What is {i} + 1?", "answer": f"{i} + 1 is {i + 1}.\n#### {i + 1}"}
    question = {
        "winogrande": f"Bird {i} likes the sun more than a stone since _ is warm.",
        "hellaswag": f"Walking: A man number {i} walks. He stops. the man",
    }.get(name, f"What warms bird {i}?")
    row = {"question": question, "choices": CHOICES[:count], "label": i % count}
    if name == "boolq":
        row |= {"passage": f"Bird {i} sits in the sun.", "choices": ["no", "yes"]}
    if name == "social_iqa":
        row |= {"context": f"Bird {i} sat down."}
    return row


def write_tasks(root, records=10, splits=("train", "validation", "test")):
    """Every task's splits as JSON lines under `root`; the splits differ in their records."""
    for name in TASKS:
        (root / name).mkdir(parents=True)
        for offset, split in enumerate(splits):
            rows = [record(name, i + 100 * offset) for i in range(records)]
            text = "".join(json.dumps(row) + "\n" for row in rows)
            (root / name / f"{split}.jsonl").write_text(text, "utf-8")
    return root
