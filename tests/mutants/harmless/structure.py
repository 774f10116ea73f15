"""The same program in other places: functions, classes, files, loops, blocks."""

import re
from collections.abc import Iterator

from mutants.operators import Edit, Files, Operator, family

GUARD = re.compile(r'(?m)^if __name__ == "__main__":')


def moved_to_a_file(files: Files) -> Iterator[Files]:
    """All but `main` moves into a module beside the script."""
    text = files["main.py"]
    start = re.search(r"(?m)^def main\(\):", text)
    if not start:
        return
    head, tail = text[: start.start()], text[start.start() :]
    docstring, rest = re.match(r'("""[\s\S]*?"""\n)?([\s\S]*)', head).groups()  # type: ignore[union-attr]
    if not re.search(r"(?m)^(?:class|def) ", rest):
        return
    imports = "\n".join(re.findall(r"(?m)^(?:import|from) .*$", rest))
    names = ", ".join(re.findall(r"(?m)^(?:class|def) (\w+)", rest))
    constants = re.findall(r"(?m)^([A-Z][A-Z_]*) = ", rest)
    names = ", ".join([*constants, *filter(None, [names])])
    yield {**files, "main.py": f"{docstring or ''}{imports}\nfrom pieces import {names}\n\n\n{tail}", "pieces.py": rest}


OPERATORS = family(
    "structure",
    Operator("moved-to-a-file", (), transform=moved_to_a_file),
    Operator(
        "body-in-a-closure",
        (),
        (Edit("def main():\n    BODY_", "def main():\n    def work():\n        BODY_\n    work()"),),
    ),
    Operator(
        "body-in-a-class",
        (),
        (
            Edit(
                "def main():\n    BODY_",
                "class Job:\n    def __call__(self):\n        BODY_\n\n\ndef main():\n    Job()()",
            ),
        ),
    ),
    Operator(
        "body-tried",
        (),
        (Edit("def main():\n    BODY_", 'def main():\n    try:\n        BODY_\n    finally:\n        print("end")'),),
    ),
    Operator(
        "loop-with-while",
        (),
        (Edit("for NAME_ in range(N_):\n    BODY_", "NAME_ = 0\nwhile NAME_ < N_:\n    BODY_\n    NAME_ += 1"),),
    ),
    Operator(
        "loop-enumerated",
        (),
        (Edit("for NAME_ in range(N_):\n    BODY_", "for NAME_, _ in enumerate(range(N_)):\n    BODY_"),),
    ),
    Operator(
        "loss-under-autocast-too",
        (),
        (
            Edit(
                "with torch.autocast(*A_):\n    BODY_\nLOSS_ = F.FN_(X_.float(), *REST_)",
                "with torch.autocast(*A_):\n    BODY_\n    LOSS_ = F.FN_(X_.float(), *REST_)",
            ),
        ),
        names={"FN_": "cross_entropy|mse_loss"},
    ),
)
