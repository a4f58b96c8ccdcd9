"""How Sphinx builds the pages of this folder; run it by scripts/docs."""

import contextlib
import io
import os
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.pycode import ModuleAnalyzer
from sphinx.util.docutils import SphinxDirective

import quiesce
from quiesce.cli.main import run

project = "quiesce"
author = "the authors of quiesce"
version = release = quiesce.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"quiesce {version}"
html_copy_source = False
#: Links to a heading of a page, as GitHub makes them too: `stopping.md#choosing-slots`.
myst_heading_anchors = 4
pygments_style = "friendly"
pygments_dark_style = "monokai"

#: `name` in a docstring is code.
default_role = "code"
add_module_names = False
autodoc_member_order = "bysource"
#: Types stand with the arguments that a docstring explains; with the many overloads of `spawn` they would hide it.
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
napoleon_numpy_docstring = False
napoleon_use_ivar = True

#: What is documented elsewhere, and type variables.
nitpick_ignore_regex = [
    (r"py:.*", r"(collections|concurrent|contextlib|enum|pathlib|types|typing|threading)\..*"),
    (
        r"py:.*",
        r"(Any|BrokenExecutor|(OS|Runtime|Timeout|Type|Value|Assertion)Error|bool|float|int|str|object)",
    ),
    (r"py:.*", r"quiesce\..*\.(_?T|T_co|A|P|Ts)"),
    (
        r"py:.*",
        r"quiesce\.(client\.events\.\w+|client\.async_handle\._Id|registry\.rows\.StopRow)",
    ),  # to be used, not named
    (r"py:.*", r"quiesce\.(cli\.config\.Config|token\.DropGuard|testing\.leaks\.Snapshot)"),
    (r"py:.*", r".*[ ,'\[].*"),  # words, where a docstring names several at once
]
if not Path(__file__).with_name("performance.png").exists():
    suppress_warnings = ["image.not_readable"]  # `scripts/bench --plot` makes it


class Help(SphinxDirective):
    """What a verb says to --help, from the command itself: `{quiesce-help} up`; without a verb, of them all."""

    optional_arguments = 1

    def run(self) -> list[nodes.Node]:
        text = io.StringIO()
        with contextlib.redirect_stdout(text):
            status = run([*self.arguments, "--help"])
        if status:
            raise self.error(f"quiesce {self.arguments} --help has failed")
        lines = [line.rstrip() for line in text.getvalue().strip("\n").splitlines()]
        block = nodes.literal_block("", "\n".join(lines), language="text")
        return [block]


def mark_examples(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]
) -> None:
    """Indented lines after a sentence are code; Sphinx wants that said."""
    marked: list[str] = []
    last = "Args:"
    for line in lines:
        begins = line.startswith("    ") and marked and not marked[-1].strip()
        if begins and last.strip() and not last.startswith(" ") and not last.endswith("s:"):
            marked += ["::", ""]
        marked.append(line)
        if line.strip():
            last = line
    lines[:] = marked


def public_names(app: Sphinx, env: Any, node: Any, content: Any) -> Any:
    """`quiesce.values.TaskInfo` is documented as `quiesce.TaskInfo`."""
    target = str(node.get("reftarget", ""))
    name = target.rpartition(".")[2]
    for module in ("quiesce", "quiesce.testing"):
        public = f"{module}.{name}"
        if target != public and (target.startswith("quiesce.") or target == name):
            found = env.domains["py"].objects.get(public)
            if found is not None:
                return env.domains["py"].resolve_xref(
                    env, node["refdoc"], app.builder, "obj", public, node, content
                )
    return None


def without_overloads(*modules: str) -> None:
    """`spawn` has four signatures for type checkers; people read the one that they stand for."""
    for module in modules:
        analyzer = ModuleAnalyzer.for_module(module)
        analyzer.analyze()  # and keeps the result
        analyzer.overloads.clear()


def setup(app: Sphinx) -> None:
    os.environ.update(COLUMNS="100", TERMINAL_WIDTH="100", NO_COLOR="1")
    without_overloads(
        "quiesce.client.spawning", "quiesce.client.async_client", "quiesce.client.executor"
    )
    app.add_directive("quiesce-help", Help)
    app.connect("autodoc-process-docstring", mark_examples, priority=400)  # before napoleon
    app.connect("missing-reference", public_names)
