"""A hook of MkDocs: the pictures of the replication cards are drawn from the tables beside them when the documentation is built."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def on_pre_build(config: Any) -> None:
    from tripod.analysis.replication import draw_card
    from tripod.analysis.replication_cards import CARDS

    folder = Path(config["docs_dir"]) / "replications"
    for card in CARDS.values():
        if card.plot is not None:
            draw_card(card, folder)
