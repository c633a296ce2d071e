"""Turn the easy-VQA data set (PyPI `easy-vqa`, MIT) into a skill for lmm-forget.

    pip install easy-vqa==1.0
    python examples/easy_vqa/convert.py data/easy_vqa
    python -m lmm_forget.run --config-dir data/easy_vqa/conf sequence=single sequence.task=easy_vqa

The folder gets `train.jsonl` and `test.jsonl` with one `{"id", "image", "question", "answer"}` per line, the pictures
they name, and `conf/task/easy_vqa.yaml`, the few lines that make it a task. Any data set of your own can be brought in
the same way.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

try:
    import easy_vqa
except ImportError:
    raise SystemExit("convert.py needs the data set's package: pip install easy-vqa==1.0") from None

TASK = """\
# easy-VQA (Victor Zhou, MIT): questions about the shape and color of one drawn object.
_target_: lmm_forget.tasks.jsonl.JsonlTask
name: easy_vqa
role: target
path: {{train: {train}, test: {test}}}
max_new_tokens: 8
scorer: {{_target_: lmm_forget.tasks.scoring.exact.ExactMatchScorer}}
"""


def convert(folder: Path, images: int | None = None) -> dict[str, int]:
    """Write the data set under `folder`; returns the number of questions per split.

    `images` bounds the pictures per split (the first by number, with all their questions).
    """
    splits = {
        "train": (easy_vqa.get_train_questions(), easy_vqa.get_train_image_paths()),
        "test": (easy_vqa.get_test_questions(), easy_vqa.get_test_image_paths()),
    }
    written = {}
    for split, ((questions, answers, numbers), files) in splits.items():
        chosen = set(sorted(files)[:images])
        (folder / "images" / split).mkdir(parents=True, exist_ok=True)
        for number in chosen:
            shutil.copyfile(files[number], folder / "images" / split / f"{number}.png")
        lines = [
            {
                "id": f"{split}-{i}",
                "image": f"images/{split}/{number}.png",
                "question": question,
                "answer": answer,
            }
            for i, (question, answer, number) in enumerate(zip(questions, answers, numbers, strict=True))
            if number in chosen
        ]
        with open(folder / f"{split}.jsonl", "w", encoding="utf-8") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines)
        written[split] = len(lines)
    task = folder / "conf" / "task" / "easy_vqa.yaml"
    task.parent.mkdir(parents=True, exist_ok=True)
    paths = {split: json.dumps((folder / f"{split}.jsonl").as_posix()) for split in splits}
    task.write_text(TASK.format(**paths), encoding="utf-8")
    return written


def main() -> None:
    """Read the command line and convert."""
    parser = argparse.ArgumentParser(description="Write easy-VQA as JSONL files and a task YAML.")
    parser.add_argument("folder", type=Path, help="where to write, for example data/easy_vqa")
    parser.add_argument("--images", type=int, help="at most so many pictures per split (default: all)")
    arguments = parser.parse_args()
    written = convert(arguments.folder, arguments.images)
    print(f"{arguments.folder}: " + ", ".join(f"{n} {split} questions" for split, n in written.items()))


if __name__ == "__main__":
    main()
