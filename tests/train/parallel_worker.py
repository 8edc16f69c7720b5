"""Run by msrun in the tests: trains a tiny model in several ways on the same processes and writes what came of it.

parallel_worker.py CASES.json OUTPUT_DIR; the cases are `train.parallel_cases.Case`s.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from train.parallel_cases import Case, run


def main() -> None:
    from spark13b.model.mesh import meet

    meet()  # the scheduler serves here until the workers have gone
    cases, output = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
    for values in cases:
        run(Case(**values), output)


if __name__ == "__main__":
    main()
