"""The commands of the README's section "Use a model", and its Python, as they stand there."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from arbitrage.cli import main as arbitrage
from trinityx_jax.cli import main as trinityx

README = (Path(__file__).resolve().parents[3] / "README.md").read_text()
PROGRAMS = {"trinityx": trinityx, "arbitrage": arbitrage}


@pytest.fixture
def workplace(tiny_run, pretrained, tmp_path, monkeypatch):
    """A folder with everything that the commands name."""
    monkeypatch.chdir(tmp_path)
    Path("runs").mkdir()
    for run in ("quickstart", "llama"):
        Path("runs", run).symlink_to(tiny_run.directory)
    Path("my-llama").symlink_to(pretrained("llama"))
    Path("prompts.jsonl").write_text('{"prompt": "how to clean the odor"}\n')
    row = {"prompt": "name the color of gus", "options": ["blue", "not known"], "label": 1}
    rows = [json.dumps({"id": i, **row}) for i in range(20)]
    Path("questions.jsonl").write_text("\n".join(rows))
    return tmp_path


def test_commands_run_one_after_another(workplace, capfd):
    block = README.partition("<!-- use:begin -->")[2].partition("<!-- use:end -->")[0]
    lines = block.replace("\\\n", " ").splitlines()
    commands = [shlex.split(line) for line in lines if line.startswith(tuple(PROGRAMS))]
    assert len(commands) == 5
    for program, *arguments in commands:
        short = ["--max-new-tokens", "4"] if "generate" in arguments else []
        assert PROGRAMS[program]([*arguments, *short]) == 0, capfd.readouterr().err
    made = {path.name for path in workplace.iterdir()}
    assert {"answers.jsonl", "answers.jsonl.manifest.json", "scores", "policy.json"} <= made


def test_python_runs(workplace, capfd):
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    (code,) = (block for block in blocks if "from_run" in block)
    names: dict = {}
    exec(compile(code, "README.md", "exec"), names)
    assert names["logits"].shape[:2] == (1, 3)
    assert names["same"].setup.codec.prompt("x") == names["model"].setup.codec.prompt("x")
