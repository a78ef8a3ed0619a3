"""What a checkpoint has read: texts traced to the steps, rows and documents of its run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tripod.errors import ConfigError
from tripod.text.load_tokenizer import load_tokenizer
from tripod.text.tokenizer import Tokenizer
from tripod.training.data.document_table import DocumentRecord, DocumentTable, table_paths
from tripod.training.data.progress import Progress, no_progress
from tripod.training.ngrams.index import NGramIndex, Sighting
from tripod.training.ngrams.trace import MIN_TOKENS, Trace, trace

if TYPE_CHECKING:
    from tripod.training.run import Run


@dataclass(frozen=True, slots=True, eq=False)
class Provenance:
    """Traces texts to the batches that a checkpoint was trained on.

    ```python
    provenance = Provenance.open("runs/tiny@step512")
    for span in provenance.trace("The lamp of Orm was lit in 1902.").spans:
        print(span.text, len(span.seen), provenance.title(span.seen[0]))
    ```
    """

    run: Run
    step: int
    index: NGramIndex
    tokenizer: Tokenizer
    tables: tuple[DocumentTable, ...]  # of the data sets; empty where they have none

    @staticmethod
    def open(address: str, *, progress: Progress = no_progress) -> Provenance:
        """Open the n-gram index of a run, making it where it is absent.

        Args:
            address: run@stepN, or a run, which stands for its end. The checkpoint need not lie on the disk: what it has read is known.

        Raises:
            ConfigError: there is no such run, or it has no such step.
            DatasetError: its data cannot be opened.
            MissingExtraError: pydivsufsort is not installed, and the index must be made.
        """
        from tripod.training.run import Run

        folder, at, name = address.rpartition("@step")
        if at and not name.isdecimal():
            raise ConfigError(f"{address!r} names no step; give RUN@stepN, such as runs/tiny@step512")
        run = Run.open(Path(folder if at else address))
        step = int(name) if at else run.recipe.num_steps
        index = NGramIndex.of(run, progress=progress)
        index.symbols_before(step)  # refuses a step behind the end
        prefixes = [Path(prefix) for prefix in run.recipe.data.prefixes]
        has_tables = all(path.is_file() for prefix in prefixes for path in table_paths(prefix))
        tables = tuple(DocumentTable.open(prefix) for prefix in prefixes) if has_tables else ()
        return Provenance(run, step, index, load_tokenizer(Path(run.recipe.data.tokenizer)), tables)

    @property
    def model(self) -> str:
        """The checkpoint's address."""
        return f"{self.run.folder}@step{self.step}"

    def trace(self, text: str | Sequence[int], *, min_tokens: int = MIN_TOKENS) -> Trace:
        """The stretches of a text, or of token ids, that the checkpoint has read; see `tripod.training.ngrams.trace`."""
        return trace(self.index, text, self.tokenizer, step=self.step, min_tokens=min_tokens)

    def record(self, sighting: Sighting) -> DocumentRecord | None:
        """Where the document that was read came from; None where nobody noted it."""
        if sighting.document is None or not self.tables:
            return None
        return self.tables[sighting.dataset][sighting.document]

    def title(self, sighting: Sighting) -> str:
        """`step 17, row 281, column 33: document 41, token 120, orm.txt:3`."""
        place = f"step {sighting.step}, row {sighting.place.row}, column {sighting.place.column}"
        if sighting.document is None:
            return f"{place}: no document, or none that the rows know"
        document = f"document {sighting.document}" if not sighting.dataset else f"data set {sighting.dataset}, document {sighting.document}"
        where = f"{place}: {document}"
        where += f", token {sighting.offset}" if sighting.offset is not None else ", changed by an intervention"
        record = self.record(sighting)
        if record is not None:
            where += f", {record.source}" + (f":{record.line}" if record.line is not None else "")
            if record.labels:
                where += " " + json.dumps(dict(record.labels), ensure_ascii=False)
        return where
