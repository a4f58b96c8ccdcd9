"""Makes, of joblib's own test_parallel.py, a module that tests the backend "quiesce" in place of joblib's.

Run by scripts/conformance: `joblib_parallel.py FOLDER` writes test_parallel_quiesce.py there. Nothing of what
the tests do or expect is changed: only which backends they are done with. The module keeps those tests alone
whose names hold "quiesce" or the number of an instance of our backend.
"""

import sys
from pathlib import Path

import joblib.test.test_parallel as original

#: What is written there, and what stands for it here.
CHANGES = (
    ("import joblib\n", "import joblib\nimport quiesce.joblib\n"),
    (
        "RETURN_GENERATOR_BACKENDS = BACKENDS.copy()",
        'RETURN_GENERATOR_BACKENDS = {"quiesce": BACKENDS["quiesce"]}',
    ),
    ("ALL_VALID_BACKENDS = [None] + sorted(BACKENDS.keys())", 'ALL_VALID_BACKENDS = ["quiesce"]'),
    (
        "ALL_VALID_BACKENDS += [BACKENDS[backend_str]() for backend_str in BACKENDS]",
        'ALL_VALID_BACKENDS += [BACKENDS["quiesce"]()]',
    ),
    ('ALL_VALID_BACKENDS.append(mp.get_context("spawn"))', "pass"),
    ('PROCESS_BACKENDS = ["multiprocessing", "loky"]', 'PROCESS_BACKENDS = ["quiesce"]'),
    # Programs that tests run.
    ('"""\\\nfrom joblib import', '"""\\\nimport quiesce.joblib\nfrom joblib import'),
    (
        "\nfrom joblib import Parallel, delayed\n\ndef run",
        "\nimport quiesce.joblib\nfrom joblib import Parallel, delayed\n\ndef run",
    ),
)


def main(folder: str) -> None:
    text = Path(original.__file__).read_text(encoding="utf-8")
    for old, new in CHANGES:
        if old not in text:
            sys.exit(
                f"this joblib's test_parallel.py has changed, it does not say {old!r} any more"
            )
        text = text.replace(old, new)
    Path(folder, "test_parallel_quiesce.py").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
