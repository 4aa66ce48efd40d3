"""Commands about what people say: `notes`."""

from __future__ import annotations

import getpass
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from .application import AsJson, app
from .output import print_line, print_result, print_table

__all__: list[str] = []


@app.command()
def notes(
    db: Annotated[Path, typer.Argument(help="A database.")],
    feature: Annotated[int | None, typer.Option(help="Of this feature only.")] = None,
    dictionary: Annotated[str | None, typer.Option(help="Its name, or 8 digits or more of its hash.")] = None,
    add: Annotated[str | None, typer.Option(help="Write this note about --feature.")] = None,
    author: Annotated[str | None, typer.Option(help="Who signs it; default: who you are on this machine.")] = None,
    delete: Annotated[int | None, typer.Option(help="Take the note of this number away, whoever wrote it.")] = None,
    as_json: AsJson = False,
) -> None:
    """What people wrote about features, and what they call them. A name is given by `explain --name`, or on the feature's page.

    Example: `interlatent-live notes r.db`, `interlatent-live notes r.db --feature 3 --add "silent after a fall"`
    """
    from interlatent_live.explainer.notes import Notes
    from interlatent_live.explainer.reading import Pages

    if not db.is_file():
        raise typer.BadParameter(f"{db} is not a file")
    if add is not None:
        if feature is None:
            raise typer.BadParameter("say which feature the note is about: --feature NUMBER")
        hash_ = _dictionary(db, dictionary)
        with Notes(db) as door:
            number = door.add(hash_, feature, add, author=getpass.getuser() if author is None else author)
        print_result({"note": number, "feature": feature}, as_json)
        return
    if delete is not None:
        with Notes(db) as door:
            door.delete(delete)
        print_result({"deleted": delete}, as_json)
        return
    wanted = None if dictionary is None else _dictionary(db, dictionary)
    with Pages(db) as pages, pages.consistent():
        found = pages.notes(wanted, feature)
        hashes = [h for h in _hashes(pages) if wanted in (None, h)]
        named = {h: {f: n for f, n in pages.named(h).items() if feature in (None, f)} for h in hashes}
        of = {h: d.name for h in {*hashes, *(n.dictionary_hash for n in found)} if (d := pages.dictionary(h)) is not None}
        own = {h: {e.feature: e.own_label for e in pages.explanations(h, everything=True)} for h, names in named.items() if names}
    names = [
        {"dictionary": of.get(h, h[:8]), "feature": f, "name": name, "explainer": own[h].get(f)}
        for h in hashes for f, name in sorted(named[h].items())
    ]  # fmt: skip
    rows: list[dict[str, Any]] = [
        {"note": n.id, "dictionary": of.get(n.dictionary_hash, n.dictionary_hash[:8]), "feature": n.feature,
         "name": named.get(n.dictionary_hash, {}).get(n.feature), "author": n.author, "written": _when(n.wall_ns),
         "edited": None if n.edited_wall_ns is None else _when(n.edited_wall_ns), "text": n.text}
        for n in found
    ]  # fmt: skip
    if as_json:
        print_line({"names": names, "notes": rows}, True, "")
        return
    if names:
        print_table(names, False)
    print_table(rows, False, ("note", "dictionary", "feature", "author", "written", "text"))


def _hashes(pages: Any) -> list[str]:
    """Dictionaries in use, the newest section's last."""
    return list(dict.fromkeys(s.dictionary_hash for b in pages.boots() for s in pages.sections(b.boot)))


def _dictionary(db: Path, name: str | None) -> str:
    """The hash of the dictionary that is meant."""
    from interlatent_live.explainer.reading import Pages

    with Pages(db) as pages:
        called = {h: d.name for h in _hashes(pages) if (d := pages.dictionary(h)) is not None}
    meant = [h for h, own in called.items() if name is None or own == name or (len(name) >= 8 and h.startswith(name))]
    if len(meant) != 1:
        there = ", ".join(f"{own} {h[:12]}" for h, own in called.items()) or "none"
        raise typer.BadParameter(f"{len(meant) or 'no'} dictionaries are meant; {db} has {there}: say which with --dictionary")
    return meant[0]


def _when(wall_ns: int) -> str:
    return datetime.fromtimestamp(wall_ns / 1e9).astimezone().isoformat(timespec="seconds")
