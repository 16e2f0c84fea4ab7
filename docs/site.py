"""What the site has besides docs/*.md: reference pages made from the code, and the documents that stand elsewhere.

mkdocs.yml names this file as a hook. Nothing here is imported by the library.
"""

import argparse
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

from lowenergy import cli, params

ROOT = Path(__file__).parents[1]
ELSEWHERE = {  # documents of other folders, and their pages
    "README.md": "index.md",
    "ARCHITECTURE.md": "architecture.md",
    "CONTRIBUTING.md": "contributing.md",
    "benchmarks/README.md": "benchmarks.md",
    "examples/README.md": "examples.md",
    "pretrained/README.md": "pretrained.md",
}
LINK = re.compile(r"(?<!!)\[((?:[^\[\]]|!\[[^\]]*\]\([^)]*\))+)\]\(([^)\s]+)\)")
PYTHON = "# Python\n\n::: lowenergy\n    options: {show_root_heading: false, members_order: source}\n"


def on_files(files: Files, config: Any) -> Files:
    made = {"parameters.md": parameters(), "commands.md": commands(), "python.md": PYTHON}
    for document, page in ELSEWHERE.items():
        if page != "index.md" and (ROOT / document).exists():
            made[page] = linked((ROOT / document).read_text(), (ROOT / document).parent)
    for page, text in made.items():
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    generated = page.file.generated_by is not None
    return markdown if generated else linked(markdown, ROOT / "docs")


def linked(markdown: str, folder: Path) -> str:
    """A document of this folder with the links of the site; of a file that is not there, only the text."""

    def link(found: re.Match[str]) -> str:
        text, (target, _, anchor) = found[1], found[2].partition("#")
        place = (folder / target).resolve()
        if not target or "://" in target or not place.exists() or not place.is_relative_to(ROOT):
            return found[0]  # a page that is made above, an address, or a mistake that mkdocs reports
        document = place.relative_to(ROOT).as_posix()
        page = ELSEWHERE.get(document, document.removeprefix("docs/") if document.startswith("docs/") else None)
        if page is None:
            return text
        return f"[{text}]({page}#{anchor})" if anchor else f"[{text}]({page})"

    def image(found: re.Match[str]) -> str:
        place = (folder / found[2]).resolve()
        docs = ROOT / "docs"
        return f"![{found[1]}]({place.relative_to(docs)})" if place.is_relative_to(docs) else found[0]

    pictured = re.sub(r"!\[([^\]]*)\]\(([^)\s]+)\)", image, markdown)
    return LINK.sub(link, pictured)


def parameters() -> str:
    """Every parameter, by section."""
    sections: dict[str, list[str]] = {}
    for name, may_be, means in params.listing():
        section, _, rest = name.partition(".")
        row = f"| `{rest or section}` | {_cell(may_be)} | {_cell(means)} |"
        sections.setdefault(section if rest else "", []).append(row)
    head = "| parameter | may be | means |\n|---|---|---|\n"
    text = "# Parameters\n\nThe values of `params.yaml`. `lowenergy params SECTION` prints the same.\n"
    for section, lines in sections.items():
        text += (f"\n## {section}\n\n" if section else "\n") + head + "\n".join(lines) + "\n"
    return text


def commands() -> str:
    """Every command and its options."""
    text = "# Command line\n\n`lowenergy COMMAND --help` prints the same.\n"
    for name, parser, help_ in _commands(cli._parser()):
        usage = re.sub(r"\s+", " ", parser.format_usage().removeprefix("usage: ")).strip()
        text += f"\n## {name}\n\n{help_[:1].upper()}{help_[1:]}.\n\n```text\n{usage}\n```\n"
        rows = [
            f"| `{', '.join(action.option_strings) or action.metavar or action.dest}` "
            f"| {_cell(_expanded(action, parser))} |"
            for action in parser._actions
            if not isinstance(action, argparse._HelpAction)
        ]
        if rows:
            text += "\n| argument | meaning |\n|---|---|\n" + "\n".join(rows) + "\n"
    return text


def _commands(parser: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.ArgumentParser, str]]:
    (found,) = (a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    helps = {choice.dest: choice.help or "" for choice in found._choices_actions}
    for name, command in found.choices.items():
        yield name, command, helps.get(name, "")


def _expanded(action: argparse.Action, parser: argparse.ArgumentParser) -> str:
    return ((action.help or "") % {**vars(action), "prog": parser.prog}).strip()


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")
