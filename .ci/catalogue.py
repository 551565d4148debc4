"""The Chinese words of the command: `ihuyi_voice/locale/zh_CN/LC_MESSAGES/ihuyi_voice.po`.

`python .ci/catalogue.py update` writes the messages of the source into the .po: new
ones without a translation, and without those that are gone. Translate them, then
`python .ci/catalogue.py compile` makes the .mo of it. tests/cli/test_language.py
fails where source, .po and .mo do not agree. Needs Babel, of the extra `test`.
"""

from __future__ import annotations

import io
import sys
from pathlib import Path

from babel.messages.catalog import Catalog
from babel.messages.extract import extract_from_dir
from babel.messages.mofile import write_mo
from babel.messages.pofile import read_po, write_po

PACKAGE = Path(__file__).parent.parent / "ihuyi_voice"
PO = PACKAGE / "locale" / "zh_CN" / "LC_MESSAGES" / "ihuyi_voice.po"
MO = PO.with_suffix(".mo")
# The functions whose first argument is a message, and `ngettext` with two.
KEYWORDS = {"_": None, "mark": None, "Phrase": None, "ngettext": (1, 2)}


def extracted() -> Catalog:
    """The messages of the source, without translations."""
    found = Catalog()
    for place in ("cli", "."):
        # The package itself, without the folders below it: `__main__` speaks too.
        methods = [("**.py" if place == "cli" else "__main__.py", "python")]
        files = extract_from_dir(PACKAGE / place, methods, keywords=KEYWORDS)
        for name, _line, message, _comments, _context in sorted(files, key=lambda one: one[:2]):
            found.add(message, locations=[(f"{place}/{name}".removeprefix("./"), 0)])
    for message in spoken_values():
        found.add(message, locations=[("errors.py", 0)])
    return found


def spoken_values() -> list[str]:
    """What the command shows of the library: outcomes, states, texts of errors, advice."""
    sys.path.insert(0, str(PACKAGE.parent))
    from ihuyi_voice._extras import INSTALL  # noqa: PLC0415 - found by the line above
    from ihuyi_voice.cli.library_texts import TEMPLATES  # noqa: PLC0415 - as above
    from ihuyi_voice.errors import CODES, OutcomeStatus  # noqa: PLC0415 - as above
    from ihuyi_voice.store.jobs import JobState  # noqa: PLC0415 - as above

    states = [one.value for one in (*OutcomeStatus, *JobState)]
    return [*states, *(code.meaning for code in CODES.values()), *TEMPLATES, INSTALL]


def read() -> Catalog:
    """The .po with its translations."""
    with PO.open("rb") as file:
        return read_po(file, locale="zh_CN")


def written(catalogue: Catalog) -> bytes:
    """The .po as text: sorted, and without lines that change at each run."""
    file = io.BytesIO()
    write_po(file, catalogue, omit_header=False, include_lineno=False, sort_output=True, width=100)
    return file.getvalue()


def compiled(catalogue: Catalog) -> bytes:
    """The .mo."""
    file = io.BytesIO()
    write_mo(file, catalogue)
    return file.getvalue()


def updated() -> Catalog:
    """The messages of the source with the translations of the .po."""
    known, catalogue = read() if PO.exists() else Catalog(), extracted()
    fresh = Catalog(locale="zh_CN", project="ihuyi-voice", fuzzy=False, header_comment="# Chinese.")
    fresh.revision_date = fresh.creation_date = known.creation_date
    for message in catalogue:
        if message.id:
            same = known.get(message.id)
            string = same.string if same is not None else None
            fresh.add(message.id, string, message.locations)
    return fresh


def main() -> None:
    """Update or compile."""
    match sys.argv[1:]:
        case ["update"]:
            PO.parent.mkdir(parents=True, exist_ok=True)
            PO.write_bytes(written(updated()))
        case ["compile"]:
            MO.write_bytes(compiled(read()))
        case _:
            sys.exit("say update or compile")


if __name__ == "__main__":
    main()
