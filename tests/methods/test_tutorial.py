"""The tutorial of CONTRIBUTING.md, run as it stands: a file, a line, and the common suite."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

pytestmark = pytest.mark.once
ROOT = Path(__file__).parents[2]


def test_a_method_is_one_file_and_one_line(tmp_path: Path) -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    file, line = (textwrap.dedent(block) for block in re.findall(r"   ```python\n(.*?)   ```", text, re.DOTALL))
    for folder in ("sam_algos", "tests"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / "sam_algos" / "methods" / "signsam.py").write_text(file)
    register = tmp_path / "sam_algos" / "methods" / "__init__.py"
    last = "from sam_algos.methods.sssam import *\n"
    assert register.read_text().count(last) == 1
    register.write_text(register.read_text().replace(last, last + line))
    # On PyTorch alone, whatever is installed: that is where a method belongs, and Composer takes long to import.
    run = (
        "import sys; sys.modules['composer'] = None; sys.path.insert(0, '.')\n"
        "import pytest\n"
        "sys.exit(pytest.main(['-q', '-p', 'no:cacheprovider', '-p', 'no:xdist', 'tests/methods', '-k', 'signsam']))"
    )
    done = subprocess.run([sys.executable, "-c", run], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None
    assert int(passed[1]) > 20
    assert "failed" not in done.stdout
