"""DOCX, PPTX and XLSX, written by the libraries that Word's, PowerPoint's and Excel's users write them with."""

from __future__ import annotations

import datetime
import io
import zipfile
from typing import Any

import docx
import openpyxl
import pptx
import pytest
from pptx.chart.data import CategoryChartData
from pptx.enum.chart import XL_CHART_TYPE
from pptx.util import Inches

from tripod.documents import Document
from tripod.errors import ConversionError
from tripod.protocols import Converter
from tripod.retrieval.converters.docx import Docx
from tripod.retrieval.converters.pptx import Pptx
from tripod.retrieval.converters.xlsx import Xlsx


def saved(file: Any) -> bytes:
    buffer = io.BytesIO()
    file.save(buffer)
    return buffer.getvalue()


def words_of(document: Document, start: int, end: int) -> str:
    return " ".join(document.text[start:end].split())


# DOCX


def test_word_headings_become_paths_and_paragraphs_are_counted() -> None:
    file = docx.Document()
    file.add_heading("Guide", level=1)
    file.add_paragraph("Before anything.")
    file.add_heading("Install", level=2)
    file.add_paragraph("Unpack it.")
    file.add_paragraph("Twice.", style="List Bullet")
    document = Docx().convert(saved(file), "a.docx")
    assert [(words_of(document, s.start, s.end), s.title) for s in document.sections] == [
        ("Guide Before anything.", "Guide"),
        ("Install Unpack it. - Twice.", "Guide > Install"),
    ]
    assert document.line_at(document.text.index("Unpack")) == 4
    assert document.title == "Guide"


def test_word_tables_keep_their_rows_and_their_place() -> None:
    file = docx.Document()
    file.add_paragraph("Above.")
    table = file.add_table(rows=2, cols=2)
    for cell, text in zip(table._cells, ("Name", "Age", "Ann", "41"), strict=True):
        cell.text = text
    file.add_paragraph("Below.")
    text = Docx().convert(saved(file), "a.docx").text
    assert text.split("\n\n")[:3] == ["Above.", "Name | Age\nAnn | 41\n", "Below."] or "Name | Age\nAnn | 41\n" in text
    assert text.index("Above.") < text.index("Name | Age") < text.index("Ann | 41") < text.index("Below.")


def test_what_word_deleted_is_not_read_and_what_it_inserted_is() -> None:
    file = docx.Document()
    file.add_paragraph("BEGIN")
    content = saved(file)
    run = '<w:r><w:t xml:space="preserve">{}</w:t></w:r>'
    tracked = f'<w:del w:id="1">{run.format("gone ").replace("w:t ", "w:delText ").replace("w:t>", "w:delText>")}</w:del>'
    tracked = tracked.replace("</w:delText>", "</w:delText><w:tab/>") + f'<w:moveFrom w:id="3">{run.format("moved ")}</w:moveFrom>'
    tracked += f'<w:ins w:id="2">{run.format("added ")}</w:ins><w:hyperlink w:anchor="x">{run.format("linked")}</w:hyperlink>'
    changed = rewritten(content, "word/document.xml", run.format("BEGIN").replace(' xml:space="preserve"', ""), tracked)
    assert Docx().convert(changed, "a.docx").text.rstrip() == "added linked"


def rewritten(content: bytes, name: str, old: str, new: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as before, zipfile.ZipFile(buffer, "w") as after:
        for member in before.namelist():
            data = before.read(member)
            if member == name:
                assert old.encode() in data
                data = data.replace(old.encode(), new.encode())
            after.writestr(member, data)
    return buffer.getvalue()


def test_a_word_comment_is_read_after_the_text() -> None:
    file = docx.Document()
    paragraph = file.add_paragraph("The price is wrong.")
    file.add_comment(paragraph.runs, text="Ask Ann about quartz.", author="B")
    document = Docx().convert(saved(file), "a.docx")
    assert document.sections[-1].title == "Comments"
    assert "Ask Ann about quartz." in document.text[document.sections[-1].start :]


# PPTX


def slides() -> Any:
    file = pptx.Presentation()
    first = file.slides.add_slide(file.slide_layouts[1])
    first.shapes.title.text = "Quarter"
    first.placeholders[1].text_frame.text = "Sales rose."
    footer = first.shapes.add_textbox(Inches(0), Inches(7), Inches(1), Inches(1))  # left of the rest, and below it
    footer.text_frame.text = "Last."
    first.notes_slide.notes_text_frame.text = "Say it slowly."
    second = file.slides.add_slide(file.slide_layouts[6])
    table = second.shapes.add_table(1, 2, Inches(1), Inches(4), Inches(4), Inches(1)).table
    table.cell(0, 0).text, table.cell(0, 1).text = "North", "7"
    data = CategoryChartData()
    data.categories = ["May", "June"]
    data.add_series("Units", (3, 4.5))
    second.shapes.add_chart(XL_CHART_TYPE.COLUMN_CLUSTERED, Inches(1), Inches(1), Inches(4), Inches(2), data)
    return file


def test_a_slide_is_a_page_with_its_notes_tables_and_charts_from_top_to_bottom() -> None:
    document = Pptx().convert(saved(slides()), "a.pptx")
    pages = [(page.number, words_of(document, page.start, page.end)) for page in document.pages]
    assert pages == [
        (1, "Quarter Sales rose. Last. Notes: Say it slowly."),
        (2, "Category | Units May | 3 June | 4.5 North | 7"),
    ]
    assert [section.title for section in document.sections] == ["Quarter", "Slide 2"]


# XLSX


def test_rows_are_lines_and_sheets_are_sections() -> None:
    file = openpyxl.Workbook()
    sheet = file.active
    sheet.title = "People"
    sheet.append(["Name", "Born", "Height"])
    sheet["A3"], sheet["B3"], sheet["C3"] = "Ann", datetime.date(1984, 5, 1), 1.5
    sheet["A4"] = 7.0
    other = file.create_sheet("Towns")
    other["B2"] = "Oslo"
    document = Xlsx().convert(saved(file), "a.xlsx")
    assert document.text == "People\nName | Born | Height\nAnn | 1984-05-01 | 1.5\n7\n\nTowns\n | Oslo\n\n"
    assert [section.title for section in document.sections] == ["People", "Towns"]
    assert [document.line_at(document.text.index(word)) for word in ("Name", "Ann", "7\n", "Oslo")] == [1, 3, 4, 2]


# All


@pytest.mark.parametrize(("converter", "suffix"), [(Docx(), ".docx"), (Pptx(), ".pptx"), (Xlsx(), ".xlsx")])
def test_what_is_no_such_file_says_so(converter: Converter, suffix: str) -> None:
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w") as file:
        file.writestr("a.txt", "x")
    for content in (b"", b"PK\x03\x04", zipped.getvalue()):
        with pytest.raises(ConversionError, match=f"not an? {suffix[1:].upper()} that can be read"):
            converter.convert(content, f"a{suffix}")


@pytest.mark.parametrize(("converter", "file"), [(Docx(), docx.Document()), (Pptx(), pptx.Presentation()), (Xlsx(), openpyxl.Workbook())])
def test_a_file_without_text_says_so(converter: Converter, file: Any) -> None:
    with pytest.raises(ConversionError, match=r"holds (no )?text|holds a value"):
        converter.convert(saved(file), "a")
